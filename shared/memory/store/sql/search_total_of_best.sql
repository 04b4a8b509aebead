-- Without a floor each memory with a vector or a term is a match. Few users have fewer vectors than are counted.
(select least($16, case when counted.vectors < $16 then (
     select count(*) from (select memory_id from memory_vectors where user_id = $1 and model = $13{or_terms}) as matching
 ) else counted.vectors end)
 from (select count(*) as vectors
       from (select from memory_vectors where user_id = $1 and model = $13 limit $16) as first) as counted)
