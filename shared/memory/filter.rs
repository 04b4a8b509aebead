use jiff::Timestamp;

/// All parts that are set must match.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// All of these tags.
    pub tags: Vec<String>,
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub before: Option<Timestamp>,
    /// Any of these; empty: any at all.
    pub source_types: Vec<String>,
    /// Chunks of any of these; empty: any memory.
    pub document_ids: Vec<String>,
}

impl Filter {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
