/// Some defaults depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    Server,
    /// An AWS Lambda function: reachable by anyone, and without local resources.
    Function,
}
