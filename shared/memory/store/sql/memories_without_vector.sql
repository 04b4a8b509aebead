select user_id, id from memories
where superseded_by is null and (user_id, id) > ($2, $3)
      and not exists (select from memory_vectors vectors
                      where vectors.user_id = memories.user_id and vectors.model = $1
                            and vectors.memory_id = memories.id)
order by user_id, id limit $4
