insert into memory_history (user_id, memory_id, version, content, tags, metadata)
select user_id, id,
       1 + (select count(*) from memory_history where user_id = $1 and memory_id = $2), content, tags, metadata
from memories where user_id = $1 and id = $2
