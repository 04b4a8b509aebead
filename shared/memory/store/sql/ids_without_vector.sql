select id from memories
where user_id = $1 and id = any($2) and superseded_by is null
      and not exists (select from memory_vectors vectors
                      where vectors.user_id = $1 and vectors.model = $3 and vectors.memory_id = memories.id)
