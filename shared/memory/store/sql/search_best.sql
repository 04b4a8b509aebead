-- The best hits without the exact score of every memory. `upper` is the most that the score of a memory can be. A product of unit
-- vectors in half precision is off by 2 · 2⁻¹¹ at most, which the margin of 0.0012 covers. A memory that is not among the $21
-- nearest is at most as similar as the last of them. The $22 memories with the highest `upper` are scored. Of the others none can
-- be a hit if the last hit scores more than the lowest `upper`: `is_complete`.
nearest as materialized (
    select id, score from vectors order by score desc, id limit $21
), candidates as (
    select id, lexical, vector,
           lexical + $14 * (0.0012::float8 + coalesce(
               vector, (select case when count(*) < $21 then 0 else min(score) end from nearest))) as upper
    from (select id, (1 - $14) * (x / sqrt(1 + x * x)) as lexical, vector
          from (select id, sum(x) as x, max(vector) as vector
                from (select id, x, null::float8 as vector from ({postings}) as matching
                      union all select id, 0, score from nearest) as parts
                group by id) as bm25) as merged
    order by upper desc, id limit $22
), scored as materialized (
    select id, upper::real as upper,
           (lexical + $14 * coalesce(case when (select not reads_copies from state) then vector end, (
               select least(1, greatest(0, -(embedding <#> $12))) from memory_vectors
               where user_id = $1 and model = $13 and memory_id = candidates.id
           ), 0))::real as score
    from candidates
), best as (
    select id, score from scored where score >= $15 order by score desc, id limit $17
)
