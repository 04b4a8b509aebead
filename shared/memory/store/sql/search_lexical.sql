-- Mapped to 0..1.
lexical as (
    select id, x / sqrt(1 + x * x) as score
    from (select id, sum(x) as x from ({postings}) as parts group by id) as bm25
)
