//! JSON Lines: reads a file line by line and parses memories.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read as _},
};

use agent_service::{
    error::{InvalidArgument, Problem, check_text},
    link::is_link,
    memory::LINK_KEY,
    proto::agent_v1::MemoryInput,
};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::journal::{ImportedPrefix, hex};

/// Content and metadata at their limits fit, escaped.
const MAX_LINE_BYTES: usize = 1_000_000;
/// By the API's contract.
const MAX_CONTENT_BYTES: usize = 64_000;

/// Reads a file with one line in memory, and tracks the prefix that has been read.
pub struct LineReader<R> {
    input: R,
    line: Vec<u8>,
    hash: Sha256,
    bytes: u64,
    count: u64,
}

impl<R: BufRead> LineReader<R> {
    pub fn new(input: R) -> Self {
        Self { input, line: Vec::new(), hash: Sha256::new(), bytes: 0, count: 0 }
    }

    /// The next line with its number, from 1. A line of more than [`MAX_LINE_BYTES`] is truncated to one byte more.
    pub fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        self.line.clear();
        (&mut self.input).take(limit).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        self.hash.update(&self.line);
        self.bytes += self.line.len() as u64;
        while self.line.len() > MAX_LINE_BYTES && !self.line.ends_with(b"\n") && self.consume(u64::MAX, true)? != b'\n'
        {
        }
        self.count += 1;
        Ok(Some((self.count, &self.line)))
    }

    /// Skips the imported prefix and returns whether the file still begins with it; if not, the position is undefined.
    pub fn skip_imported(&mut self, done: &ImportedPrefix) -> io::Result<bool> {
        let mut last = b'\n';
        while self.bytes < done.bytes {
            let before = self.bytes;
            last = self.consume(done.bytes - before, false)?;
            if self.bytes == before {
                return Ok(false);
            }
        }
        self.count = done.lines;
        // A last line without a line end may have been continued.
        Ok(self.prefix() == *done && (last == b'\n' || self.at_end()?))
    }

    /// Consumes at most `max` bytes of the buffer, up to a line end if `within_line`, and returns the last one. At the end of the
    /// file it returns a line end.
    fn consume(&mut self, max: u64, within_line: bool) -> io::Result<u8> {
        let buffer = self.input.fill_buf()?;
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(buffer.len());
        let line_end = buffer[..max].iter().position(|byte| within_line && *byte == b'\n').map(|at| at + 1);
        let consumed = &buffer[..line_end.unwrap_or(max)];
        let (last, count) = (consumed.last().copied().unwrap_or(b'\n'), consumed.len());
        self.hash.update(consumed);
        self.bytes += count as u64;
        self.input.consume(count);
        Ok(last)
    }

    pub fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.input.fill_buf()?.is_empty())
    }

    pub fn prefix(&self) -> ImportedPrefix {
        ImportedPrefix { bytes: self.bytes, sha256: hex(&self.hash.clone().finalize()), lines: self.count }
    }
}

/// Fields have their proto names or the names of proto's JSON mapping.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemoryLine {
    content: String,
    id: Option<String>,
    #[serde(alias = "sourceType")]
    source_type: Option<String>,
    tags: Option<Vec<String>>,
    #[serde(alias = "createdAt")]
    created_at: Option<String>,
    metadata: Option<BTreeMap<String, String>>,
    supersedes: Option<Vec<String>>,
}

/// Returns `None` for a blank line.
pub fn parse(line: &[u8]) -> Result<Option<MemoryInput>, String> {
    if line.len() > MAX_LINE_BYTES {
        return Err(format!("longer than {MAX_LINE_BYTES} bytes"));
    }
    let line = str::from_utf8(line).map_err(|_| "not UTF-8")?.trim_start_matches('\u{FEFF}').trim();
    if line.is_empty() {
        return Ok(None);
    }
    if !line.starts_with('{') {
        return Err(r#"not a JSON object on one line, such as {"content": "…"}"#.to_owned());
    }
    let line = parse_json(line)?;
    check_text("content", &line.content, MAX_CONTENT_BYTES).map_err(|error| error.to_string())?;
    if line.content.trim().is_empty() {
        return Err("content is blank".to_owned());
    }
    if line.metadata.iter().flatten().any(|(key, value)| key == LINK_KEY && !is_link(value)) {
        return Err(InvalidArgument::new(format!("metadata.{LINK_KEY}"), Problem::NotALink).to_string());
    }
    Ok(Some(MemoryInput {
        id: line.id.unwrap_or_default(),
        content: line.content,
        source_type: line.source_type.unwrap_or_default(),
        tags: line.tags.unwrap_or_default(),
        created_at: line.created_at.map(|time| parse_timestamp(&time)).transpose()?,
        metadata: line.metadata.unwrap_or_default(),
        supersedes: line.supersedes.unwrap_or_default(),
    }))
}

/// Errors name the field or the column.
fn parse_json(line: &str) -> Result<MemoryLine, String> {
    let mut json = serde_json::Deserializer::from_str(line);
    let (at, error) = match serde_path_to_error::deserialize(&mut json) {
        Ok(line) => match json.end() {
            Ok(()) => return Ok(line),
            Err(error) => (String::new(), error),
        },
        Err(error) => (error.path().to_string(), error.into_inner()),
    };
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    Err(if !error.is_data() {
        format!("{message} (column {})", error.column())
    } else if message.starts_with("invalid") {
        format!("{at}: {message}")
    } else {
        // The message names the field already.
        message.to_owned()
    })
}

fn parse_timestamp(text: &str) -> Result<prost_types::Timestamp, String> {
    let time: Timestamp = text
        .parse()
        .map_err(|_| "created_at is not an RFC 3339 time with its zone, such as 2026-01-31T08:00:00Z".to_owned())?;
    // Before 1970, jiff's fraction is negative and protobuf's is positive.
    let nanos = time.subsec_nanosecond();
    let borrow = i32::from(nanos < 0);
    Ok(prost_types::Timestamp { seconds: time.as_second() - i64::from(borrow), nanos: nanos + borrow * 1_000_000_000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> LineReader<io::BufReader<&[u8]>> {
        // The buffer is shorter than a line.
        LineReader::new(io::BufReader::with_capacity(7, text))
    }

    fn parsed(line: &str) -> MemoryInput {
        parse(line.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn memory_fields_parse_in_either_spelling() {
        let snake = parsed(
            r#"{"content": "特征值", "id": "7", "source_type": "chat", "tags": ["math"],
            "created_at": "2026-01-31T08:00:00.5+08:00", "metadata": {"speaker": "Ann"}, "supersedes": ["6"]}"#,
        );
        assert_eq!((snake.content.as_str(), snake.id.as_str(), snake.source_type.as_str()), ("特征值", "7", "chat"));
        assert_eq!((&snake.tags[..], &snake.supersedes[..]), (&["math".to_owned()][..], &["6".to_owned()][..]));
        assert_eq!(snake.metadata["speaker"], "Ann");
        assert_eq!(snake.created_at, Some(prost_types::Timestamp { seconds: 1_769_817_600, nanos: 500_000_000 }));
        let camel =
            parsed(r#"{"content": "x", "sourceType": "chat", "createdAt": "1969-12-31T23:59:59.25Z", "id": null}"#);
        assert_eq!((camel.source_type.as_str(), camel.id.as_str()), ("chat", ""));
        assert_eq!(camel.created_at, Some(prost_types::Timestamp { seconds: -1, nanos: 250_000_000 }));
        assert_eq!(parsed("\u{FEFF}{\"content\": \"x\"}\r\n").content, "x");
        assert_eq!(parse(b" \r\n"), Ok(None));
    }

    #[test]
    fn invalid_line_is_rejected_with_reason() {
        let long = format!(r#"{{"content": "{}"}}"#, "x".repeat(MAX_CONTENT_BYTES + 1));
        let longer = " ".repeat(MAX_LINE_BYTES + 1);
        for (line, expected) in [
            (&b"{\"content\": \"\xff\"}"[..], "not UTF-8"),
            (b"[\"content\"]", "not a JSON object"),
            (b"hello", "not a JSON object"),
            (b"{\"content\": \"x\"", "EOF while parsing an object (column 15)"),
            (b"{\"content\": \"x\"} {}", "trailing characters (column 18)"),
            (b"{\"content\": \"\\x\"}", "invalid escape (column "),
            (b"{\"text\": \"x\"}", "unknown field `text`, expected one of `content`"),
            (b"{\"id\": \"x\"}", "missing field `content`"),
            (b"{\"content\": 3}", "content: invalid type: integer `3`, expected a string"),
            (b"{\"content\": \"x\", \"metadata\": {\"page\": 3}}", "metadata.page: invalid type: integer `3`"),
            (b"{\"content\": \"x\", \"tags\": \"math\"}", "tags: invalid type: string \"math\", expected a sequence"),
            (b"{\"content\": \" \"}", "content is blank"),
            (b"{\"content\": \"\\u0000\"}", "content contains a NUL"),
            (b"{\"content\": \"x\", \"created_at\": \"2026-01-31 08:00\"}", "created_at is not an RFC 3339 time"),
            (b"{\"content\": \"x\", \"created_at\": \"yesterday\"}", "created_at is not an RFC 3339 time"),
            (long.as_bytes(), "content is longer than 64000 bytes"),
            (longer.as_bytes(), "longer than 1000000 bytes"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{error} instead of {expected}");
        }
    }

    #[test]
    fn long_line_is_skipped_and_next_line_is_complete() {
        let mut text = vec![b'x'; 3 * MAX_LINE_BYTES];
        text.extend(b"\nnext\nlast");
        let mut lines = lines(&text);
        let (number, line) = lines.next().unwrap().unwrap();
        assert_eq!((number, line.len()), (1, MAX_LINE_BYTES + 1));
        assert_eq!(lines.next().unwrap(), Some((2, &b"next\n"[..])));
        assert_eq!(lines.next().unwrap(), Some((3, &b"last"[..])));
        assert_eq!(lines.next().unwrap(), None);
        let prefix = lines.prefix();
        assert_eq!((prefix.bytes, prefix.lines), (text.len() as u64, 3));
        assert_eq!(prefix.sha256, hex(&Sha256::digest(&text)));
    }

    #[test]
    fn imported_prefix_is_skipped_only_if_unchanged() {
        let prefix = |text: &[u8], count: usize| {
            let mut lines = lines(text);
            for _ in 0..count {
                lines.next().unwrap();
            }
            lines.prefix()
        };
        let done = prefix(b"first\nsecond\nthird\n", 2);
        let mut grown = lines(b"first\nsecond\nanother\n");
        assert!(grown.skip_imported(&done).unwrap());
        assert_eq!(grown.next().unwrap(), Some((3, &b"another\n"[..])));
        for changed in [&b"first\nsecand\nthird\n"[..], b"first\n", b""] {
            assert!(!lines(changed).skip_imported(&done).unwrap(), "{changed:?}");
        }
        let without_end = prefix(b"first\nsec", 2);
        assert!(lines(b"first\nsec").skip_imported(&without_end).unwrap());
        assert!(!lines(b"first\nsecond\n").skip_imported(&without_end).unwrap());
    }
}
