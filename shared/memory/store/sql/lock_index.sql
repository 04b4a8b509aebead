insert into memory_users (user_id, tokenizer, has_half_vectors)
values ($1, $2, not exists (select from memory_vectors where user_id = $1))
on conflict (user_id) do update set tokenizer = memory_users.tokenizer
returning tokenizer, indexed_to, has_half_vectors, xmax = 0 as is_new
