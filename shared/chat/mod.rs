//! One turn: recall → prompt → model → tools → answer, as a pull-based stream of events (`turn`). Knows neither frames
//! nor gRPC; the reader of the events persists the finished turn.

mod assistant;
mod context;
mod deletion;
mod event;
mod history;
mod input;
mod interruption;
mod pending;
mod profile;
mod prompt;
mod recall;
mod record;
mod round;
mod title;
mod tool_calls;
mod turn;
mod usage;

pub use assistant::Assistant;
pub use event::{
    ApprovalRequest, FinishedTurn, ShownMemory, Stage, ToolExecution, TurnClosing, TurnEvent, TurnFailure,
};
pub use history::HISTORY_TOKEN_BUDGET;
pub use input::{HistoryMessage, Speaker, ToolResult, TurnInput};
pub use pending::ResumedTurn;
pub use profile::Profile;
pub use prompt::{PROMPT_VERSIONS, Prompts};
pub use recall::RecalledMemory;
pub use record::{RecordError, RecordedCitation, RecordedUsage, TurnFinish, TurnRecord};
pub use usage::UsageReport;
