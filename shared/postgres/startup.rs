use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupStep {
    Unpacking,
    Initializing,
    Starting,
    Ready,
}

pub type StartupProgress = Arc<dyn Fn(StartupStep) + Send + Sync>;
