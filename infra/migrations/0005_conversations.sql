-- Conversations: what was said in them, the requests that are or were answered, and what users may use.
--
-- Whoever changes which run has a conversation, or how a run stands, locks the user's row of `user_usage` first; only signs of
-- life (`checkpoint_run`) and notes do without. So there is one order of locks, and one writer at a time for each user.

-- A conversation, from its first turn on.
create table sessions (
    user_id              text collate "C" not null,
    session_id           text collate "C" not null,
    title                text             not null,
    -- Neither the model nor the user has given it a title yet.
    title_is_provisional boolean          not null default true,
    turns                bigint           not null,
    -- What was said up to the turn `summary_through`, in few words.
    summary              text,
    summary_through      bigint           not null default 0,
    created_at           timestamptz      not null,
    updated_at           timestamptz      not null,
    primary key (user_id, session_id)
);
create index sessions_latest on sessions (user_id, updated_at desc, session_id desc);

create table turns (
    user_id     text collate "C" not null,
    session_id  text collate "C" not null,
    -- From 1, without a gap.
    seq         bigint           not null,
    request_id  text collate "C" not null,
    record      bytea            not null,
    tokens      bigint           not null,
    is_complete boolean          not null,
    created_at  timestamptz      not null,
    primary key (user_id, session_id, seq),
    foreign key (user_id, session_id) references sessions (user_id, session_id) on delete cascade
);

-- What a request set going. Remembered for a while after its end.
create table runs (
    user_id       text collate "C" not null,
    request_id    text collate "C" not null,
    session_id    text collate "C" not null,
    -- Digest of the request's body.
    fingerprint   bytea            not null,
    head          bytea            not null,
    -- Who may write; null = nobody, because another run took the conversation.
    holder        bytea,
    -- Until then its process is taken to be alive.
    lease_until   timestamptz      not null,
    -- Whether it has the conversation, as long as it is alive.
    holds_session boolean          not null,
    is_cancelled  boolean          not null default false,
    -- Until then somebody elsewhere waits for it.
    watched_until timestamptz,
    started_at    timestamptz      not null,
    -- Null = it runs, or its process died.
    ended_at      timestamptz,
    -- It ended before it came to anything.
    is_repeatable boolean          not null default false,
    primary key (user_id, request_id)
);
create unique index runs_holder on runs (user_id, session_id) where holds_session;
create index runs_session on runs (user_id, session_id);
create index runs_end on runs (user_id, ended_at);

create table run_chunks (
    user_id     text collate "C" not null,
    request_id  text collate "C" not null,
    -- Number of the first frame.
    first_frame bigint           not null,
    frame_count bigint           not null,
    frames      bytea            not null,
    primary key (user_id, request_id, first_frame),
    foreign key (user_id, request_id) references runs (user_id, request_id) on delete cascade
);

-- What a user has used, and the lock under which it is found out whether they may use more.
create table user_usage (
    user_id  text collate "C" primary key,
    -- Requests since then, for one minute.
    minute   timestamptz not null default '-infinity',
    requests bigint      not null default 0,
    -- Tokens on this day of UTC.
    day      date        not null default '-infinity',
    tokens   bigint      not null default 0
);

create table user_profiles (
    user_id text collate "C" primary key,
    profile bytea not null
);

-- Who went on with a turn that waited for tools: it is lost when that run is. Null = it is not known who.
alter table pending_turns add column resumed_by bytea;

do $$
declare
    user_table text;
begin
    foreach user_table in array array['sessions', 'turns', 'runs', 'run_chunks', 'user_usage', 'user_profiles'] loop
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

-- Lets a run in. A function, so that it takes one round trip; with the rights of its caller, so that it sees one user's rows.
-- Seconds are seconds; limits that are null do not limit.
create function admit_run(
    in_user text, in_session text, in_request text, in_fingerprint bytea, in_head bytea, in_holder bytea,
    in_takes_session boolean, in_resumes boolean, in_lease float8, in_remembered float8,
    in_requests bigint, in_streams bigint, in_tokens bigint,
    -- `started`, `known`, `unknown`, `busy`, or the limit that is reached: `requests`, `streams` or `tokens`.
    out outcome text, out session text, out fingerprint bytea, out profile bytea, out retry_after float8
)
language plpgsql as $$
declare
    usage       user_usage;
    moment      timestamptz;
    this_minute timestamptz;
    known       record;
    lease_ends  timestamptz;
    used        bigint;
    used_tokens bigint;
begin
    -- A crash of Postgres may forget it: then the run has no lease, and nothing of it is acknowledged.
    perform set_config('synchronous_commit', 'off', true);
    select * into usage from user_usage u where u.user_id = in_user for update;
    if not found then
        insert into user_usage as u (user_id) values (in_user)
        on conflict (user_id) do update set user_id = u.user_id
        returning * into usage;
    end if;
    -- Not when the transaction began: it may have waited.
    moment := clock_timestamp();

    select r.session_id, r.fingerprint, r.ended_at, r.lease_until, r.is_repeatable into known
    from runs r where r.user_id = in_user and r.request_id = in_request;
    if found and coalesce(known.ended_at, known.lease_until) > moment - make_interval(secs => in_remembered)
       and (in_resumes or case when known.ended_at is null then known.lease_until > moment
                               else not known.is_repeatable end) then
        outcome := 'known';
        session := known.session_id;
        fingerprint := known.fingerprint;
        return;
    end if;
    if in_resumes then
        outcome := 'unknown';
        return;
    end if;

    if in_takes_session then
        select r.lease_until into lease_ends from runs r
        where r.user_id = in_user and r.session_id = in_session and r.holds_session and r.lease_until > moment;
        if found then
            outcome := 'busy';
            retry_after := extract(epoch from lease_ends - moment);
            return;
        end if;
    end if;

    this_minute := date_trunc('minute', moment, 'UTC');
    used := case when usage.minute = this_minute then usage.requests else 0 end;
    if used >= in_requests then
        outcome := 'requests';
        retry_after := extract(epoch from this_minute + interval '1 minute' - moment);
        return;
    end if;
    if in_streams is not null then
        select count(*), min(r.lease_until) into strict known from runs r
        where r.user_id = in_user and r.ended_at is null and r.lease_until > moment;
        if known.count >= in_streams then
            outcome := 'streams';
            retry_after := coalesce(extract(epoch from known.min - moment), in_lease);
            return;
        end if;
    end if;
    used_tokens := case when usage.day = (moment at time zone 'UTC')::date then usage.tokens else 0 end;
    if used_tokens >= in_tokens then
        outcome := 'tokens';
        retry_after := extract(epoch from date_trunc('day', moment, 'UTC') + interval '1 day' - moment);
        return;
    end if;

    -- What is left of an earlier try, and of a run that had the conversation and died.
    delete from runs r where r.user_id = in_user and r.request_id = in_request;
    if in_takes_session then
        update runs r set holder = null, holds_session = false
        where r.user_id = in_user and r.session_id = in_session and r.holds_session;
    end if;
    insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session, started_at)
    values (in_user, in_request, in_session, in_fingerprint, in_head, in_holder,
            moment + make_interval(secs => in_lease), in_takes_session, moment);
    update user_usage u set minute = this_minute, requests = used + 1 where u.user_id = in_user;
    outcome := 'started';
    select p.profile into profile from user_profiles p where p.user_id = in_user;
end
$$;

-- Keeps frames of a run, if there are any, and gives a sign of life. Returns no row where somebody else has its lease.
create function checkpoint_run(
    in_user text, in_request text, in_holder bytea, in_lease float8, in_first bigint, in_count bigint, in_frames bytea
)
returns table (cancelled boolean, watched boolean)
language plpgsql as $$
begin
    -- What matters is kept at the end of the run.
    perform set_config('synchronous_commit', 'off', true);
    return query
        update runs r set lease_until = clock_timestamp() + make_interval(secs => in_lease)
        where r.user_id = in_user and r.request_id = in_request and r.holder = in_holder and r.ended_at is null
        returning r.is_cancelled, coalesce(r.watched_until > clock_timestamp(), false);
    if found and in_first is not null then
        -- The same frames may come again, where it was not heard that they are kept.
        insert into run_chunks (user_id, request_id, first_frame, frame_count, frames)
        values (in_user, in_request, in_first, in_count, in_frames)
        on conflict (user_id, request_id, first_frame)
            do update set frame_count = excluded.frame_count, frames = excluded.frames;
    end if;
end
$$;

do $$
begin
    -- To act as a role comes first: the login itself may call neither.
    revoke execute on function
        admit_run(text, text, text, bytea, bytea, bytea, boolean, boolean, float8, float8, bigint, bigint, bigint),
        checkpoint_run(text, text, bytea, float8, bigint, bigint, bytea) from public;
    grant execute on function
        admit_run(text, text, text, bytea, bytea, bytea, boolean, boolean, float8, float8, bigint, bigint, bigint),
        checkpoint_run(text, text, bytea, float8, bigint, bigint, bytea) to agent_service;
end
$$;
