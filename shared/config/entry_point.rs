/// The kind of program that reads the configuration; some defaults depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPoint {
    /// The local server, which can run its own Postgres.
    Server,
    /// An AWS Lambda function: reachable by anyone, and without local resources.
    Function,
}
