//! `agent.v1.ConversationService`.

use std::sync::Arc;

use tonic::Request;

use super::{
    call::{RpcContext, RpcResult},
    convert,
    error::ConversationError,
    header_authentication::HeaderAuthentication,
    parse::conversation::{self as parse, CancelCommand, RenameCommand, SessionListing, TurnListing},
    run::RunRegistry,
};
use crate::{
    chat::{TurnFinish, TurnRecord},
    conversation::{ConversationStore, Session, SessionCursor, StoredTurn},
    llm::{Message, ToolCall},
    proto::agent_v1::{self as pb, conversation_service_server::ConversationService},
};

#[derive(Clone)]
pub struct ConversationApi {
    /// `None` = conversations are not stored.
    runs: Option<RunRegistry>,
    context: RpcContext,
}

impl ConversationApi {
    pub(super) fn new(runs: Option<RunRegistry>, context: RpcContext) -> Self {
        Self { runs, context }
    }

    #[must_use]
    pub fn header_authentication(&self) -> HeaderAuthentication {
        HeaderAuthentication::new(self.context.clone())
    }

    fn runs(&self) -> Result<&RunRegistry, ConversationError> {
        self.runs.as_ref().ok_or(ConversationError::Disabled)
    }

    fn store(&self) -> Result<&Arc<dyn ConversationStore>, ConversationError> {
        Ok(&self.runs()?.store)
    }
}

#[tonic::async_trait]
impl ConversationService for ConversationApi {
    async fn list_sessions(&self, request: Request<pb::ListSessionsRequest>) -> RpcResult<pb::ListSessionsResponse> {
        let list = |user, SessionListing { page_size, after }| async move {
            // One more than the page tells whether there is another page.
            let mut sessions = self.store()?.list_sessions(&user, page_size + 1, after.as_ref()).await?;
            let has_more = sessions.len() > page_size;
            sessions.truncate(page_size);
            let last = sessions.last().filter(|_| has_more);
            let last = last.map(|last| SessionCursor { updated_at: last.updated_at, id: last.id.clone() });
            Ok::<_, ConversationError>(pb::ListSessionsResponse {
                sessions: sessions.into_iter().map(session_message).collect(),
                next_page_token: last.as_ref().map(parse::session_token).unwrap_or_default(),
            })
        };
        self.context.unary("ListSessions", request, parse::session_listing, list).await
    }

    async fn get_session(&self, request: Request<pb::GetSessionRequest>) -> RpcResult<pb::GetSessionResponse> {
        let get = |user, TurnListing { session: id, page_size, before }| async move {
            let store = self.store()?;
            let session = store.get_session(&user, &id);
            let turns = store.list_turns(&user, &id, before, page_size + 1);
            let (session, turns) = tokio::join!(session, turns);
            let (session, mut turns) = (session?.ok_or(ConversationError::NotFound)?, turns?);
            let has_more = turns.len() > page_size;
            turns.truncate(page_size);
            let next = turns.last().filter(|_| has_more).map(|last| last.seq.to_string());
            Ok::<_, ConversationError>(pb::GetSessionResponse {
                session: Some(session_message(session)),
                turns: turns.into_iter().map(turn_message).collect(),
                next_page_token: next.unwrap_or_default(),
            })
        };
        self.context.unary("GetSession", request, parse::turn_listing, get).await
    }

    async fn rename_session(&self, request: Request<pb::RenameSessionRequest>) -> RpcResult<pb::Session> {
        let rename = |user, RenameCommand { session, title }| async move {
            let renamed = self.store()?.rename_session(&user, &session, &title).await?;
            renamed.map(session_message).ok_or(ConversationError::NotFound)
        };
        self.context.unary("RenameSession", request, parse::rename, rename).await
    }

    async fn delete_sessions(
        &self,
        request: Request<pb::DeleteSessionsRequest>,
    ) -> RpcResult<pb::DeleteSessionsResponse> {
        let delete = |user, selection| async move {
            let deleted = self.store()?.delete_sessions(&user, &selection).await;
            let deleted = convert::int(deleted.map_err(ConversationError::DeletionIncomplete)?);
            Ok::<_, ConversationError>(pb::DeleteSessionsResponse { deleted })
        };
        self.context.unary("DeleteSessions", request, parse::session_selection, delete).await
    }

    async fn cancel_turn(&self, request: Request<pb::CancelTurnRequest>) -> RpcResult<pb::CancelTurnResponse> {
        let cancel = |user, CancelCommand { session, request }| async move {
            let runs = self.runs()?;
            // At once if the run is in this process; another process reads it from the store with its next heartbeat.
            let stopped = request.clone().filter(|request| runs.cancel(&user, &session, request));
            // A run that was stopped here may have ended meanwhile.
            let cancelled = runs.store.cancel(&user, &session, request.as_ref()).await?.or(stopped);
            if let Some(request) = &cancelled {
                runs.cancel(&user, &session, request);
            }
            Ok::<_, ConversationError>(pb::CancelTurnResponse {
                cancelled: cancelled.is_some(),
                request_id: cancelled.map(|request| request.as_str().to_owned()).unwrap_or_default(),
            })
        };
        self.context.unary("CancelTurn", request, parse::cancel, cancel).await
    }
}

fn session_message(session: Session) -> pb::Session {
    pb::Session {
        session_id: session.id.as_str().to_owned(),
        title: session.title,
        created_at: Some(convert::timestamp(session.created_at)),
        updated_at: Some(convert::timestamp(session.updated_at)),
        turns: convert::int(session.turns),
        running_request_id: session.running.map(|request| request.as_str().to_owned()).unwrap_or_default(),
    }
}

fn turn_message(stored: StoredTurn) -> pb::Turn {
    let mut turn = pb::Turn {
        number: convert::int(stored.seq),
        request_id: stored.request.as_str().to_owned(),
        created_at: Some(convert::timestamp(stored.created_at)),
        interrupted: !stored.is_complete,
        ..Default::default()
    };
    match TurnRecord::from_bytes(&stored.record) {
        Ok(record) => {
            turn.interrupted |= matches!(record.finish, TurnFinish::Cancelled | TurnFinish::Failed);
            turn.messages = record.messages.into_iter().filter_map(message).collect();
            turn.citations = record.citations.into_iter().map(convert::citation).collect();
            turn.usage = record.usage.map(convert::usage);
        }
        // The other turns of the session are still readable.
        Err(error) => {
            tracing::error!(%error, number = stored.seq, "stored turn is malformed; it is sent without content")
        }
    }
    turn
}

/// `None` for system messages, which are the service's own instructions.
fn message(message: Message) -> Option<pb::TurnMessage> {
    let with_role = |role: &str, content| pb::TurnMessage { role: role.to_owned(), content, ..Default::default() };
    Some(match message {
        Message::User(content) => with_role("user", content),
        Message::Assistant { content, calls, .. } => {
            let call = |ToolCall { id, name, arguments }| pb::ToolCall { id, name, arguments };
            pb::TurnMessage { tool_calls: calls.into_iter().map(call).collect(), ..with_role("assistant", content) }
        }
        Message::Tool { call_id, content } => pb::TurnMessage { tool_call_id: call_id, ..with_role("tool", content) },
        Message::System(_) => return None,
    })
}
