-- One row. $8 is the version of the tokenizer: an index of a newer one is read as it is, and a user without memories needs
-- none. The statement finds nothing for users with $11 memories or more, who have the HNSW index.
state as materialized (
    select coalesce(max(memories), 0) as memories,
           greatest(1, max(total_length / greatest(1, memories))) as average_length,
           coalesce(bool_and(tokenizer >= $8 and indexed_to is null),
                    -- Not `exists`, which would be planned as a scan of all users' memories.
                    (select id from memories where user_id = $1 order by id limit 1) is null) as is_indexed,
           coalesce(max(memories) < $11, true) as is_small,
           -- Few vectors are read faster than some of them are looked up afterwards.
           coalesce(bool_and(has_half_vectors), false) and max(memories) >= 1000 as reads_copies
    from memory_users where user_id = $1
)
