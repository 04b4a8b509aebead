-- Starts over: memories from before there was an index, or an index of an older tokenizer. Its postings are replaced batch
-- by batch, and the statistics always match the postings that exist.
update memory_users
set tokenizer = $2, indexed_to = case when exists (select from memories where user_id = $1) then '' end
where user_id = $1
returning indexed_to
