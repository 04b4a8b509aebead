-- Does not wait for the row lock of another process, because waiting would occupy a connection.
with unlocked as (select from memory_users where user_id = $1 for update skip locked)
select tokenizer, indexed_to is null as is_complete, exists (select from unlocked) as is_unlocked
from memory_users where user_id = $1
