use jiff::Timestamp;

/// The document id of a memory that is no chunk.
const NO_DOCUMENT: &str = "";

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
    /// Chunks of any of these, or with an empty id memories that are no chunks; empty: any memory.
    pub document_ids: Vec<String>,
}

impl Filter {
    /// Memories that are no chunks.
    #[must_use]
    pub fn without_documents() -> Self {
        Self { document_ids: vec![NO_DOCUMENT.to_owned()], ..Self::default() }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
