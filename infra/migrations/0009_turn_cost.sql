-- A kept turn is two transactions of one round trip each: `admit_turn` and `finish_turn`. What they read and write does not
-- depend on how many sessions, turns and runs the user has.
--
-- The functions and statements of the previous program keep working on this schema. Two of its indexes are replaced: what read
-- `runs_session` reads `runs_of_session`, and its deletion of old runs, which read `runs_end`, reads `runs_ended`.
--
-- Turns run meanwhile, so the locks come first and in their lock order: nobody waits for a lock of this transaction while it
-- waits for one of theirs. A turn that holds `runs` also locks `user_usage`, before. Then turns wait while the indexes are built:
-- `runs` has the rows of a week.
lock table sessions in share update exclusive mode;
lock table user_usage in exclusive mode;
lock table learning_jobs in share row exclusive mode;
lock table runs in access exclusive mode;

-- Rows that every turn updates. Space in the page keeps an update within it, without new index entries (HOT). The thresholds
-- of autovacuum are small, because a table that is large as a whole has few rows of one user.
alter table user_usage set (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.2);
alter table runs set (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1);
alter table sessions set (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.1);
alter table learning_jobs set (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.1);

-- A plan that is made while the table is nearly empty takes any index that begins with the user, and later reads all runs of
-- the user with it. So only the primary key begins with the user and has no condition.
create index runs_of_session on runs (session_id, user_id);
-- With the request: heartbeats name it, and would otherwise read the entries of all runs of the user that have ended since the
-- last vacuum.
create index runs_live on runs (user_id, request_id) where ended_at is null;
create index runs_ended on runs (user_id, ended_at) where ended_at is not null;
drop index runs_session, runs_end;

-- The next job of a user, and the next user with a job, in one step of an index each.
create index learning_jobs_next on learning_jobs (user_id, due_at, session_id, turn) where failed_at is null;
create index learning_jobs_locked on learning_jobs (user_id) where locked_until is not null;
create index learning_jobs_failed on learning_jobs (user_id, failed_at) where failed_at is not null;
-- `learning_jobs_due` stays: it says in one step whether any job is due.

-- The last turns of a session after number `in_after` within a budget of tokens, at least one, latest first. Where their records
-- have more than `in_max_bytes` together, a last row without a record takes the place of the rest.
--
-- Plans of these functions are generic and use indexes whatever the statistics say: those of a table that was empty a moment
-- ago would have it read as a whole. Bitmap scans do not mark the index entries of dead rows, which would pile up.
create function last_turns(in_user text, in_session text, in_after bigint, in_budget bigint, in_max_bytes bigint)
returns table (
    seq bigint, request_id text, record bytea, tokens bigint, is_complete boolean, created_at timestamptz
)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    spent  bigint := 0;
    bytes  bigint := 0;
    -- Fetches row by row: a loop over the query would read up to fifty turns ahead.
    latest cursor for
        select t.seq, t.request_id, t.record, t.tokens, t.is_complete, t.created_at from turns t
        where t.user_id = in_user and t.session_id = in_session and t.seq > in_after order by t.seq desc;
begin
    open latest;
    loop
        fetch latest into seq, request_id, record, tokens, is_complete, created_at;
        exit when not found or spent > 0 and spent + greatest(tokens, 1) > in_budget;
        spent := spent + greatest(tokens, 1);
        -- The size of a long record is known without reading it.
        bytes := bytes + octet_length(record);
        if bytes > in_max_bytes then
            record := null;
        end if;
        return next;
        exit when record is null;
    end loop;
    close latest;
end
$$;

-- Lets a run in, and reads what its turn needs. The first row is the outcome. Rows that follow are the last turns of the
-- session within `in_history` tokens, latest first; null reads none. A row without a record says that they are too long to be
-- read under the lock of the user. Runs with the rights of its caller, so that it sees
-- one user's rows. Seconds are seconds; quotas that are null do not limit.
create function admit_turn(
    in_user text, in_session text, in_request text, in_fingerprint bytea, in_head bytea, in_lease_token bytea,
    in_takes_session boolean, in_resumes boolean, in_lease float8, in_remembered float8,
    in_requests bigint, in_streams bigint, in_tokens bigint, in_history bigint
)
returns table (
    -- `started`, `known`, `unknown`, `busy`, or the quota that is exceeded: `requests`, `streams` or `tokens`.
    outcome text, fingerprint bytea, profile bytea, retry_after float8,
    -- Of a run that has started: whether the user has runs that ended more than a day before they may be forgotten. So a user who
    -- chats all day has them deleted once a day.
    has_old_runs boolean,
    -- Null: the session has no turn, or its history was not asked for.
    summary_through bigint, summary text,
    seq bigint, request_id text, record bytea, tokens bigint, is_complete boolean, created_at timestamptz
)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    usage          user_usage;
    found_rows     record;
    live           record;
    moment         timestamptz;
    this_minute    timestamptz;
    oldest_to_keep timestamptz;
begin
    -- A crash of Postgres may forget it: then the run has no lease, and nothing of it is acknowledged.
    perform set_config('synchronous_commit', 'off', true);
    -- A run that is resumed changes nothing, and so waits for nobody.
    if not in_resumes then
        -- Locks the user. Counts the request at once, which is taken back if it is refused: mostly it is not.
        this_minute := date_trunc('minute', clock_timestamp(), 'UTC');
        update user_usage u
        set minute = greatest(u.minute, this_minute),
            requests = case when u.minute >= this_minute then u.requests else 0 end + 1
        where u.user_id = in_user
        returning u.* into usage;
        if not found then
            insert into user_usage as u (user_id, minute, requests) values (in_user, this_minute, 1)
            on conflict (user_id) do update
            set minute = greatest(u.minute, excluded.minute),
                requests = case when u.minute >= excluded.minute then u.requests else 0 end + 1
            returning u.* into usage;
        end if;
    end if;
    -- Not when the transaction began: it may have waited.
    moment := clock_timestamp();

    select k.fingerprint, k.ended_at, k.lease_until, k.is_repeatable, k.request_id is not null as is_known,
           h.lease_until as held_until, p.profile, s.summary, s.summary_through
    into found_rows
    from (select) asked
    left join runs k on k.user_id = in_user and k.request_id = in_request
    left join runs h on h.user_id = in_user and h.session_id = in_session and h.holds_session and in_takes_session
    left join user_profiles p on p.user_id = in_user
    left join sessions s on s.user_id = in_user and s.session_id = in_session and in_history is not null;

    if found_rows.is_known
       and coalesce(found_rows.ended_at, found_rows.lease_until) > moment - make_interval(secs => in_remembered)
       and (in_resumes or case when found_rows.ended_at is null then found_rows.lease_until > moment
                               else not found_rows.is_repeatable end) then
        outcome := 'known';
        fingerprint := found_rows.fingerprint;
    elsif in_resumes then
        outcome := 'unknown';
    elsif found_rows.held_until > moment then
        outcome := 'busy';
        retry_after := extract(epoch from found_rows.held_until - moment);
    elsif usage.requests > in_requests then
        outcome := 'requests';
        retry_after := extract(epoch from usage.minute + interval '1 minute' - moment);
    end if;
    if outcome is null and in_streams is not null then
        select count(*) as streams, min(r.lease_until) as next_end into strict live from runs r
        where r.user_id = in_user and r.ended_at is null and r.lease_until > moment;
        if live.streams >= in_streams then
            outcome := 'streams';
            retry_after := coalesce(extract(epoch from live.next_end - moment), in_lease);
        end if;
    end if;
    if outcome is null
       and (case when usage.day >= (moment at time zone 'UTC')::date then usage.tokens else 0 end) >= in_tokens then
        outcome := 'tokens';
        retry_after := extract(epoch from date_trunc('day', moment, 'UTC') + interval '1 day' - moment);
    end if;
    if outcome is not null then
        if not in_resumes then
            update user_usage u set requests = u.requests - 1 where u.user_id = in_user;
        end if;
        return next;
        return;
    end if;

    -- What is left of an earlier try, and of a run that had the session and died.
    if found_rows.is_known then
        delete from runs r where r.user_id = in_user and r.request_id = in_request;
    end if;
    if found_rows.held_until is not null then
        update runs r set holder = null, holds_session = false
        where r.user_id = in_user and r.session_id = in_session and r.holds_session;
    end if;
    insert into runs (user_id, request_id, session_id, fingerprint, head, holder, lease_until, holds_session, started_at)
    values (in_user, in_request, in_session, in_fingerprint, in_head, in_lease_token,
            moment + make_interval(secs => in_lease), in_takes_session, moment);
    outcome := 'started';
    oldest_to_keep := moment - make_interval(secs => in_remembered) - interval '1 day';
    has_old_runs := exists (select from runs r where r.user_id = in_user and r.ended_at < oldest_to_keep);
    profile := found_rows.profile;
    summary := found_rows.summary;
    summary_through := found_rows.summary_through;
    return next;

    if found_rows.summary_through is not null then
        return query select null::text, null::bytea, null::bytea, null::float8, null::boolean, null::bigint, null::text,
                            last.*
                     from last_turns(in_user, in_session, found_rows.summary_through, in_history, 262144) last;
    end if;
end
$$;

-- Ends a run. Everything of it is durable when its transaction has committed.
create function finish_turn(
    in_user text, in_session text, in_request text, in_lease_token bytea, in_is_repeatable boolean, in_used_tokens bigint,
    -- Frames that no checkpoint holds; null = none.
    in_first bigint, in_count bigint, in_frames bytea,
    -- The user's profile; null = unchanged.
    in_profile bytea,
    -- The turn; null = none is stored.
    in_record bytea, in_title text, in_tokens bigint, in_is_complete boolean, in_is_learned boolean,
    -- The pending turn that the run resumed; null = none. With the last call it is open again.
    in_pending_turn text, in_reopened_call text,
    -- `ended`, `repeated` (an earlier call has ended it), or `lost`: then the tokens count, and nothing else.
    out outcome text
)
language plpgsql
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set plan_cache_mode = force_generic_plan
as $$
declare
    today   date;
    session record;
begin
    today := (clock_timestamp() at time zone 'UTC')::date;
    -- Locks the user.
    update user_usage u set day = greatest(u.day, today),
        tokens = case when u.day >= today then u.tokens else 0 end + in_used_tokens
    where u.user_id = in_user;
    if not found then
        insert into user_usage as u (user_id, day, tokens) values (in_user, today, in_used_tokens)
        on conflict (user_id) do update set day = greatest(u.day, today),
            tokens = case when u.day >= today then u.tokens else 0 end + in_used_tokens;
    end if;

    update runs r set ended_at = clock_timestamp(), is_repeatable = in_is_repeatable, holds_session = false
    where r.user_id = in_user and r.request_id = in_request and r.holder = in_lease_token and r.ended_at is null;
    if not found then
        if exists (select from runs r where r.user_id = in_user and r.request_id = in_request
                                            and r.holder = in_lease_token) then
            update user_usage u set tokens = u.tokens - in_used_tokens where u.user_id = in_user;
            outcome := 'repeated';
        else
            outcome := 'lost';
        end if;
        return;
    end if;
    outcome := 'ended';
    if in_count > 0 then
        insert into run_chunks (user_id, request_id, first_frame, frame_count, frames)
        values (in_user, in_request, in_first, in_count, in_frames)
        on conflict (user_id, request_id, first_frame)
            do update set frame_count = excluded.frame_count, frames = excluded.frames;
    end if;
    if in_profile is not null then
        insert into user_profiles (user_id, profile) values (in_user, in_profile)
        on conflict (user_id) do update set profile = excluded.profile;
    end if;
    if in_record is not null then
        insert into sessions as s (user_id, session_id, title, turns, created_at, updated_at)
        select in_user, in_session, in_title, 1, moment, moment from clock_timestamp() as moment
        on conflict (user_id, session_id) do update set turns = s.turns + 1, updated_at = excluded.updated_at
        returning s.turns, s.updated_at into session;
        insert into turns (user_id, session_id, seq, request_id, record, tokens, is_complete, created_at)
        values (in_user, in_session, session.turns, in_request, in_record, in_tokens, in_is_complete, session.updated_at);
        if in_is_learned then
            insert into learning_jobs (user_id, session_id, turn) values (in_user, in_session, session.turns)
            on conflict do nothing;
        end if;
    end if;
    if in_pending_turn is not null and in_reopened_call is null then
        delete from pending_turns p
        where p.user_id = in_user and p.session_id = in_session and p.turn_id = in_pending_turn;
    elsif in_pending_turn is not null then
        update pending_turns p set resumed_at = null, resumed_by = null
        where p.user_id = in_user and p.session_id = in_session and p.turn_id = in_pending_turn;
        if found then
            update pending_calls c set result = null
            where c.user_id = in_user and c.session_id = in_session and c.call_id = in_reopened_call;
        end if;
    end if;
end
$$;

do $$
begin
    -- To act as a role comes first: the login itself may call neither.
    revoke execute on function
        last_turns(text, text, bigint, bigint, bigint),
        admit_turn(text, text, text, bytea, bytea, bytea, boolean, boolean, float8, float8, bigint, bigint, bigint, bigint),
        finish_turn(text, text, text, bytea, boolean, bigint, bigint, bigint, bytea, bytea, bytea, text, bigint, boolean,
                    boolean, text, text) from public;
    grant execute on function
        last_turns(text, text, bigint, bigint, bigint),
        admit_turn(text, text, text, bytea, bytea, bytea, boolean, boolean, float8, float8, bigint, bigint, bigint, bigint),
        finish_turn(text, text, text, bytea, boolean, bigint, bigint, bigint, bytea, bytea, bytea, text, bigint, boolean,
                    boolean, text, text) to agent_service;
end
$$;
