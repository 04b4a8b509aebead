-- Terms $7 with what BM25 needs of each. Its idf is Lucene's, ln(1 + (N - n + 0.5) / (n + 0.5)), which is positive for every n
-- up to N. A weight is idf * (k1 + 1), divided by the score of a memory of average length that has each term once. $9 k1, $10 b.
-- The most frequent terms are dropped first, because they cost most and discriminate least, and the rarest never.
query as materialized (
    select term, idf * ($9 + 1) / sum(idf) over () as weight, $9 * (1 - $10) as base, $9 * $10 / average_length as slope
    from (select term, average_length,
                 ln(1 + (state.memories - matching + 0.5::float8) / (matching + 0.5::float8)) as idf,
                 sum(memory_terms.memories) over rarest_first as postings, row_number() over rarest_first as position
          from state cross join memory_terms
               cross join lateral least(memory_terms.memories, state.memories) as matching
          where is_small and is_indexed and user_id = $1 and term = any($7)
          window rarest_first as (order by memory_terms.memories, term)) as known
    where position = 1 or postings <= {budget}
)
