//! Turns as memories, verbatim.

use sha2::{Digest as _, Sha256};

use crate::{
    chat::{TurnFinish, TurnRecord},
    conversation::StoredTurn,
    identity::SessionId,
    llm::DEMO_MODEL,
    memory::{CHAT_SOURCE_TYPE, Metadata, NewMemory, truncate_to_terms},
};

const MAX_MEMORY_BYTES: usize = 64_000;

/// The user's message, and the answer unless it is truncated, canned (demo mode) or grounded in recalled memories or tool
/// results: such an answer repeats its sources and would be retrieved in their place.
pub(super) fn turn_memories(session: &SessionId, turn: &StoredTurn, record: &TurnRecord) -> Vec<NewMemory> {
    let is_complete = matches!(record.finish, TurnFinish::Stop | TurnFinish::Length);
    let is_original = !record.is_grounded() && record.model != DEMO_MODEL;
    let answer = record.answer().filter(|_| is_complete && is_original);
    let parts = [(1, "user", record.question()), (2, "assistant", answer)];
    let messages = parts.into_iter().filter_map(|(position, speaker, text)| Some((position, speaker, text?.trim())));
    messages
        .filter(|(.., text)| !text.is_empty())
        .map(|(position, speaker, text)| {
            let mut metadata = source_metadata("session_id", session, turn);
            metadata.insert("speaker".to_owned(), speaker.to_owned());
            NewMemory {
                // The position orders both memories, which have the same time.
                id: Some(format!("turn-{}-{position}-{speaker}", digest(&[session.as_str(), turn.request.as_str()]))),
                content: truncate_to_terms(truncate(text, MAX_MEMORY_BYTES)).to_owned(),
                source_type: CHAT_SOURCE_TYPE.to_owned(),
                tags: Vec::new(),
                created_at: Some(turn.created_at),
                metadata,
                supersedes: Vec::new(),
            }
        })
        .collect()
}

/// The turn that a memory comes from. Under the key `session_id`, the memory counts as part of that session's transcript and is
/// read together with the turns before it.
pub(super) fn source_metadata(session_key: &str, session: &SessionId, turn: &StoredTurn) -> Metadata {
    [
        (session_key, session.as_str().to_owned()),
        ("turn", turn.seq.to_string()),
        ("request_id", turn.request.as_str().to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// Length-prefixed, so that different lists of parts never hash the same input.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Cuts at the end of a sentence if there is one in the last tenth of `max_bytes`.
pub(super) fn truncate(text: &str, max_bytes: usize) -> &str {
    if text.len() <= max_bytes {
        return text;
    }
    let head = &text[..text.floor_char_boundary(max_bytes)];
    let ends_sentence = |c: char| matches!(c, '。' | '！' | '？' | '.' | '!' | '?' | '\n');
    match head.rfind(ends_sentence) {
        Some(end) if end >= max_bytes / 10 * 9 => &head[..end + head[end..].chars().next().map_or(0, char::len_utf8)],
        _ => head,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{chat::RecordedCitation, identity::RequestId, llm::Message};

    fn turn() -> StoredTurn {
        StoredTurn {
            seq: 3,
            request: RequestId::parse("request_id", "r").unwrap(),
            record: Vec::new(),
            tokens: 1,
            is_complete: true,
            created_at: "2026-11-23T10:00:00Z".parse().unwrap(),
        }
    }

    fn record(answer: &str) -> TurnRecord {
        let assistant = Message::Assistant { content: answer.into(), reasoning: None, calls: Vec::new() };
        TurnRecord::new(vec![Message::User("what is a limit?".into()), assistant], "m".into(), TurnFinish::Stop)
    }

    fn speakers(record: &TurnRecord) -> Vec<String> {
        let session = SessionId::parse("session_id", "s").unwrap();
        let memories = turn_memories(&session, &turn(), record);
        memories.iter().map(|memory| memory.metadata["speaker"].clone()).collect()
    }

    #[test]
    fn turn_memories_skip_grounded_and_filtered_answers() {
        assert_eq!(speakers(&record("a value that is neared")), ["user", "assistant"]);
        assert_eq!(speakers(&record(" ")), ["user"]);
        let mut grounded = record("as your notes say");
        grounded.citations.push(RecordedCitation::default());
        assert_eq!(speakers(&grounded), ["user"]);
        let mut called = record("as the tool says");
        called.messages.insert(1, Message::Tool { call_id: "c".into(), content: "{}".into() });
        assert_eq!(speakers(&called), ["user"]);
        let mut filtered = record("cut");
        filtered.finish = TurnFinish::ContentFilter;
        assert_eq!(speakers(&filtered), ["user"]);
    }

    #[test]
    fn memory_ids_are_stable_and_sort_in_order() {
        let session = SessionId::parse("session_id", "s").unwrap();
        let ids = |session: &SessionId| {
            let memories = turn_memories(session, &turn(), &record("a"));
            memories.into_iter().map(|memory| memory.id.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&session), ids(&session));
        assert!(ids(&session).is_sorted());
        assert_ne!(ids(&session), ids(&SessionId::parse("session_id", "t").unwrap()));
    }

    #[test]
    fn truncate_cuts_at_sentence_or_char_boundary() {
        let sentences = "好的。".repeat(30_000);
        let cut = truncate(&sentences, MAX_MEMORY_BYTES);
        assert!(cut.len() <= MAX_MEMORY_BYTES && cut.ends_with('。'));
        let one = "好".repeat(30_000);
        assert_eq!(truncate(&one, MAX_MEMORY_BYTES).chars().count(), MAX_MEMORY_BYTES / 3);
        assert_eq!(truncate("short", 64), "short");
    }
}
