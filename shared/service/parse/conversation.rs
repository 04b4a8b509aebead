//! Requests of `ConversationService` → commands.

use jiff::Timestamp;

use super::{Parsed, at_most, count, invalid, text};
use crate::{
    conversation::{MAX_TITLE_BYTES, SessionCursor, SessionSelection},
    error::{InvalidArgument, Problem},
    identity::{RequestId, SessionId},
    proto::agent_v1 as pb,
};

/// Most conversations that one call deletes.
const MAX_SESSIONS: usize = 100;

pub(in crate::service) fn session(id: &str) -> Parsed<SessionId> {
    SessionId::parse("session_id", id)
}

/// How many conversations, and after which.
pub(in crate::service) fn listing(request: &pb::ListSessionsRequest) -> Parsed<(usize, Option<SessionCursor>)> {
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(cursor(token).ok_or_else(bad_token)?),
    };
    Ok((count("page_size", request.page_size, 50, 200)?, after))
}

/// Which conversation, how many of its turns, and before which.
pub(in crate::service) fn reading(request: &pb::GetSessionRequest) -> Parsed<(SessionId, usize, Option<u32>)> {
    let before = match request.page_token.as_str() {
        "" => None,
        token => Some(token.parse().map_err(|_| bad_token())?),
    };
    Ok((session(&request.session_id)?, count("page_size", request.page_size, 20, 100)?, before))
}

/// Which conversation, and its new title on one line.
pub(in crate::service) fn renaming(request: pb::RenameSessionRequest) -> Parsed<(SessionId, String)> {
    let title = text("title", request.title, MAX_TITLE_BYTES)?;
    if title.chars().any(char::is_control) {
        return invalid("title", Problem::Malformed { expected: "one line without control characters" });
    }
    Ok((session(&request.session_id)?, title.trim().to_owned()))
}

/// Which conversations.
pub(in crate::service) fn deletion(request: pb::DeleteSessionsRequest) -> Parsed<SessionSelection> {
    match (request.session_ids.is_empty(), request.everything) {
        (true, true) => Ok(SessionSelection::All),
        (false, false) => {
            at_most("session_ids", &request.session_ids, MAX_SESSIONS)?;
            let ids = request.session_ids.iter().enumerate();
            let ids = ids.map(|(index, id)| SessionId::parse(&format!("session_ids[{index}]"), id));
            Ok(SessionSelection::Listed(ids.collect::<Parsed<_>>()?))
        }
        _ => invalid("everything", Problem::ExactlyOneOf { fields: "session_ids, everything" }),
    }
}

/// In which conversation, and which request; `None` = the one that is being answered.
pub(in crate::service) fn cancellation(request: &pb::CancelTurnRequest) -> Parsed<(SessionId, Option<RequestId>)> {
    let which = match request.request_id.as_str() {
        "" => None,
        id => Some(RequestId::parse("request_id", id)?),
    };
    Ok((session(&request.session_id)?, which))
}

/// The token of a place in the list of conversations.
pub(in crate::service) fn token(cursor: &SessionCursor) -> String {
    format!("{}.{}", cursor.updated_at.as_nanosecond(), cursor.id)
}

fn cursor(token: &str) -> Option<SessionCursor> {
    let (time, id) = token.split_once('.')?;
    let updated_at = Timestamp::from_nanosecond(time.parse().ok()?).ok()?;
    Some(SessionCursor { updated_at, id: SessionId::parse("page_token", id).ok()? })
}

fn bad_token() -> InvalidArgument {
    InvalidArgument::new("page_token", Problem::Malformed { expected: "the next_page_token of a page before" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_the_list_survives_its_token_whatever_the_conversation_is_called() {
        for id in ["s", "a.b", "会话 1"] {
            let place = SessionCursor {
                updated_at: "2026-11-25T14:07:21.123456Z".parse().unwrap(),
                id: SessionId::parse("session_id", id).unwrap(),
            };
            assert_eq!(cursor(&token(&place)), Some(place));
        }
        for bad in ["", "x", "1.", "x.s", "99999999999999999999999999999999999999.s"] {
            assert_eq!(cursor(bad), None, "{bad}");
        }
    }

    #[test]
    fn exactly_one_way_to_name_conversations_is_used() {
        let request = |ids: &[&str], everything| pb::DeleteSessionsRequest {
            session_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            everything,
            ..Default::default()
        };
        assert!(deletion(request(&[], false)).is_err());
        assert!(deletion(request(&["s"], true)).is_err());
        assert_eq!(deletion(request(&["s", "a/b"], false)).unwrap_err().field, "session_ids[1]");
        assert_eq!(deletion(request(&[], true)).unwrap(), SessionSelection::All);
    }
}
