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
    -- Every term is there, so nothing is inserted. An update would be planned as a comparison of each of the user's terms with
    -- each removed one, because row-level security makes the terms seem few.
    insert into memory_terms (user_id, term, memories) select $1, term, memories from per_term
    on conflict (user_id, term) do update set memories = memory_terms.memories - excluded.memories
    returning memory_terms.term, memory_terms.memories
)
select term from document_frequencies where memories <= 0
