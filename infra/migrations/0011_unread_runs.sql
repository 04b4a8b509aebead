-- A run that nobody reads gives way to the next request of its session.
--
-- The previous program keeps working on this schema: it does not name the columns, and its runs count as read.
alter table runs
    -- Since then no call reads it. Null = one does, or its program does not say.
    add column unread_since timestamptz,
    -- A request of its session waits for its end.
    add column is_preempted boolean not null default false;
