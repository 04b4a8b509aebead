-- Bytes of the stored turns that are indexed again when turns $2 (sessions), $3 (times), $4 (ids) are written and memories $5 are
-- superseded: those that follow, now or afterwards, and are short enough to be read with the turns before them.
with positions as (
    select session_id, created_at, id
    from unnest($2::text[], $3::timestamptz[], $4::text[]) as given (session_id, created_at, id)
    where session_id <> ''
    union
    select session_id, created_at, id from memories
    where user_id = $1 and id = any($4::text[] || $5::text[]) and session_id <> ''
), following as (
    select distinct later.id, later.bytes
    from positions cross join lateral (
        select id, octet_length(content) as bytes from memories follower
        where follower.user_id = $1 and follower.session_id <> '' and follower.session_id = positions.session_id
              and follower.superseded_by is null
              and (follower.created_at, follower.id) > (positions.created_at, positions.id)
        order by follower.created_at, follower.id limit 2
    ) as later
    where later.bytes <= $6 and later.id <> all($4)
)
select coalesce(sum(bytes), 0)::bigint as bytes from following
