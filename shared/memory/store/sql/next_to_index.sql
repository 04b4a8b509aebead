-- The ids after $2, at most $3 of them, up to and including the first that reaches beyond $4 bytes.
select id
from (
    select id, size, sum(size) over (order by id) as bytes
    from (select id, octet_length(content) as size from memories
          where user_id = $1 and id > $2 order by id limit $3) as next
) as part
where bytes - size <= $4
order by id
