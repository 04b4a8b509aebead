-- The stored edges that can be followed from the memories $2.
with recursive chain as (
    select id, superseded_by from memories
    where user_id = $1 and id = any($2) and superseded_by is not null
    union
    select memories.id, memories.superseded_by
    from chain join memories on memories.user_id = $1 and memories.id = chain.superseded_by
    where memories.superseded_by is not null
)
select id, superseded_by from chain
