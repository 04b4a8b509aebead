-- Of each memory $2 the postings that it has, and the bytes of its text, if there is one.
select given.id,
       (select count(*) from memory_postings where user_id = $1 and memory_id = given.id) as postings,
       coalesce((select octet_length(content) from memories where user_id = $1 and memories.id = given.id), 0) as bytes
from unnest($2::text[]) as given (id)
