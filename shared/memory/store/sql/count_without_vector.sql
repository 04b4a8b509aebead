select count(*) as missing from memories
where superseded_by is null
      and not exists (select from memory_vectors vectors
                      where vectors.user_id = memories.user_id and vectors.model = $1
                            and vectors.memory_id = memories.id)
