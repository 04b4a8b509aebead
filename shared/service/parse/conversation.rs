//! Requests of `ConversationService`.

use jiff::Timestamp;

use super::{Parsed, at_most, count, invalid, page_token, text};
use crate::{
    conversation::{MAX_TITLE_BYTES, SessionCursor, SessionSelection},
    error::Problem,
    identity::{RequestId, SessionId},
    proto::agent_v1 as pb,
};

const MAX_SESSIONS: usize = 100;

pub(in crate::service) struct SessionListing {
    pub(in crate::service) page_size: usize,
    pub(in crate::service) after: Option<SessionCursor>,
}

pub(in crate::service) struct TurnListing {
    pub(in crate::service) session: SessionId,
    pub(in crate::service) page_size: usize,
    /// Number of the turn that ended the previous page.
    pub(in crate::service) before: Option<u32>,
}

pub(in crate::service) struct RenameCommand {
    pub(in crate::service) session: SessionId,
    /// One line.
    pub(in crate::service) title: String,
}

pub(in crate::service) struct CancelCommand {
    pub(in crate::service) session: SessionId,
    /// `None` = the session's running request.
    pub(in crate::service) request: Option<RequestId>,
}

fn session(id: &str) -> Parsed<SessionId> {
    SessionId::parse("session_id", id)
}

pub(in crate::service) fn session_listing(request: pb::ListSessionsRequest) -> Parsed<SessionListing> {
    let after = page_token(&request.page_token, session_cursor)?;
    Ok(SessionListing { page_size: count("page_size", request.page_size, 50, 200)?, after })
}

pub(in crate::service) fn turn_listing(request: pb::GetSessionRequest) -> Parsed<TurnListing> {
    let before = page_token(&request.page_token, |token| token.parse().ok())?;
    let page_size = count("page_size", request.page_size, 20, 100)?;
    Ok(TurnListing { session: session(&request.session_id)?, page_size, before })
}

pub(in crate::service) fn rename(request: pb::RenameSessionRequest) -> Parsed<RenameCommand> {
    let title = text("title", request.title, MAX_TITLE_BYTES)?;
    if title.chars().any(char::is_control) {
        return invalid("title", Problem::NotOneLine);
    }
    Ok(RenameCommand { session: session(&request.session_id)?, title: title.trim().to_owned() })
}

pub(in crate::service) fn session_selection(request: pb::DeleteSessionsRequest) -> Parsed<SessionSelection> {
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

pub(in crate::service) fn cancel(request: pb::CancelTurnRequest) -> Parsed<CancelCommand> {
    let request_id = match request.request_id.as_str() {
        "" => None,
        id => Some(RequestId::parse("request_id", id)?),
    };
    Ok(CancelCommand { session: session(&request.session_id)?, request: request_id })
}

pub(in crate::service) fn session_token(cursor: &SessionCursor) -> String {
    format!("{}.{}", cursor.updated_at.as_nanosecond(), cursor.id)
}

fn session_cursor(token: &str) -> Option<SessionCursor> {
    let (time, id) = token.split_once('.')?;
    let updated_at = Timestamp::from_nanosecond(time.parse().ok()?).ok()?;
    Some(SessionCursor { updated_at, id: SessionId::parse("page_token", id).ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_cursor_round_trips_through_its_token() {
        for id in ["s", "a.b", "对话 1"] {
            let cursor = SessionCursor {
                updated_at: "2026-11-25T14:07:21.123456Z".parse().unwrap(),
                id: SessionId::parse("session_id", id).unwrap(),
            };
            assert_eq!(session_cursor(&session_token(&cursor)), Some(cursor));
        }
        for malformed in ["", "x", "1.", "x.s", "99999999999999999999999999999999999999.s"] {
            assert_eq!(session_cursor(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn session_selection_requires_exactly_one_field() {
        let request = |ids: &[&str], everything| pb::DeleteSessionsRequest {
            session_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            everything,
            ..Default::default()
        };
        assert!(session_selection(request(&[], false)).is_err());
        assert!(session_selection(request(&["s"], true)).is_err());
        assert_eq!(session_selection(request(&["s", "a/b"], false)).unwrap_err().field, "session_ids[1]");
        assert_eq!(session_selection(request(&[], true)).unwrap(), SessionSelection::All);
    }
}
