use std::sync::Arc;

/// Reported as it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupStep {
    /// First start only: the embedded Postgres is unpacked.
    Unpacking,
    /// First start only: `initdb`.
    Initializing,
    Starting,
    Ready,
}

pub type StartupProgress = Arc<dyn Fn(StartupStep) + Send + Sync>;
