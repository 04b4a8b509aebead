-- All parts see the tables as they were before the statement, so their order does not matter. Returns the terms that no
-- memory contains any more.
with removed as (
    delete from memory_postings where user_id = $1 and memory_id = any($2) returning term, memory_id, length
), lengths as (
    select distinct memory_id, length from removed
), totals as (
    update memory_users
    set memories = memories - (select count(*) from lengths),
        total_length = total_length - (select coalesce(sum(length::float8), 0) from lengths)
    where user_id = $1
), per_term as (
    select term, count(*) as memories from removed group by term
), document_frequencies as (
    update memory_terms set memories = memory_terms.memories - per_term.memories
    from per_term
    where memory_terms.user_id = $1 and memory_terms.term = per_term.term
    returning memory_terms.term, memory_terms.memories
)
select term from document_frequencies where memories <= 0
