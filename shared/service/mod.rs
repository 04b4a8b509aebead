//! The gRPC services: request to domain value, event to frame, error to status. They are served by every transport.

mod admission;
mod agent;
mod apis;
mod call;
mod caller_language;
mod checked_caller;
mod conversation;
mod convert;
mod drain;
mod envelope;
mod error;
mod export;
mod failure;
mod frame;
mod frame_source;
mod header_authentication;
mod heartbeat;
mod limits;
mod memory;
mod open_streams;
mod parse;
mod refusal;
mod run;
mod status;
mod token_end;
mod wording;

pub use agent::{AgentApi, ChatFrames, Deadline};
pub use apis::{ApiParts, Apis};
pub use checked_caller::CheckedCaller;
pub use conversation::ConversationApi;
pub use drain::Drain;
pub use export::MemoryRecordStream;
pub use header_authentication::HeaderAuthentication;
pub use heartbeat::HalfClose;
pub use memory::MemoryApi;
