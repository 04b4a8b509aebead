insert into memory_history (user_id, memory_id, version, content, tags, metadata)
select memories.user_id, memories.id,
       1 + (select count(*) from memory_history past where past.user_id = $1 and past.memory_id = memories.id),
       memories.content, memories.tags, memories.metadata
from unnest($2::text[], $3::text[]) as new (id, content)
     join memories on memories.user_id = $1 and memories.id = new.id and memories.content <> new.content
