-- The bytes of text that a user had embedded by writes, on one day of UTC.
--
-- The previous program keeps working on this schema: it does not name the columns. It counts nothing, so that users have their
-- whole budget when the next program starts.
alter table user_usage
    add column embedded_on date not null default '-infinity',
    add column embedded_bytes bigint not null default 0;
