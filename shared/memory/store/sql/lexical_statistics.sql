-- An index of a newer tokenizer is read as it is. A user without memories needs none.
select coalesce(users.memories, 0) as memories, coalesce(users.total_length, 0) as total_length,
       case when users.user_id is null then not exists (select from memories where user_id = $1)
            else users.tokenizer >= $3 and users.indexed_to is null end as is_current,
       terms.term, terms.memories as document_frequency
from (select) as always
     left join memory_users users on users.user_id = $1
     left join memory_terms terms on terms.user_id = users.user_id and terms.term = any($2)
