select distinct on (ordinal) ordinal, memories.id
from unnest($2::text[], $3::text[]) with ordinality as given (content, session_id, ordinal)
     join memories on memories.user_id = $1
          and memories.content_digest = sha256(convert_to(given.content, 'UTF8'))
          and memories.content = given.content
          and memories.session_id = given.session_id
where memories.document_id = '' and memories.superseded_by is null
order by ordinal, memories.created_at, memories.id
