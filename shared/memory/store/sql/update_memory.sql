update memories
set content = $3, content_digest = sha256(convert_to($3, 'UTF8')), metadata = $5, updated_at = now(),
    tags = array(select jsonb_array_elements_text($4))
where user_id = $1 and id = $2
