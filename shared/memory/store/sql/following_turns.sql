-- The two turns after each memory, as many as index_inputs.sql reads before one, if they have terms of it: those of at most $3
-- bytes are read with the turns before them, and longer ones were by earlier versions. A term of a turn before has a fraction.
-- Without $3, all of them.
select distinct later.id
from memories cross join lateral (
    select id, content from memories follower
    where follower.user_id = $1 and follower.session_id <> '' and follower.session_id = memories.session_id
          and follower.superseded_by is null
          and (follower.created_at, follower.id) > (memories.created_at, memories.id)
    order by follower.created_at, follower.id limit 2
) as later
where memories.user_id = $1 and memories.id = any($2) and memories.session_id <> ''
      and ($3::bigint is null or octet_length(later.content) <= $3
           or exists (select from memory_postings
                      where user_id = $1 and memory_id = later.id and frequency <> trunc(frequency)))
