-- Memories that are not superseded, each with as many turns before it as there are PRECEDING_TURN_WEIGHTS, if it has at most $3
-- bytes. Of those turns only the beginning is read.
select memories.id, memories.content, memories.created_at, coalesce(memories.metadata ->> 'speaker', '') as speaker,
       coalesce(documents.title, '') as title, memories.section_title,
       array(select left(earlier.content, $4) from memories earlier
             where earlier.user_id = $1 and earlier.session_id <> '' and earlier.session_id = memories.session_id
                   and earlier.superseded_by is null
                   and (earlier.created_at, earlier.id) < (memories.created_at, memories.id)
                   and octet_length(memories.content) <= $3
             order by earlier.created_at desc, earlier.id desc limit 2) as preceding_turns
from memories left join documents on documents.user_id = $1 and documents.id = memories.document_id
where memories.user_id = $1 and memories.id = any($2) and memories.superseded_by is null
