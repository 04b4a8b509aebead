delete from documents where user_id = $1 and id = any($2)
and not exists (select from memories where memories.user_id = $1 and memories.document_id <> ''
                and memories.document_id = documents.id)
