-- Users are isolated by the database as well as by the code: every table that holds users' data has row-level security, forced, and
-- the service works as one of the roles below, which own nothing and bypass nothing. The user is named per transaction by the
-- setting `agent.user_id`; where it is not set, no row is visible.

-- Roles belong to the cluster: another database in it, or whoever manages it, may have made them before.
do $$
declare
    wanted text;
begin
    foreach wanted in array array['agent_service', 'agent_reader', 'agent_maintenance'] loop
        if not exists (select from pg_roles where rolname = wanted) then
            begin
                execute format('create role %I nologin', wanted);
            exception when duplicate_object or unique_violation then
                null;
            end;
        end if;
    end loop;
end
$$;

-- A memory may be a chunk of a document, and may have been replaced by a newer one.
alter table memories
    add column section_title text not null default '',
    -- Place among the chunks of its document, from 0; null for all others.
    add column chunk_index   integer,
    -- The memory that replaced this one, which is then kept and never found.
    add column superseded_by text collate "C",
    -- SHA-256 of the content.
    add column content_digest bytea,
    -- The conversation that it was said in; empty for all others, and where the name is longer than an id may be.
    add column session_id text collate "C" not null generated always as (
        case when document_id = '' and octet_length(coalesce(metadata ->> 'session_id', metadata ->> 'session', '')) <= 256
             then coalesce(metadata ->> 'session_id', metadata ->> 'session', '') else '' end
    ) stored;
update memories set content_digest = sha256(convert_to(content, 'UTF8'));
alter table memories alter column content_digest set not null;

create index memories_content on memories (user_id, content_digest);
create index memories_session on memories (user_id, session_id, created_at, id) where session_id <> '';

create table documents (
    user_id    text collate "C" not null,
    id         text collate "C" not null,
    title      text             not null,
    url        text             not null,
    created_at timestamptz      not null default now(),
    updated_at timestamptz      not null default now(),
    primary key (user_id, id)
);

-- The vectors of a memory, one a model, so that a store can move from one model to another while it is searched.
create table memory_vectors (
    user_id   text collate "C" not null,
    -- Name and dimension; only vectors of one model are compared.
    model     text collate "C" not null,
    memory_id text collate "C" not null,
    -- SHA-256 of the text that the vector was made of.
    digest    bytea            not null,
    embedding vector           not null,
    primary key (user_id, model, memory_id),
    foreign key (user_id, memory_id) references memories (user_id, id) on delete cascade
);
create index memory_vectors_memory on memory_vectors (user_id, memory_id);
insert into memory_vectors (user_id, model, memory_id, digest, embedding)
select user_id, embedding_model || '/' || embedding_dim, id, content_digest, embedding from memories;
alter table memories drop column embedding, drop column embedding_dim, drop column embedding_model;

-- What a memory was before it was corrected.
create table memory_history (
    user_id     text collate "C" not null,
    memory_id   text collate "C" not null,
    -- From 1, oldest first.
    version     integer          not null,
    content     text             not null,
    tags        text[]           not null,
    metadata    jsonb            not null,
    replaced_at timestamptz      not null default now(),
    primary key (user_id, memory_id, version),
    foreign key (user_id, memory_id) references memories (user_id, id) on delete cascade
);

-- A term may count less than once: what was said before a turn belongs to it in part. Indexes are made anew.
truncate memory_users, memory_postings, memory_terms;
alter table memory_postings alter column frequency type real, alter column length type real;
-- A search reads postings from the index alone.
alter table memory_postings
    drop constraint memory_postings_pkey,
    add primary key (user_id, term, memory_id) include (frequency, length);
alter table memory_users
    alter column total_length type float8,
    -- Up to which memory the index has been made; null = all of them.
    add column indexed_to text collate "C";

do $$
declare
    user_table text;
begin
    foreach user_table in array array['memories', 'documents', 'memory_vectors', 'memory_history', 'memory_users',
                                      'memory_postings', 'memory_terms'] loop
        execute format('alter table %I enable row level security', user_table);
        execute format('alter table %I force row level security', user_table);
        execute format('create policy own_rows on %I to agent_service, agent_reader
                        using (user_id = (select current_setting(''agent.user_id'', true)))
                        with check (user_id = (select current_setting(''agent.user_id'', true)))', user_table);
        execute format('grant select on %I to agent_service, agent_reader', user_table);
        execute format('grant insert, update, delete on %I to agent_service', user_table);
    end loop;
    -- Jobs for all users see who there is and which ids they have, and then act as each user.
    foreach user_table in array array['memories', 'memory_vectors', 'memory_users'] loop
        execute format('create policy every_id on %I for select to agent_maintenance using (true)', user_table);
    end loop;
end
$$;

grant usage on schema public to agent_service, agent_reader, agent_maintenance;
grant select (user_id, id, superseded_by) on memories to agent_maintenance;
grant select (user_id, model, memory_id) on memory_vectors to agent_maintenance;
grant select (user_id, memories) on memory_users to agent_maintenance;
