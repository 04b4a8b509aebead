-- Okapi BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009), one part a posting.
select memory_id as id, weight * frequency / (frequency + base + slope * length) as x
from query cross join lateral (
    select memory_id, frequency, length from memory_postings
    where user_id = $1 and term = query.term order by memory_id desc limit {budget}
) as postings
