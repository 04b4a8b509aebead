//! The error of learning. It never carries text of the user, so it can be logged.

use crate::{chat::RecordError, conversation::StoreError, llm::ModelError, memory::MemoryError};

#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the model's answer is malformed: {0}")]
    Malformed(&'static str),
    #[error("learning from the turn timed out")]
    Timeout,
    #[error("the prompt template cannot be rendered: {0}")]
    Prompt(#[from] minijinja::Error),
}
