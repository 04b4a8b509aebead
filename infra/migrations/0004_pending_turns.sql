-- Turns that wait for results of tools that the client runs: one a session, until all results are in and it has gone on.

create table pending_turns (
    user_id    text collate "C" not null,
    session_id text collate "C" not null,
    turn_id    text             not null,
    -- The turn as far as it has come, as JSON. Not jsonb, which can not hold all that a model may say.
    state      bytea            not null,
    created_at timestamptz      not null default now(),
    -- Since when it goes on; null = results are missing.
    resumed_at timestamptz,
    primary key (user_id, session_id)
);
create index pending_turns_oldest on pending_turns (user_id, created_at);

create table pending_calls (
    user_id    text collate "C" not null,
    session_id text collate "C" not null,
    call_id    text collate "C" not null,
    -- Null = missing.
    result     bytea,
    primary key (user_id, session_id, call_id),
    foreign key (user_id, session_id) references pending_turns (user_id, session_id) on delete cascade
);

do $$
declare
    user_table text;
begin
    foreach user_table in array array['pending_turns', 'pending_calls'] loop
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
