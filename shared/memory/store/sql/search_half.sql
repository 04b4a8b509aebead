-- As search_exact.sql, by the vectors in half precision, if all have such a copy.
vectors as (
    select memory_id as id, least(1, greatest(0, -(embedding <#> (select $12::halfvec)))) as score
    from memory_half_vectors where user_id = $1 and model = $13 and (select {is_searched} and reads_copies from state)
    union all
    select memory_id, least(1, greatest(0, -(embedding <#> $12)))
    from memory_vectors where user_id = $1 and model = $13 and (select {is_searched} and not reads_copies from state)
    offset 0
)
