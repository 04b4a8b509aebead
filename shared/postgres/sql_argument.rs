use std::{fmt::Write as _, time::Duration};

/// For statements without parameters: statements that are sent together cannot have any.
#[derive(Debug, Clone, Copy)]
pub enum SqlArgument<'a> {
    /// Without NUL.
    Text(&'a str),
    OptionalText(Option<&'a str>),
    Bytes(Option<&'a [u8]>),
    Bool(bool),
    Number(Option<i64>),
    Seconds(Duration),
}

impl SqlArgument<'_> {
    /// Text and bytes become hexadecimal digits, which rules out SQL injection.
    pub(super) fn write(self, sql: &mut String) {
        match self {
            Self::Text(text) | Self::OptionalText(Some(text)) => {
                sql.push_str("convert_from(decode('");
                push_hex(sql, text.as_bytes());
                sql.push_str("', 'hex'), 'UTF8')");
            }
            Self::Bytes(Some(bytes)) => {
                sql.push_str("decode('");
                push_hex(sql, bytes);
                sql.push_str("', 'hex')");
            }
            Self::OptionalText(None) | Self::Bytes(None) | Self::Number(None) => sql.push_str("null"),
            Self::Bool(is_set) => sql.push_str(if is_set { "true" } else { "false" }),
            Self::Number(Some(number)) => drop(write!(sql, "({number})::bigint")),
            Self::Seconds(time) => drop(write!(sql, "{}::float8", time.as_secs_f64())),
        }
    }
}

fn push_hex(sql: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    sql.reserve(2 * bytes.len());
    for byte in bytes {
        for digit in [byte >> 4, byte & 15] {
            sql.push(char::from(DIGITS[usize::from(digit)]));
        }
    }
}
