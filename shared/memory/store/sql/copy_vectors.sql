-- At most $2 vectors from before there were copies.
with missing as (
    select user_id, model, memory_id, embedding from memory_vectors vectors
    where user_id = $1
          and not exists (select from memory_half_vectors copies
                          where copies.user_id = $1 and copies.model = vectors.model
                                and copies.memory_id = vectors.memory_id)
    limit $2
), copied as (
    insert into memory_half_vectors (user_id, model, memory_id, embedding)
    select user_id, model, memory_id, embedding::halfvec from missing
    on conflict (user_id, model, memory_id) do nothing
)
select count(*) as copied from missing
