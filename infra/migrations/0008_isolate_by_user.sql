-- Row-level security of a table with rows of users, for the migrations that follow:
--
--     create table notes (user_id text collate "C" not null, …);
--     select agent_isolate_by_user('notes');
--
-- The table needs a column `user_id`. A transaction of `agent_service` or `agent_reader` then sees and writes the rows of
-- the user whom `agent.user_id` names, and no row where the setting is missing. Row-level security is forced, so that it
-- holds for the owner of the table as well. `agent_maintenance` gets no right: a migration grants it the columns of ids it
-- needs, with a policy `every_id`.
--
-- The service checks at its start that the policy of every such table is this one, word for word
-- (shared/postgres/isolation.rs).
create function agent_isolate_by_user(user_table regclass) returns void
language plpgsql as $$
begin
    -- A regclass is printed quoted and, where needed, with its schema.
    execute format('alter table %s enable row level security', user_table);
    execute format('alter table %s force row level security', user_table);
    execute format('create policy own_rows on %s to agent_service, agent_reader
                    using (user_id = (select current_setting(''agent.user_id'', true)))
                    with check (user_id = (select current_setting(''agent.user_id'', true)))', user_table);
    execute format('grant select on %s to agent_service, agent_reader', user_table);
    execute format('grant insert, update, delete on %s to agent_service', user_table);
end
$$;

-- For migrations alone: no role of the service owns a table.
revoke execute on function agent_isolate_by_user(regclass) from public;
