insert into memory_vectors (user_id, model, memory_id, digest, embedding)
select $1, $2, id, digest, embedding
from unnest($3::text[], $4::bytea[], $5::vector[]) as new (id, digest, embedding)
-- Superseded memories have no vectors.
where exists (select from memories where user_id = $1 and memories.id = new.id and superseded_by is null)
on conflict (user_id, model, memory_id) do nothing
returning memory_id
