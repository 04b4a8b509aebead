-- Returns the ids that are new or changed. Of memories, only another content is a change; of chunks also another position,
-- tags or metadata. A memory whose content changes is not superseded any more.
insert into memories (user_id, id, content, content_digest, source_type, tags, metadata, created_at, document_id,
                      section_title, chunk_index)
select $1, id, content, sha256(convert_to(content, 'UTF8')), source_type,
       array(select jsonb_array_elements_text(tags)), metadata, coalesce(created_at, now()), $8, section, chunk
from unnest($2::text[], $3::text[], $4::text[], $5::jsonb[], $6::jsonb[], $7::timestamptz[], $9::text[], $10::int[])
     as new (id, content, source_type, tags, metadata, created_at, section, chunk)
on conflict (user_id, id) do update
set content = excluded.content, content_digest = excluded.content_digest, source_type = excluded.source_type,
    tags = excluded.tags, metadata = excluded.metadata, created_at = excluded.created_at, updated_at = now(),
    document_id = excluded.document_id, section_title = excluded.section_title,
    chunk_index = excluded.chunk_index,
    superseded_by = case when memories.content = excluded.content and memories.document_id = excluded.document_id
                         then memories.superseded_by end
where memories.content <> excluded.content or memories.document_id <> excluded.document_id
      or excluded.document_id <> '' and (memories.section_title, memories.chunk_index, memories.tags, memories.metadata)
         is distinct from (excluded.section_title, excluded.chunk_index, excluded.tags, excluded.metadata)
returning id
