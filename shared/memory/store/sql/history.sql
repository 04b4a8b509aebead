select * from (
    select *, sum(size) over (order by version) as bytes
    from (select version, content, tags, metadata, replaced_at,
                 octet_length(content) + octet_length(metadata::text) + octet_length(tags::text) + 50 as size
          from memory_history where user_id = $1 and memory_id = $2 and version > $3
          order by version limit $4) as next
) as part
where bytes <= $5 or bytes = size
order by version
