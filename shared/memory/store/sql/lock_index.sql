insert into memory_users (user_id, tokenizer) values ($1, $2)
on conflict (user_id) do update set tokenizer = memory_users.tokenizer
returning tokenizer, indexed_to, xmax = 0 as is_new
