-- Writers of memories run meanwhile. The locks come in their order: first the user's row, then the rest.
lock table memory_users in access exclusive mode;
lock table memory_vectors in share row exclusive mode;

-- A copy of each vector in half precision. An exact kNN reads all vectors of a user, and half as many bytes take less time; the
-- best are scored again by the full vectors. The service writes `memory_vectors` alone: the trigger copies what is inserted, also
-- by a release that does not know the copy, and the foreign key deletes it. (A trigger on deletes would run as the owner of the
-- table where the delete cascades from a memory, and row-level security would hide the rows from it.)
create table memory_half_vectors (
    user_id   text collate "C" not null,
    model     text collate "C" not null,
    memory_id text collate "C" not null,
    embedding halfvec          not null,
    primary key (user_id, model, memory_id),
    foreign key (user_id, model, memory_id) references memory_vectors (user_id, model, memory_id)
        on update cascade on delete cascade
);
select agent_isolate_by_user('memory_half_vectors');

create function copy_new_vectors() returns trigger
language plpgsql as $$
begin
    insert into memory_half_vectors (user_id, model, memory_id, embedding)
    select user_id, model, memory_id, embedding::halfvec from added
    on conflict (user_id, model, memory_id) do nothing;
    return null;
end
$$;
create trigger copy_new_vectors after insert on memory_vectors referencing new table as added
for each statement execute function copy_new_vectors();

create function copy_changed_vectors() returns trigger
language plpgsql as $$
begin
    update memory_half_vectors copy set embedding = changed.embedding::halfvec
    from changed
    where copy.user_id = changed.user_id and copy.model = changed.model and copy.memory_id = changed.memory_id;
    return null;
end
$$;
create trigger copy_changed_vectors after update on memory_vectors referencing new table as changed
for each statement execute function copy_changed_vectors();

-- Whether every vector of the user has its copy. Vectors from before are copied in the background, and by the writes of their
-- user; until then searches read `memory_vectors`. The previous release leaves false for a new user, and its copies count once
-- this is set.
alter table memory_users add column has_half_vectors boolean not null default false;
grant select (has_half_vectors) on memory_users to agent_maintenance;
-- Few users are left to copy for after a while.
create index memory_users_without_half_vectors on memory_users (user_id) where not has_half_vectors;
