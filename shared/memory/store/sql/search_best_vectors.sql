scored as (
    select id, score::real as score from vectors
), best as (
    select id, score from scored where score >= $15 order by score desc, id limit $17
)
