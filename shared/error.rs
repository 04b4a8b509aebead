//! What is wrong with an argument, in words that help its sender.
//!
//! Each room has an error type of its own ([`llm::ModelError`](crate::llm::ModelError),
//! [`memory::MemoryError`](crate::memory::MemoryError), …). This one is shared, because identities, requests and
//! memories are all parsed at the edge.

use crate::language::Language;

/// An argument that breaks a rule of the contract. It never holds the rejected text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe(Language::English))]
pub struct InvalidArgument {
    /// Path of the proto field, for example `history[2].role`.
    pub field: String,
    /// Which rule it breaks.
    pub problem: Problem,
}

/// A rule that an argument can break.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// It must be given.
    Missing,
    /// It holds nothing but white space.
    Blank,
    /// It is longer than this many bytes.
    TooLong {
        /// Most bytes.
        limit_bytes: usize,
    },
    /// It has more than this many entries.
    TooMany {
        /// Most entries.
        limit: usize,
    },
    /// It holds a NUL, which no store can keep.
    Nul,
    /// It holds a control character or a slash, which no identifier may.
    NotAnIdentifier,
    /// It is outside the range, both ends included.
    OutOfRange {
        /// The range in words.
        range: &'static str,
    },
    /// It is not one of the values that are known.
    NotOneOf {
        /// The values, separated by commas.
        known: &'static str,
    },
    /// It contradicts another field or the call metadata.
    Contradicts {
        /// What it contradicts.
        other: &'static str,
    },
    /// It is not a value of its type, for example a `Struct` with an unset or infinite value.
    Malformed {
        /// What would be right.
        expected: &'static str,
    },
    /// It names something that does not exist.
    Unknown {
        /// What it should name.
        what: &'static str,
    },
    /// Exactly one of several fields must be set.
    ExactlyOneOf {
        /// The fields, separated by commas.
        fields: &'static str,
    },
}

impl InvalidArgument {
    /// A broken rule at a field.
    pub fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self { field: field.into(), problem }
    }

    /// The sentence for the caller: the field's name verbatim, what is wrong and what would be right.
    #[must_use]
    pub fn describe(&self, language: Language) -> String {
        let field = &self.field;
        match language {
            Language::English => match &self.problem {
                Problem::Missing => format!("{field} is missing"),
                Problem::Blank => format!("{field} is blank"),
                Problem::TooLong { limit_bytes } => format!("{field} is longer than {limit_bytes} bytes"),
                Problem::TooMany { limit } => format!("{field} has more than {limit} entries"),
                Problem::Nul => format!("{field} contains a NUL character"),
                Problem::NotAnIdentifier => format!("{field} must not contain control characters or slashes"),
                Problem::OutOfRange { range } => format!("{field} must be {range}"),
                Problem::NotOneOf { known } => format!("{field} must be one of: {known}"),
                Problem::Contradicts { other } => format!("{field} differs from {other}"),
                Problem::Malformed { expected } => format!("{field} must be {expected}"),
                Problem::Unknown { what } => format!("{field} names no known {what}"),
                Problem::ExactlyOneOf { fields } => format!("{field}: set exactly one of {fields}"),
            },
            Language::Chinese => match &self.problem {
                Problem::Missing => format!("缺少 {field}"),
                Problem::Blank => format!("{field} 不能为空白"),
                Problem::TooLong { limit_bytes } => format!("{field} 超过 {limit_bytes} 字节"),
                Problem::TooMany { limit } => format!("{field} 超过 {limit} 项"),
                Problem::Nul => format!("{field} 含有 NUL 字符"),
                Problem::NotAnIdentifier => format!("{field} 不能含有控制字符或斜杠"),
                Problem::OutOfRange { range } => format!("{field} 超出范围，应为 {range}"),
                Problem::NotOneOf { known } => format!("{field} 应为以下之一：{known}"),
                Problem::Contradicts { other } => format!("{field} 与 {other} 不一致"),
                Problem::Malformed { expected } => format!("{field} 格式不正确，应为 {expected}"),
                Problem::Unknown { what } => format!("{field} 不存在（{what}）"),
                Problem::ExactlyOneOf { fields } => format!("{field}：请只设置以下之一：{fields}"),
            },
        }
    }
}

/// Refuses a text that is too long or that no store can keep.
///
/// # Errors
/// [`Problem::TooLong`] above `limit_bytes`, [`Problem::Nul`] where it holds a NUL.
pub fn check_text(field: &str, text: &str, limit_bytes: usize) -> Result<(), InvalidArgument> {
    if text.len() > limit_bytes {
        return Err(InvalidArgument::new(field, Problem::TooLong { limit_bytes }));
    }
    if text.contains('\0') {
        return Err(InvalidArgument::new(field, Problem::Nul));
    }
    Ok(())
}

/// An error with its causes, the useful one of which is often the last.
#[must_use]
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
