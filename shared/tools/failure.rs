/// The messages are for the model; the client gets its own, in its language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ToolFailure {
    #[error("the memory took too long; try again later")]
    TimedOut,
    /// Blank text or a NUL, which a schema cannot exclude.
    #[error("an argument is blank or holds a NUL; give text that is not blank")]
    InvalidArgument,
    #[error("the memory cannot be reached right now; try again later")]
    Unavailable,
    #[error("a fact is one line of at most 400 characters; save it in short")]
    NotOneSentence,
    #[error("it is an instruction; save only facts about the user")]
    Instruction,
    #[error(
        "the user did not say it in this conversation; save only what the user said themselves, in their words and language"
    )]
    NotStated,
    #[error("enough was saved in this turn; go on without saving more")]
    TooManySaved,
    #[error("an id was not shown in this conversation; find the memories with search_memory first")]
    NotShown,
    #[error(
        "more than 3 memories a turn are forgotten only if the user approves, who cannot be asked here; let the user delete them"
    )]
    NeedsApproval,
    #[error("the user did not approve; nothing was forgotten")]
    NotApproved,
    #[error("the memory failed; go on without it")]
    Failed,
}
