//! Runs: one execution of a turn each, started by a request and persisted with its frames. A run has one driver task, which
//! survives the loss of its client, and any number of readers. The transport and the admission rules are not its concern.

mod driver;
mod events;
mod live;
mod log;
mod pages;
mod preemption;
mod presence;
mod reader;
mod registry;
mod stored;

pub(super) use driver::AdmittedRun;
pub(super) use events::{EventsOrDefect, events_or_defect};
pub(super) use log::FrameLog;
pub(super) use preemption::SessionWait;
pub(super) use reader::RunReader;
pub(super) use registry::RunRegistry;
pub(super) use stored::{ReadError, StoredFrames, StoredRun};
