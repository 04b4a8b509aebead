insert into user_usage as usage (user_id, embedded_on, embedded_bytes)
select $1, (clock_timestamp() at time zone 'UTC')::date, $2 where $2 <= $3
on conflict (user_id) do update
set embedded_on = greatest(usage.embedded_on, excluded.embedded_on),
    embedded_bytes = excluded.embedded_bytes
        + case when usage.embedded_on >= excluded.embedded_on then usage.embedded_bytes else 0 end
where case when usage.embedded_on >= excluded.embedded_on then usage.embedded_bytes else 0 end <= $3 - excluded.embedded_bytes
