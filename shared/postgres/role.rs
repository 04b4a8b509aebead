use std::time::Duration;

/// Ends statements and lock waits of a caller that has gone: nothing else would free the connection.
pub(super) const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);
const READ_STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// The migrations create the roles; none owns a table or bypasses row-level security.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads and writes rows of one user.
    Service,
    /// Reads rows of one user.
    Reader,
    /// Reads ids of all users and of their rows, and nothing else.
    Maintenance,
}

impl Role {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "agent_service",
            Self::Reader => "agent_reader",
            Self::Maintenance => "agent_maintenance",
        }
    }

    /// One round trip. Statements that are sent together are one implicit transaction, which `begin` makes explicit. If
    /// `begin` came first, a refused statement would leave a failed transaction on the pooled connection.
    pub(super) fn begin(self, settings: &[&str]) -> String {
        [&[self.assume()], settings, &["begin"]].concat().join("; ")
    }

    pub(super) const fn assume(self) -> &'static str {
        match self {
            Self::Service => "set local role agent_service",
            Self::Reader => "set transaction read only; set local role agent_reader",
            Self::Maintenance => "set transaction read only; set local role agent_maintenance",
        }
    }

    pub(super) const fn statement_timeout(self) -> Duration {
        match self {
            Self::Reader => READ_STATEMENT_TIMEOUT,
            Self::Service | Self::Maintenance => STATEMENT_TIMEOUT,
        }
    }
}
