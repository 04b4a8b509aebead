-- The cosine, which is the inner product of unit vectors; a negative one is 0. $12 the vector, $13 its model. The offset keeps
-- the planner from comparing vectors of another dimension before they are filtered out; to materialize would cost a tenth of
-- the search.
vectors as (
    select memory_id as id, least(1, greatest(0, -(embedding <#> $12))) as score
    from memory_vectors where user_id = $1 and model = $13 and (select {is_searched} from state) offset 0
)
