-- Learning from turns that are over: what is still to be done, what was done, and who does not want it.

-- Turns that are still to be learned from. A turn puts its own row here in the transaction that keeps it.
create table learning_jobs (
    user_id      text collate "C" not null,
    session_id   text collate "C" not null,
    turn         integer          not null,
    -- How often somebody began with it. Whoever began last may say what became of it.
    attempts     integer          not null default 0,
    -- Not before this.
    due_at       timestamptz      not null default now(),
    -- Until when somebody is at it.
    locked_until timestamptz,
    -- Since when it is given up; it stays for whoever finds out why.
    failed_at    timestamptz,
    created_at   timestamptz      not null default now(),
    primary key (user_id, session_id, turn)
);
create index learning_jobs_due on learning_jobs (due_at) where failed_at is null;

-- Turns that facts were learned from: the same turn again changes nothing, also when it comes by another way.
create table learned_turns (
    user_id    text collate "C" not null,
    session_id text collate "C" not null,
    request_id text collate "C" not null,
    learned_at timestamptz      not null default now(),
    primary key (user_id, session_id, request_id)
);
create index learned_turns_oldest on learned_turns (user_id, learned_at);

do $$
declare
    user_table text;
begin
    foreach user_table in array array['learning_jobs', 'learned_turns'] loop
        execute format('alter table %I enable row level security', user_table);
        execute format('alter table %I force row level security', user_table);
        execute format('create policy own_rows on %I to agent_service, agent_reader
                        using (user_id = (select current_setting(''agent.user_id'', true)))
                        with check (user_id = (select current_setting(''agent.user_id'', true)))', user_table);
        execute format('grant select on %I to agent_service, agent_reader', user_table);
        execute format('grant insert, update, delete on %I to agent_service', user_table);
    end loop;
end
$$;

-- Whoever looks for work sees whose turn it is, and then acts as that user.
create policy every_id on learning_jobs for select to agent_maintenance using (true);
grant select (user_id, due_at, locked_until, failed_at) on learning_jobs to agent_maintenance;

-- Users who had everything forgotten, by a digest of their id, and only for as long as something of theirs may still be on
-- its way: what was said before is not learned after.
create table forgotten_users (
    -- SHA-256 of the user's id.
    user_digest  bytea       not null primary key,
    forgotten_at timestamptz not null
);
alter table forgotten_users enable row level security;
alter table forgotten_users force row level security;
create policy own_digest on forgotten_users to agent_service
    using (user_digest = sha256(convert_to((select current_setting('agent.user_id', true)), 'UTF8')))
    with check (user_digest = sha256(convert_to((select current_setting('agent.user_id', true)), 'UTF8')));
-- Those of long ago may be swept by whoever comes by.
create policy long_ago on forgotten_users to agent_service
    using (forgotten_at < now() - interval '7 days') with check (false);
grant select, insert, update, delete on forgotten_users to agent_service;
