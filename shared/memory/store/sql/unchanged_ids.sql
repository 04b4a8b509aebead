select memories.id
from unnest($2::text[], $3::text[], $4::bytea[]) as given (id, content, digest)
     join memories on memories.user_id = $1 and memories.id = given.id and memories.content = given.content
     join memory_vectors vectors on vectors.user_id = $1 and vectors.model = $5
          and vectors.memory_id = given.id and vectors.digest = given.digest
where memories.document_id = ''
