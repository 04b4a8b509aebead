//! Domain values as messages of the contract.

use std::collections::BTreeMap;

use jiff::Timestamp;
use prost_types::{ListValue, Struct, Value as ProtoValue, value::Kind};
use serde_json::{Map, Value};

use crate::{
    chat::{RecordedCitation, RecordedUsage},
    link::is_link,
    memory::{LINK_KEY, Memory, MemoryVersion, Metadata},
    proto::agent_v1::{self as pb, chat_response::Content},
};

/// Saturates.
pub(super) fn int(count: impl TryInto<i32>) -> i32 {
    count.try_into().unwrap_or(i32::MAX)
}

/// A protobuf timestamp's fraction is never negative; jiff's is negative before 1970.
pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.subsec_nanosecond();
    let seconds = time.as_second() - i64::from(nanos < 0);
    prost_types::Timestamp { seconds, nanos: nanos.rem_euclid(1_000_000_000) }
}

pub(super) fn memory_record(memory: Memory, history: Vec<MemoryVersion>) -> pb::MemoryRecord {
    let version = |version: MemoryVersion| pb::MemoryVersion {
        content: version.content,
        tags: version.tags,
        metadata: metadata(version.metadata),
        replaced_at: Some(timestamp(version.replaced_at)),
    };
    let mut record = pb::MemoryRecord {
        id: memory.id,
        content: memory.content,
        source_type: memory.source_type,
        tags: memory.tags,
        created_at: Some(timestamp(memory.created_at)),
        updated_at: Some(timestamp(memory.updated_at)),
        metadata: metadata(memory.metadata),
        superseded_by: memory.superseded_by.unwrap_or_default(),
        history: history.into_iter().map(version).collect(),
        ..Default::default()
    };
    if let Some(location) = memory.location {
        record.document_id = location.document_id;
        record.title = location.title;
        record.url = link(location.url);
        record.section_title = location.section;
        record.chunk_index = int(location.chunk_index);
    }
    record
}

pub(super) fn memory_item(memory: Memory, score: f32) -> pb::MemoryItem {
    let mut metadata = metadata(memory.metadata);
    let mut insert = |name: &str, value: String| metadata.insert(name.to_owned(), value);
    insert("source_type", memory.source_type);
    insert("tags", memory.tags.join(","));
    if let Some(location) = memory.location {
        insert("document_id", location.document_id);
        insert("title", location.title);
        insert("section_title", location.section);
        insert("chunk_index", location.chunk_index.to_string());
        let url = link(location.url);
        if !url.is_empty() {
            insert(LINK_KEY, url);
        }
    }
    let created_at = Some(timestamp(memory.created_at));
    pb::MemoryItem { id: memory.id, content: memory.content, score, created_at, metadata }
}

pub(super) fn citation(citation: RecordedCitation) -> pb::Citation {
    pb::Citation {
        id: citation.id,
        title: citation.title,
        content: citation.excerpt,
        source_type: citation.source_type,
        url: link(citation.url),
        score: citation.score,
        file_id: citation.document_id,
        page_number: int(citation.page),
        chunk_index: int(citation.chunk),
        section_title: citation.section,
    }
}

/// Versions before the check of [`is_link`] stored any URL. A client must not be given one that it would open.
fn link(url: String) -> String {
    if is_link(&url) { url } else { String::new() }
}

fn metadata(mut metadata: Metadata) -> BTreeMap<String, String> {
    metadata.retain(|key, value| key != LINK_KEY || is_link(value));
    metadata
}

/// Removes URLs that are no links from a frame that an earlier version stored, and returns whether there were any.
pub(super) fn remove_unsafe_links(frame: &mut pb::ChatResponse) -> bool {
    let Some(Content::Citations(block)) = &mut frame.content else { return false };
    let mut is_changed = false;
    for citation in block.citations.iter_mut().filter(|citation| !is_link(&citation.url)) {
        citation.url.clear();
        is_changed = true;
    }
    is_changed
}

pub(super) fn usage(usage: RecordedUsage) -> pb::Usage {
    pb::Usage {
        prompt_tokens: int(usage.prompt),
        completion_tokens: int(usage.completion),
        total_tokens: int(usage.prompt.saturating_add(usage.completion)),
        cost_micro_usd: usage.cost_micro_usd.unwrap_or_default(),
    }
}

pub(super) fn proto_struct(fields: Map<String, Value>) -> Struct {
    Struct { fields: fields.into_iter().map(|(name, value)| (name, proto_value(value))).collect() }
}

fn proto_value(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(values) => Kind::ListValue(ListValue { values: values.into_iter().map(proto_value).collect() }),
        Value::Object(fields) => Kind::StructValue(proto_struct(fields)),
    };
    ProtoValue { kind: Some(kind) }
}
