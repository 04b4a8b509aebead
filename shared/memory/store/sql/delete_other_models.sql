-- A memory without a vector of the model keeps those that it has.
delete from memory_vectors where user_id = $1 and model <> $2
and exists (select from memory_vectors current
            where current.user_id = $1 and current.model = $2 and current.memory_id = memory_vectors.memory_id)
