//! `agent.v1.ConversationService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{
    call::{RpcContext, RpcError, unary},
    memory::proto_time,
    parse::conversation as parse,
    run::RunRegistry,
    status,
};
use crate::{
    chat::{RecordedCitation, TurnFinish, TurnRecord},
    conversation::{ConversationStore, Session, SessionCursor, StoreError, StoredTurn},
    llm::{Message, ToolCall},
    proto::agent_v1::{self as pb, conversation_service_server::ConversationService},
};

/// Answers `agent.v1.ConversationService`.
#[derive(Clone)]
pub struct ConversationApi {
    /// `None` = conversations are not kept.
    runs: Option<RunRegistry>,
    gate: RpcContext,
}

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConversationError {
    /// Conversations are not kept here.
    #[error("conversations are not kept")]
    Off,
    /// There is no such conversation.
    #[error("there is no such conversation")]
    NotFound,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A defect of ours.
    #[error("an internal defect")]
    Defect,
}

impl RpcError for ConversationError {
    fn defect() -> Self {
        Self::Defect
    }

    fn status(&self) -> Status {
        match self {
            Self::Off => Status::failed_precondition(
                "this service keeps no conversations: whoever runs it should set CONVERSATIONS",
            ),
            Self::NotFound => Status::not_found("session_id names no conversation of this user"),
            Self::Store(error) => status::store_failure(error),
            Self::Defect => Status::internal("the conversations failed"),
        }
    }
}

impl ConversationApi {
    pub(super) fn new(runs: Option<RunRegistry>, gate: RpcContext) -> Self {
        Self { runs, gate }
    }

    fn runs(&self) -> Result<&RunRegistry, ConversationError> {
        self.runs.as_ref().ok_or(ConversationError::Off)
    }

    fn store(&self) -> Result<&Arc<dyn ConversationStore>, ConversationError> {
        Ok(&self.runs()?.store)
    }
}

#[tonic::async_trait]
impl ConversationService for ConversationApi {
    async fn list_sessions(
        &self,
        request: Request<pb::ListSessionsRequest>,
    ) -> Result<Response<pb::ListSessionsResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let listing = parse::listing(&request);
        unary("ListSessions", &self.gate, &metadata, &request.user_id, listing, |user, (size, after)| async move {
            // One more than is shown tells whether there are more.
            let mut sessions = self.store()?.list_sessions(&user, size + 1, after.as_ref()).await?;
            let has_more = sessions.len() > size;
            sessions.truncate(size);
            let last = sessions.last().filter(|_| has_more);
            let last = last.map(|last| SessionCursor { updated_at: last.updated_at, id: last.id.clone() });
            Ok::<_, ConversationError>(pb::ListSessionsResponse {
                sessions: sessions.into_iter().map(told).collect(),
                next_page_token: last.as_ref().map(parse::token).unwrap_or_default(),
            })
        })
        .await
    }

    async fn get_session(
        &self,
        request: Request<pb::GetSessionRequest>,
    ) -> Result<Response<pb::GetSessionResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let reading = parse::reading(&request);
        unary("GetSession", &self.gate, &metadata, &request.user_id, reading, |user, (id, size, before)| async move {
            let store = self.store()?;
            let session = store.get_session(&user, &id);
            let turns = store.list_turns(&user, &id, before, size + 1);
            let (session, turns) = tokio::join!(session, turns);
            let (session, mut turns) = (session?.ok_or(ConversationError::NotFound)?, turns?);
            let has_more = turns.len() > size;
            turns.truncate(size);
            let next = turns.last().filter(|_| has_more).map(|last| last.seq.to_string());
            let turns = turns.into_iter().map(turn).collect();
            Ok::<_, ConversationError>(pb::GetSessionResponse {
                session: Some(told(session)),
                turns,
                next_page_token: next.unwrap_or_default(),
            })
        })
        .await
    }

    async fn rename_session(
        &self,
        request: Request<pb::RenameSessionRequest>,
    ) -> Result<Response<pb::Session>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let renaming = parse::renaming(request);
        unary("RenameSession", &self.gate, &metadata, &user_id, renaming, |user, (id, title)| async move {
            let renamed = self.store()?.rename_session(&user, &id, &title).await?;
            renamed.map(told).ok_or(ConversationError::NotFound)
        })
        .await
    }

    async fn delete_sessions(
        &self,
        request: Request<pb::DeleteSessionsRequest>,
    ) -> Result<Response<pb::DeleteSessionsResponse>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let user_id = std::mem::take(&mut request.user_id);
        let deletion = parse::deletion(request);
        unary("DeleteSessions", &self.gate, &metadata, &user_id, deletion, |user, sessions| async move {
            let deleted = self.store()?.delete_sessions(&user, &sessions).await?;
            Ok::<_, ConversationError>(pb::DeleteSessionsResponse { deleted: int(deleted) })
        })
        .await
    }

    async fn cancel_turn(
        &self,
        request: Request<pb::CancelTurnRequest>,
    ) -> Result<Response<pb::CancelTurnResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let cancellation = parse::cancellation(&request);
        let method = "CancelTurn";
        unary(method, &self.gate, &metadata, &request.user_id, cancellation, |user, (session, request)| async move {
            let runs = self.runs()?;
            if let Some(request) = &request {
                // At once, if it runs here; elsewhere it is heard of within a second.
                runs.cancel(&user, &session, request);
            }
            let cancelled = runs.store.cancel(&user, &session, request.as_ref()).await?;
            if let Some(request) = &cancelled {
                runs.cancel(&user, &session, request);
            }
            Ok::<_, ConversationError>(pb::CancelTurnResponse {
                cancelled: cancelled.is_some(),
                request_id: cancelled.map(|request| request.as_str().to_owned()).unwrap_or_default(),
            })
        })
        .await
    }
}

fn told(session: Session) -> pb::Session {
    pb::Session {
        session_id: session.id.as_str().to_owned(),
        title: session.title,
        created_at: Some(proto_time(session.created_at)),
        updated_at: Some(proto_time(session.updated_at)),
        turns: int(session.turns),
        running_request_id: session.running.map(|request| request.as_str().to_owned()).unwrap_or_default(),
    }
}

fn turn(stored: StoredTurn) -> pb::Turn {
    let mut turn = pb::Turn {
        number: int(stored.seq),
        request_id: stored.request.as_str().to_owned(),
        created_at: Some(proto_time(stored.created_at)),
        interrupted: !stored.is_complete,
        ..Default::default()
    };
    match TurnRecord::from_bytes(&stored.record) {
        Ok(record) => {
            turn.interrupted |= matches!(record.finish, TurnFinish::Cancelled | TurnFinish::Failed);
            turn.messages = record.messages.into_iter().filter_map(message).collect();
            turn.citations = record.citations.into_iter().map(citation).collect();
            turn.usage = record.usage.map(|usage| pb::Usage {
                prompt_tokens: int(usage.prompt),
                completion_tokens: int(usage.completion),
                total_tokens: int(usage.prompt.saturating_add(usage.completion)),
                cost_micro_usd: usage.cost_micro_usd.unwrap_or_default(),
            });
        }
        // The others can still be read.
        Err(error) => tracing::error!(%error, "a turn can not be read"),
    }
    turn
}

fn message(message: Message) -> Option<pb::TurnMessage> {
    let of = |role: &str, content| pb::TurnMessage { role: role.to_owned(), content, ..Default::default() };
    Some(match message {
        Message::User(content) => of("user", content),
        Message::Assistant { content, calls, .. } => {
            let call = |ToolCall { id, name, arguments }| pb::ToolCall { id, name, arguments };
            pb::TurnMessage { tool_calls: calls.into_iter().map(call).collect(), ..of("assistant", content) }
        }
        Message::Tool { call_id, content } => pb::TurnMessage { tool_call_id: call_id, ..of("tool", content) },
        // Instructions of the service are nobody's words.
        Message::System(_) => return None,
    })
}

fn citation(citation: RecordedCitation) -> pb::Citation {
    pb::Citation {
        id: citation.id,
        title: citation.title,
        content: citation.excerpt,
        source_type: citation.source_type,
        url: citation.url,
        score: citation.score,
        file_id: citation.document_id,
        page_number: int(citation.page),
        chunk_index: int(citation.chunk),
        section_title: citation.section,
    }
}

fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
