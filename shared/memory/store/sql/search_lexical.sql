-- Okapi BM25, as `term_score` in bm25.rs, divided by the reference score $12 and mapped to 0..1. $7 terms, $8 their inverse
-- document frequencies, $9 k1, $10 b, $11 the average length.
lexical as (
    select id, x / sqrt(1 + x * x) as score
    from (select memory_id as id,
                 sum(idf * frequency * ($9 + 1) / (frequency + $9 * (1 - $10 + $10 * length / $11))) / $12 as x
          from unnest($7::text[], $8::float8[]) as query (term, idf)
               cross join lateral (
                   select memory_id, frequency, length from memory_postings
                   where user_id = $1 and term = query.term order by memory_id desc limit {budget}
               ) as postings
          group by memory_id) as scored_terms
)
