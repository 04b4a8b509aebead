select memories from memory_users
where user_id = $1 and memories >= $2
      -- Among many vectors of other users the index would visit about as many as the user has, and each visit costs more
      -- than an exact comparison.
      and exists (select from pg_index join pg_class on pg_class.oid = indexrelid
                  where indexrelid = to_regclass($3) and indisvalid
                        and 2 * $5::float8 * reltuples <= memories::float8 * memories)
      -- As many as a search ever takes: while a store moves to another model, few may exist yet.
      and (select count(*) from (select from memory_vectors
                                 where user_id = $1 and model = $4 limit 1000) as counted) = 1000
