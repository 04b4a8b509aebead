use super::EnvReader;

pub(super) const CHAT_REFUSALS: &str = "CHAT_REFUSALS";

/// The form of a `StreamChat` that is refused before its first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChatRefusals {
    #[default]
    Status,
    /// One error frame, except for UNAUTHENTICATED.
    Frames,
}

impl ChatRefusals {
    pub(super) fn read(reader: &mut EnvReader<'_>) -> Self {
        reader.choice(CHAT_REFUSALS, &[("status", Self::Status), ("frames", Self::Frames)]).unwrap_or_default()
    }
}
