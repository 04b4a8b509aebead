update memories set superseded_by = new.id, updated_at = now()
from unnest($2::text[], $3::text[]) as new (old, id)
where memories.user_id = $1 and memories.id = new.old and memories.id <> new.id
      and memories.superseded_by is distinct from new.id
      -- The superseding memory may have been deleted.
      and exists (select from memories newer where newer.user_id = $1 and newer.id = new.id)
returning memories.id
