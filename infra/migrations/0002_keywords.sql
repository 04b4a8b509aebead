-- The keyword index: postings and the statistics of BM25, one set a user. Memories that are older than the index are put into
-- it when their user is next searched or written for.

-- One row a user: the statistics, and the lock under which one writer at a time changes the user's memories.
create table memory_users (
    user_id      text collate "C" primary key,
    memories     bigint  not null default 0,
    -- In tokens, of all memories together.
    total_length bigint  not null default 0,
    -- Which version of the tokeniser made the index.
    tokenizer    integer not null
);

-- How often a term stands in a memory. The memory's length stands here too, so that a search reads nothing else.
create table memory_postings (
    user_id   text collate "C" not null,
    term      text collate "C" not null,
    memory_id text collate "C" not null,
    frequency integer          not null,
    length    integer          not null,
    primary key (user_id, term, memory_id)
);
create index memory_postings_memory on memory_postings (user_id, memory_id);

-- In how many memories of the user a term stands.
create table memory_terms (
    user_id  text collate "C" not null,
    term     text collate "C" not null,
    memories bigint           not null,
    primary key (user_id, term)
);
