//! Requests to read and write memories.

use std::collections::{BTreeSet, HashMap};

use jiff::tz::TimeZone;

use super::{
    MAX_DOCUMENT_BYTES, MAX_DOCUMENT_TITLE_BYTES, MAX_ENTRIES, MAX_MEMORIES, MAX_MEMORY_BYTES, MAX_SUPERSEDED,
    MAX_SUPERSEDED_TOGETHER, Parsed, at_most, count, filter, invalid, link, metadata, name, names, number, page_token,
    text, timestamp,
};
use crate::{
    error::{Problem, check_text},
    identity::MAX_ID_BYTES,
    memory::{
        DEFAULT_ALPHA, Filter, MAX_QUERY_BYTES, MemoryUpdate, NewDocument, NewMemory, PageToken, RetrievalQuery,
        Selection, supersede_cycles,
    },
    proto::agent_v1 as pb,
};

const DEFAULT_SOURCE_TYPE: &str = "note";

pub(in crate::service) struct MemoryListing {
    pub(in crate::service) filter: Filter,
    pub(in crate::service) page_size: usize,
    pub(in crate::service) after: Option<PageToken>,
}

/// `time_zone` is the IANA name of the caller's zone, in which relative dates of the query are read.
pub(in crate::service) fn query(query: pb::MemoryQuery, time_zone: Option<&str>) -> Parsed<RetrievalQuery> {
    Ok(RetrievalQuery {
        text: text("query_text", query.query_text, MAX_QUERY_BYTES)?,
        limit: count("limit", query.limit, 10, 100)?,
        min_score: number("min_score", query.min_score, 1)?,
        filter: filter("filter", query.filter)?,
        alpha: number("hybrid_alpha", query.hybrid_alpha.unwrap_or(DEFAULT_ALPHA), 1)?,
        // As in a chat, an unknown zone is ignored.
        time_zone: time_zone.and_then(|zone| TimeZone::get(zone).ok()).unwrap_or(TimeZone::UTC),
        counts_matches: true,
    })
}

pub(in crate::service) fn new_memories(request: pb::AddMemoriesRequest) -> Parsed<Vec<NewMemory>> {
    at_most("memories", &request.memories, MAX_MEMORIES)?;
    let memories = request.memories.into_iter().enumerate().map(|(index, memory)| new_memory(index, memory));
    let memories = memories.collect::<Parsed<Vec<_>>>()?;
    if memories.iter().map(|memory| memory.supersedes.len()).sum::<usize>() > MAX_SUPERSEDED_TOGETHER {
        return invalid("memories.supersedes", Problem::TooMany { limit: MAX_SUPERSEDED_TOGETHER });
    }
    reject_supersede_cycles(&memories)?;
    Ok(memories)
}

/// Retrieval would find none of the memories of a cycle.
fn reject_supersede_cycles(memories: &[NewMemory]) -> Parsed<()> {
    let mut superseded_by: HashMap<&str, &str> = HashMap::new();
    for memory in memories {
        for old in &memory.supersedes {
            if let Some(id) = memory.id.as_deref().filter(|id| id != old) {
                superseded_by.insert(old, id);
            }
        }
    }
    let ids = memories.iter().filter_map(|memory| memory.id.as_deref());
    let cycles = supersede_cycles(ids, |id| superseded_by.get(id).copied());
    let Some(id) = cycles.first().and_then(|cycle| cycle.first()) else { return Ok(()) };
    let index = memories.iter().position(|memory| memory.id.as_deref() == Some(id)).unwrap_or_default();
    invalid(format!("memories[{index}].supersedes"), Problem::SupersedesInCircle)
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
        metadata: metadata(&field("metadata"), memory.metadata)?,
        supersedes: names(&field("supersedes"), memory.supersedes, MAX_SUPERSEDED)?,
    })
}

pub(in crate::service) fn new_document(request: pb::IngestDocumentRequest) -> Parsed<NewDocument> {
    name("document_id", &request.document_id)?;
    check_text("title", &request.title, MAX_DOCUMENT_TITLE_BYTES)?;
    link("url", &request.url)?;
    // Byte order marks are no content.
    if request.content.chars().all(|c| c == '\u{FEFF}' || c.is_whitespace()) {
        return invalid("content", Problem::Blank);
    }
    Ok(NewDocument {
        id: request.document_id,
        title: request.title.trim().to_owned(),
        content: text("content", request.content, MAX_DOCUMENT_BYTES)?,
        url: request.url,
        tags: names("tags", request.tags, MAX_ENTRIES)?,
        metadata: metadata("metadata", request.metadata)?,
    })
}

/// Updates the fields of the mask or, without a mask, the fields that are set.
pub(in crate::service) fn update(request: pb::UpdateMemoryRequest) -> Parsed<MemoryUpdate> {
    const PATHS: &str = "content, tags, metadata";
    name("id", &request.id)?;
    let mut update = MemoryUpdate { id: request.id, content: None, tags: None, metadata: None };
    let paths: BTreeSet<String> = match request.update_mask {
        // A set: a path may be named twice.
        Some(mask) => mask.paths.into_iter().collect(),
        None => [
            ("content", request.content.is_some()),
            ("tags", !request.tags.is_empty()),
            ("metadata", !request.metadata.is_empty()),
        ]
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(path, _)| path.to_owned())
        .collect(),
    };
    if paths.is_empty() {
        return invalid("update_mask", Problem::Missing);
    }
    if paths.iter().any(|path| !PATHS.split(", ").any(|known| known == path)) {
        return invalid("update_mask", Problem::NotOneOf { known: PATHS });
    }
    if paths.contains("content") {
        update.content = Some(text("content", request.content.unwrap_or_default(), MAX_MEMORY_BYTES)?);
    }
    if paths.contains("tags") {
        update.tags = Some(names("tags", request.tags, MAX_ENTRIES)?);
    }
    if paths.contains("metadata") {
        update.metadata = Some(metadata("metadata", request.metadata)?);
    }
    Ok(update)
}

pub(in crate::service) fn listing(request: pb::ListMemoriesRequest) -> Parsed<MemoryListing> {
    let after = page_token(&request.page_token, |token| token.parse().ok())?;
    let page_size = count("page_size", request.page_size, 50, 1_000)?;
    Ok(MemoryListing { filter: filter("filter", request.filter)?, page_size, after })
}

pub(in crate::service) enum MemoryDeletion {
    User,
    Selected(Selection),
}

pub(in crate::service) fn deletion(request: pb::DeleteMemoriesRequest) -> Parsed<MemoryDeletion> {
    const FIELDS: &str = "ids, document_id, filter, everything";
    let is_set =
        [!request.ids.is_empty(), !request.document_id.is_empty(), request.filter.is_some(), request.everything];
    if is_set.iter().filter(|is_set| **is_set).count() != 1 {
        return invalid("everything", Problem::ExactlyOneOf { fields: FIELDS });
    }
    if request.everything {
        return Ok(MemoryDeletion::User);
    }
    if !request.ids.is_empty() {
        return Ok(MemoryDeletion::Selected(Selection::Ids(names("ids", request.ids, MAX_MEMORIES)?)));
    }
    if !request.document_id.is_empty() {
        name("document_id", &request.document_id)?;
        return Ok(MemoryDeletion::Selected(Selection::Document(request.document_id)));
    }
    let filter = filter("filter", request.filter)?;
    // An empty filter matches everything, which a client must ask for with `everything`.
    if filter.is_empty() {
        return invalid("filter", Problem::Blank);
    }
    Ok(MemoryDeletion::Selected(Selection::Matching(filter)))
}
