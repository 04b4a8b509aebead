//! A turn as memories, word for word.

use sha2::{Digest as _, Sha256};

use crate::{
    chat::{TurnFinish, TurnRecord},
    conversation::StoredTurn,
    identity::SessionId,
    llm::DEMO_MODEL,
    memory::{CHAT_SOURCE_TYPE, Metadata, NewMemory},
};

/// Most bytes of a memory.
const MAX_BYTES: usize = 64_000;

/// What was said in a turn: by the user, and by the assistant where that is its own. An answer that is grounded in what was
/// recalled, or in what tools gave, says again what is known; kept, it would come up in place of what it is from. And a canned
/// answer teaches nothing.
pub(super) fn memories(session: &SessionId, turn: &StoredTurn, record: &TurnRecord) -> Vec<NewMemory> {
    let is_whole = matches!(record.finish, TurnFinish::Stop | TurnFinish::Length);
    let is_own = !record.is_grounded() && record.model != DEMO_MODEL;
    let answer = record.answer().filter(|_| is_whole && is_own);
    let parts = [(1, "user", record.question()), (2, "assistant", answer)];
    let said = parts.into_iter().filter_map(|(place, speaker, text)| Some((place, speaker, text?.trim())));
    said.filter(|(.., text)| !text.is_empty())
        .map(|(place, speaker, text)| {
            let mut metadata = reference("session_id", session, turn);
            metadata.insert("speaker".to_owned(), speaker.to_owned());
            NewMemory {
                // In the order of what was said, because both have the same time.
                id: Some(format!("turn-{}-{place}-{speaker}", digest(&[session.as_str(), turn.request.as_str()]))),
                content: head(text, MAX_BYTES).to_owned(),
                source_type: CHAT_SOURCE_TYPE.to_owned(),
                tags: Vec::new(),
                created_at: Some(turn.created_at),
                metadata,
                supersedes: Vec::new(),
            }
        })
        .collect()
}

/// From which turn something is. The name of the conversation has the key `session`, by which the memory may take it for a
/// part of that conversation.
pub(super) fn reference(session_key: &str, session: &SessionId, turn: &StoredTurn) -> Metadata {
    [
        (session_key, session.as_str().to_owned()),
        ("turn", turn.seq.to_string()),
        ("request_id", turn.request.as_str().to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

/// A digest of some texts, which are not confused with others that are the same when joined.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The beginning of a text within so many bytes, up to the end of a sentence if there is one in its last tenth.
pub(super) fn head(text: &str, max_bytes: usize) -> &str {
    if text.len() <= max_bytes {
        return text;
    }
    let head = &text[..text.floor_char_boundary(max_bytes)];
    let ends = |c: char| matches!(c, '。' | '！' | '？' | '.' | '!' | '?' | '\n');
    match head.rfind(ends) {
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
        let memories = memories(&session, &turn(), record);
        memories.iter().map(|memory| memory.metadata["speaker"].clone()).collect()
    }

    #[test]
    fn both_are_kept_but_no_answer_that_repeats_what_is_known_or_was_cut_off() {
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
    fn the_ids_are_those_of_the_turn_and_sort_as_it_was_said() {
        let session = SessionId::parse("session_id", "s").unwrap();
        let ids = |session: &SessionId| {
            let memories = memories(session, &turn(), &record("a"));
            memories.into_iter().map(|memory| memory.id.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&session), ids(&session));
        assert!(ids(&session).is_sorted());
        assert_ne!(ids(&session), ids(&SessionId::parse("session_id", "t").unwrap()));
    }

    #[test]
    fn a_long_text_is_cut_at_a_sentence_or_else_between_characters() {
        let sentences = "好的。".repeat(30_000);
        let cut = head(&sentences, MAX_BYTES);
        assert!(cut.len() <= MAX_BYTES && cut.ends_with('。'));
        let one = "好".repeat(30_000);
        assert_eq!(head(&one, MAX_BYTES).chars().count(), MAX_BYTES / 3);
        assert_eq!(head("short", 64), "short");
    }
}
