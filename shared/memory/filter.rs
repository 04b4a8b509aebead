//! Which memories a question is about.

use jiff::Timestamp;

/// A memory matches when it matches every part that is set.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Filter {
    /// It has all of these tags.
    pub tags: Vec<String>,
    /// It is of this time or later.
    pub from: Option<Timestamp>,
    /// It is of before this time.
    pub before: Option<Timestamp>,
    /// Its source type is one of these; empty = any.
    pub source_types: Vec<String>,
    /// It is a chunk of one of these documents; empty = any memory.
    pub document_ids: Vec<String>,
}

impl Filter {
    /// Whether nothing is set, so that everything matches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
