use jiff::Timestamp;

/// A memory matches when it matches every part that is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// All of these tags.
    pub tags: Vec<String>,
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub before: Option<Timestamp>,
    /// Any of these source types; empty = any at all.
    pub source_types: Vec<String>,
    /// A chunk of any of these documents; empty = any memory.
    pub document_ids: Vec<String>,
}

impl Filter {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
