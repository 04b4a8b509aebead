//! Requests to read and write memories → commands of the memory.

use super::{
    MAX_ENTRIES, MAX_MEMORIES, MAX_MEMORY_BYTES, Parsed, at_most, count, filter, invalid, map, name, names, number,
    text, timestamp,
};
use crate::{
    error::{InvalidArgument, Problem, check_text},
    identity::MAX_ID_BYTES,
    memory::{DEFAULT_ALPHA, Filter, MAX_QUERY_BYTES, NewMemory, PageToken, Query, Selection},
    proto::agent_v1 as pb,
};

/// What kind of source a memory has where the client names none.
const DEFAULT_SOURCE_TYPE: &str = "note";

pub(in crate::service) fn query(query: pb::MemoryQuery) -> Parsed<Query> {
    Ok(Query {
        text: text("query_text", query.query_text, MAX_QUERY_BYTES)?,
        limit: count("limit", query.limit, 10, 100)?,
        min_score: number("min_score", query.min_score, 0.0..=1.0, "0 to 1")?,
        filter: filter("filter", query.filter)?,
        alpha: number("hybrid_alpha", query.hybrid_alpha.unwrap_or(DEFAULT_ALPHA), 0.0..=1.0, "0 to 1")?,
    })
}

pub(in crate::service) fn new_memories(memories: Vec<pb::MemoryInput>) -> Parsed<Vec<NewMemory>> {
    at_most("memories", &memories, MAX_MEMORIES)?;
    memories.into_iter().enumerate().map(|(index, memory)| new_memory(index, memory)).collect()
}

fn new_memory(index: usize, memory: pb::MemoryInput) -> Parsed<NewMemory> {
    let field = |name: &str| format!("memories[{index}].{name}");
    let id = (!memory.id.is_empty()).then_some(memory.id);
    if let Some(id) = &id {
        name(&field("id"), id)?;
    }
    check_text(&field("source_type"), &memory.source_type, MAX_ID_BYTES)?;
    let source_type = match memory.source_type.trim() {
        "" => DEFAULT_SOURCE_TYPE.to_owned(),
        _ => memory.source_type,
    };
    Ok(NewMemory {
        id,
        content: text(&field("content"), memory.content, MAX_MEMORY_BYTES)?,
        source_type,
        tags: names(&field("tags"), memory.tags, MAX_ENTRIES)?,
        created_at: memory.created_at.map(|time| timestamp(&field("created_at"), &time)).transpose()?,
        metadata: map(&field("metadata"), memory.metadata)?,
    })
}

/// What to list: filter, size of a page and where it begins.
pub(in crate::service) fn listing(request: pb::ListMemoriesRequest) -> Parsed<(Filter, usize, Option<PageToken>)> {
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(token.parse().map_err(|()| {
            InvalidArgument::new("page_token", Problem::Malformed { expected: "the next_page_token of a page before" })
        })?),
    };
    Ok((filter("filter", request.filter)?, count("page_size", request.page_size, 50, 1_000)?, after))
}

pub(in crate::service) fn selection(request: pb::DeleteMemoriesRequest) -> Parsed<Selection> {
    const FIELDS: &str = "ids, document_id, filter, everything";
    let given =
        [!request.ids.is_empty(), !request.document_id.is_empty(), request.filter.is_some(), request.everything];
    if given.iter().filter(|given| **given).count() != 1 {
        return invalid("everything", Problem::ExactlyOneOf { fields: FIELDS });
    }
    if request.everything {
        return Ok(Selection::Everything);
    }
    if !request.ids.is_empty() {
        return Ok(Selection::Ids(names("ids", request.ids, MAX_MEMORIES)?));
    }
    if !request.document_id.is_empty() {
        name("document_id", &request.document_id)?;
        return Ok(Selection::Document(request.document_id));
    }
    let filter = filter("filter", request.filter)?;
    // An empty filter matches everything, which only `everything` may ask for.
    if filter.is_empty() { invalid("filter", Problem::Blank) } else { Ok(Selection::Matching(filter)) }
}
