-- Rows that are kept for a time only are deleted in the background, also of users who never come back. The service acts as one
-- user at a time, so it needs to know of whom something may have expired: the queue says it, and triggers fill it.
--
-- The previous program keeps working on this schema. It refuses policies that it does not know on tables with a column
-- `user_id`, so the maintenance role is given no rows of `runs` or `learned_turns`, and the column here has another name.
--
-- Turns and writes run meanwhile, so the locks come first and in their lock order.
lock table memory_users in access exclusive mode;
lock table user_usage in access exclusive mode;
lock table learned_turns in share row exclusive mode;

create table retention_queue (
    owner_id text collate "C" primary key,
    -- Nothing of the user expires before, or it was looked for a day before.
    due_at   timestamptz      not null
);
create index retention_queue_due on retention_queue (due_at);

-- Users from before: everybody with runs has a row in `user_usage`, and everybody with learned turns one in `memory_users`. An
-- owner who is no superuser sees the rows only without the forced security.
alter table memory_users no force row level security;
alter table user_usage no force row level security;
insert into retention_queue (owner_id, due_at)
select user_id, now() from user_usage union select user_id, now() from memory_users;
alter table memory_users force row level security;
alter table user_usage force row level security;

alter table retention_queue enable row level security;
alter table retention_queue force row level security;
create policy own_rows on retention_queue to agent_service
    using (owner_id = (select current_setting('agent.user_id', true)))
    with check (owner_id = (select current_setting('agent.user_id', true)));
create policy every_id on retention_queue for select to agent_maintenance using (true);
grant select, insert, update, delete on retention_queue to agent_service;
grant select (owner_id, due_at) on retention_queue to agent_maintenance;

-- Locks the user's row of the queue even where it changes nothing: a sweep that removes the user from the queue waits for nobody,
-- and would not see what this transaction has inserted.
create function queue_for_retention() returns trigger
language plpgsql as $$
begin
    insert into retention_queue as queue (owner_id, due_at) values (new.user_id, now() + interval '1 day')
    on conflict (owner_id) do update set due_at = queue.due_at where queue.due_at > excluded.due_at;
    return null;
end
$$;
-- A user's first run, and the first one after the sweep has deleted the row. Other turns do not insert.
create trigger queue_for_retention after insert on user_usage
for each row execute function queue_for_retention();
create trigger queue_for_retention after insert on learned_turns
for each row execute function queue_for_retention();
