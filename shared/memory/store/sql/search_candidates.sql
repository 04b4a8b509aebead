-- As search_exact.sql, for the candidates of both retrievers alone: $21 of each.
vectors as (
    select memory_id as id, least(1, greatest(0, -(embedding <#> $12))) as score
    from memory_vectors
    where user_id = $1 and model = $13
          and memory_id = any(array(select id from nearest union {lexical_candidates}))
    offset 0
)
