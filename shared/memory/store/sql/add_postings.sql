with added as (
    insert into memory_postings (user_id, term, memory_id, frequency, length)
    select $1, new.* from unnest($2::text[], $3::text[], $4::real[], $5::real[]) as new
    returning term, memory_id, length
), lengths as (
    select distinct memory_id, length from added
), totals as (
    update memory_users
    set memories = memories + (select count(*) from lengths),
        total_length = total_length + (select coalesce(sum(length::float8), 0) from lengths)
    where user_id = $1
)
insert into memory_terms (user_id, term, memories)
select $1, term, count(*) from added group by term
on conflict (user_id, term) do update set memories = memory_terms.memories + excluded.memories
