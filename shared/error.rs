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

/// No variant holds prose, because the message is wholly in one language: strings in it are names and values of the contract.
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
    /// One memory has too many distinct terms for the inverted index.
    TooManyTermsInMemory {
        found: usize,
        limit: usize,
    },
    /// The memories or chunks of a request have too many distinct terms together.
    TooManyTerms {
        /// Estimated.
        found: usize,
        limit: usize,
    },
    TooManyChunks {
        found: usize,
        limit: usize,
    },
    /// Tags and metadata of a document are stored with each of its chunks.
    TooLongForChunks {
        chunks: usize,
        found_bytes: usize,
        limit_bytes: usize,
    },
    /// Stored turns follow the turns of a request, and are indexed again with them.
    TooManyFollowingTurns {
        found_bytes: usize,
        limit_bytes: usize,
    },
    /// Postgres cannot store a NUL in text.
    Nul,
    /// An identifier with a control character or a slash.
    NotAnIdentifier,
    OutOfRange {
        min: u32,
        /// `None`: no maximum.
        max: Option<u32>,
    },
    NotOneOf {
        /// Separated by commas.
        known: &'static str,
    },
    ExactlyOneOf {
        /// Separated by commas.
        fields: &'static str,
    },
    DiffersFromMetadata {
        key: &'static str,
    },
    /// Another field of the request has a value that excludes this one.
    Contradicts {
        field: &'static str,
        value: &'static str,
    },
    /// A request id that was used with another body.
    UsedForAnotherRequest,
    /// Call metadata that is not visible ASCII.
    NotVisibleAscii,
    NotAPageToken,
    /// Before the year 1 or after 9999.
    NotATimestamp,
    NotOneLine,
    /// A `Struct` with an unset value, an infinity or a NaN.
    NotJson,
    /// Memories that supersede each other in a circle.
    SupersedesInCircle,
    /// A URL that a client must not open.
    NotALink,
    UnknownFrame,
    UnknownModel,
    UnknownToolCall,
    AnsweredToolCall,
}

impl InvalidArgument {
    pub fn new(field: impl Into<String>, problem: Problem) -> Self {
        Self { field: field.into(), problem }
    }

    /// The message for the caller. It has the field's name verbatim in every language.
    #[must_use]
    pub fn describe(&self, language: Language) -> String {
        let Self { field, problem } = self;
        match language {
            Language::English => problem.describe_in_english(field),
            Language::Chinese => problem.describe_in_chinese(field),
        }
    }
}

impl Problem {
    fn describe_in_english(&self, field: &str) -> String {
        match self {
            Self::Missing => format!("{field} is missing"),
            Self::Blank => format!("{field} is blank"),
            Self::TooLong { limit_bytes } => format!("{field} is longer than {limit_bytes} bytes"),
            Self::TooMany { limit } => format!("{field} has more than {limit} entries"),
            Self::TooManyTermsInMemory { found, limit } => {
                format!(
                    "{field} has {found} distinct terms, and a memory may have {limit}; split it into several memories"
                )
            }
            Self::TooManyTerms { found, limit } => format!(
                "{field} has about {found} distinct terms, and a request may have {limit}; split it into several requests"
            ),
            Self::TooManyChunks { found, limit } => {
                format!("{field} has {found} chunks, and a document may have {limit}; split it into several documents")
            }
            Self::TooLongForChunks { chunks, found_bytes, limit_bytes } => format!(
                "{field} and tags have {found_bytes} bytes in {chunks} chunks, each of which stores them, and may have {limit_bytes}; shorten them or split the document"
            ),
            Self::TooManyFollowingTurns { found_bytes, limit_bytes } => format!(
                "{field} comes before stored turns of {found_bytes} bytes, and a request may affect {limit_bytes}; split it into several requests"
            ),
            Self::Nul => format!("{field} contains a NUL character"),
            Self::NotAnIdentifier => format!("{field} must not contain control characters or slashes"),
            Self::OutOfRange { min, max: Some(max) } => format!("{field} must be {min} to {max}"),
            Self::OutOfRange { min, max: None } => format!("{field} must be {min} or more"),
            Self::NotOneOf { known } => format!("{field} must be one of: {known}"),
            Self::ExactlyOneOf { fields } => format!("{field}: set exactly one of {fields}"),
            Self::DiffersFromMetadata { key } => format!("{field} differs from the metadata {key}"),
            Self::Contradicts { field: other, value } => format!("{field} contradicts {other} = {value}"),
            Self::UsedForAnotherRequest => format!("{field} was used before, for a request with another body"),
            Self::NotVisibleAscii => format!("{field} must be visible ASCII where it is call metadata"),
            Self::NotAPageToken => format!("{field} must be the next_page_token of a page before"),
            Self::NotATimestamp => format!("{field} must be a time of the years 1 to 9999"),
            Self::NotOneLine => format!("{field} must be one line without control characters"),
            Self::NotJson => format!("{field} must have finite numbers and no unset values"),
            Self::SupersedesInCircle => format!("{field} names memories that replace this one in turn"),
            Self::NotALink => {
                format!("{field} must be a URL of the scheme http, https or mailto, without control characters")
            }
            Self::UnknownFrame => format!("{field} names no frame of an answer to this request"),
            Self::UnknownModel => format!("{field} names no model that is allowed here"),
            Self::UnknownToolCall => format!("{field} names no pending tool call of this session"),
            Self::AnsweredToolCall => format!("{field} names a tool call that has its result already"),
        }
    }

    fn describe_in_chinese(&self, field: &str) -> String {
        match self {
            Self::Missing => format!("缺少 {field}"),
            Self::Blank => format!("{field} 不能为空白"),
            Self::TooLong { limit_bytes } => format!("{field} 超过 {limit_bytes} 字节"),
            Self::TooMany { limit } => format!("{field} 超过 {limit} 项"),
            Self::TooManyTermsInMemory { found, limit } => {
                format!("{field} 含有 {found} 个不同的词项，每条记忆最多 {limit} 个，请拆成多条记忆")
            }
            Self::TooManyTerms { found, limit } => {
                format!("{field} 约有 {found} 个不同的词项，每个请求最多 {limit} 个，请拆成多个请求")
            }
            Self::TooManyChunks { found, limit } => {
                format!("{field} 会切成 {found} 个分块，每个文档最多 {limit} 个，请拆成多个文档")
            }
            Self::TooLongForChunks { chunks, found_bytes, limit_bytes } => format!(
                "{field} 和 tags 会随 {chunks} 个分块各存一份，共 {found_bytes} 字节，最多 {limit_bytes} 字节，请缩短它们或拆分文档"
            ),
            Self::TooManyFollowingTurns { found_bytes, limit_bytes } => {
                format!(
                    "{field} 之后已有 {found_bytes} 字节的对话，每个请求最多影响 {limit_bytes} 字节，请拆成多个请求"
                )
            }
            Self::Nul => format!("{field} 含有空字符（码位为 0）"),
            Self::NotAnIdentifier => format!("{field} 不能含有控制字符或斜杠"),
            Self::OutOfRange { min, max: Some(max) } => format!("{field} 超出范围，应在 {min} 到 {max} 之间"),
            Self::OutOfRange { min, max: None } => format!("{field} 超出范围，不能小于 {min}"),
            Self::NotOneOf { known } => format!("{field} 应为以下之一：{known}"),
            Self::ExactlyOneOf { fields } => format!("{field}：请只设置以下之一：{fields}"),
            Self::DiffersFromMetadata { key } => format!("{field} 与元数据 {key} 不一致"),
            Self::Contradicts { field: other, value } => format!("{field} 与 {other} = {value} 相互矛盾"),
            Self::UsedForAnotherRequest => format!("{field} 已用于另一个内容不同的请求"),
            Self::NotVisibleAscii => format!("{field} 放在元数据中时，只能使用英文字母、数字和英文标点"),
            Self::NotAPageToken => format!("{field} 应为上一页返回的 next_page_token"),
            Self::NotATimestamp => format!("{field} 应为公元 1 年至 9999 年之间的时间"),
            Self::NotOneLine => format!("{field} 应为不含控制字符的单行文本"),
            Self::NotJson => format!("{field} 中的数字必须有限，且每个值都要设置"),
            Self::SupersedesInCircle => format!("{field} 指向的记忆反过来又取代了这一条"),
            Self::NotALink => format!("{field} 应为 http、https 或 mailto 的网址，且不含控制字符"),
            Self::UnknownFrame => format!("{field} 不是该请求的回答中的任何一帧"),
            Self::UnknownModel => format!("{field} 不是此处允许使用的模型"),
            Self::UnknownToolCall => format!("{field} 不是该对话中等待结果的工具调用"),
            Self::AnsweredToolCall => format!("{field} 对应的工具调用已经有结果"),
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
