//! Invalid arguments, with a message that helps their sender. Shared, because identities, requests and memories are parsed at the
//! edge; every other error type belongs to its module.

use crate::language::Language;

/// An argument that breaks a rule of the contract. It never contains the rejected text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe(Language::English))]
pub struct InvalidArgument {
    /// Path of the proto field, for example `history[2].role`.
    pub field: String,
    pub problem: Problem,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    Missing,
    /// Empty or only white space.
    Blank,
    TooLong {
        limit_bytes: usize,
    },
    /// Too many entries.
    TooMany {
        limit: usize,
    },
    /// Postgres cannot store a NUL in text.
    Nul,
    /// An identifier with a control character or a slash.
    NotAnIdentifier,
    OutOfRange {
        /// For the message, for example `0 to 1`.
        range: &'static str,
    },
    NotOneOf {
        /// Separated by commas.
        known: &'static str,
    },
    Contradicts {
        /// Another field, or call metadata.
        other: &'static str,
    },
    Malformed {
        expected: &'static str,
    },
    /// A reference to something that does not exist.
    Unknown {
        what: &'static str,
    },
    ExactlyOneOf {
        /// Separated by commas.
        fields: &'static str,
    },
}

impl InvalidArgument {
    pub fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self { field: field.into(), problem }
    }

    /// The message for the caller. It has the field's name verbatim in every language.
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

/// Refuses a text that is too long or has a NUL.
///
/// # Errors
/// [`Problem::TooLong`] or [`Problem::Nul`], at `field`.
pub fn check_text(field: &str, text: &str, limit_bytes: usize) -> Result<(), InvalidArgument> {
    if text.len() > limit_bytes {
        return Err(InvalidArgument::new(field, Problem::TooLong { limit_bytes }));
    }
    if text.contains('\0') {
        return Err(InvalidArgument::new(field, Problem::Nul));
    }
    Ok(())
}

/// An error with its sources; the last is often the useful one.
#[must_use]
pub fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
