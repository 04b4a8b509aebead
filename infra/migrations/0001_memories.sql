-- Every key begins with the user, so that rows can be isolated and sharded by user.
create extension if not exists vector;

create table memories (
    user_id         text collate "C" not null,
    id              text collate "C" not null,
    content         text             not null,
    source_type     text             not null,
    tags            text[]           not null,
    metadata        jsonb            not null,
    -- The document that a chunk belongs to; empty for all others.
    document_id     text collate "C" not null default '',
    created_at      timestamptz      not null,
    updated_at      timestamptz      not null default now(),
    -- Vectors are compared only within one model and dimension.
    embedding_model text             not null,
    embedding_dim   integer          not null,
    embedding       vector           not null check (vector_dims(embedding) = embedding_dim),
    primary key (user_id, id)
);

create index memories_newest on memories (user_id, created_at desc, id desc);
create index memories_document on memories (user_id, document_id) where document_id <> '';
