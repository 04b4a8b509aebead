//! JSON lines: reading a file line by line, and a memory from a line.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Read as _},
};

use agent_service::{error::check_text, proto::agent_v1::MemoryInput};
use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::journal::{Progress, hex};

/// Most bytes of a line that is looked at: content and metadata at their limits, escaped.
const MAX_LINE_BYTES: usize = 1_000_000;
/// Most bytes of the content of a memory, by the contract.
const MAX_CONTENT_BYTES: usize = 64_000;

/// The lines of a file, of which one at a time is in memory, and how far they have been read.
pub struct Lines<R> {
    input: R,
    line: Vec<u8>,
    hash: Sha256,
    bytes: u64,
    count: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Self { input, line: Vec::new(), hash: Sha256::new(), bytes: 0, count: 0 }
    }

    /// The next line with its number from 1. Of one that is too long, the beginning.
    pub fn next(&mut self) -> io::Result<Option<(u64, &[u8])>> {
        let limit = u64::try_from(MAX_LINE_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        self.line.clear();
        (&mut self.input).take(limit).read_until(b'\n', &mut self.line)?;
        if self.line.is_empty() {
            return Ok(None);
        }
        self.hash.update(&self.line);
        self.bytes += self.line.len() as u64;
        while self.line.len() > MAX_LINE_BYTES && !self.line.ends_with(b"\n") && self.pass(u64::MAX, true)? != b'\n' {}
        self.count += 1;
        Ok(Some((self.count, &self.line)))
    }

    /// Passes over what has been done, if the file begins with it; else nothing can be said of where it is.
    pub fn pass_over(&mut self, done: &Progress) -> io::Result<bool> {
        let mut last = b'\n';
        while self.bytes < done.bytes {
            let before = self.bytes;
            last = self.pass(done.bytes - before, false)?;
            if self.bytes == before {
                return Ok(false);
            }
        }
        self.count = done.lines;
        // A last line without an end may have become another.
        Ok(self.progress() == *done && (last == b'\n' || self.at_end()?))
    }

    /// Passes over at most so many bytes of the buffer, or a line of it, and gives the last of them; at the end, a line end.
    fn pass(&mut self, most: u64, within_line: bool) -> io::Result<u8> {
        let buffer = self.input.fill_buf()?;
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
        let line_end = buffer[..most].iter().position(|byte| within_line && *byte == b'\n').map(|at| at + 1);
        let passed = &buffer[..line_end.unwrap_or(most)];
        let (last, count) = (passed.last().copied().unwrap_or(b'\n'), passed.len());
        self.hash.update(passed);
        self.bytes += count as u64;
        self.input.consume(count);
        Ok(last)
    }

    pub fn at_end(&mut self) -> io::Result<bool> {
        Ok(self.input.fill_buf()?.is_empty())
    }

    /// How far it has been read.
    pub fn progress(&self) -> Progress {
        Progress { bytes: self.bytes, sha256: hex(&self.hash.clone().finalize()), lines: self.count }
    }
}

/// A memory as it is written in a line, by the names of the contract or those of its JSON form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
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

/// Reads the memory of a line; `None` where the line is blank.
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
    let line = json(line)?;
    check_text("content", &line.content, MAX_CONTENT_BYTES).map_err(|error| error.to_string())?;
    if line.content.trim().is_empty() {
        return Err("content is blank".to_owned());
    }
    Ok(Some(MemoryInput {
        id: line.id.unwrap_or_default(),
        content: line.content,
        source_type: line.source_type.unwrap_or_default(),
        tags: line.tags.unwrap_or_default(),
        created_at: line.created_at.map(|time| timestamp(&time)).transpose()?,
        metadata: line.metadata.unwrap_or_default(),
        supersedes: line.supersedes.unwrap_or_default(),
    }))
}

/// Reads a JSON object, or says at which field or column it is wrong.
fn json(line: &str) -> Result<Line, String> {
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
        // It names the field already.
        message.to_owned()
    })
}

fn timestamp(text: &str) -> Result<prost_types::Timestamp, String> {
    let time: Timestamp = text
        .parse()
        .map_err(|_| "created_at is not an RFC 3339 time with its zone, such as 2026-01-31T08:00:00Z".to_owned())?;
    // A time before 1970 has a negative fraction there and a positive one here.
    let nanos = time.subsec_nanosecond();
    let borrow = i32::from(nanos < 0);
    Ok(prost_types::Timestamp { seconds: time.as_second() - i64::from(borrow), nanos: nanos + borrow * 1_000_000_000 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Lines<io::BufReader<&[u8]>> {
        // A buffer that ends within lines.
        Lines::new(io::BufReader::with_capacity(7, text))
    }

    fn parsed(line: &str) -> MemoryInput {
        parse(line.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_line_has_the_fields_of_a_memory_in_either_spelling() {
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
    fn what_is_wrong_with_a_line_is_told() {
        let long = format!(r#"{{"content": "{}"}}"#, "x".repeat(MAX_CONTENT_BYTES + 1));
        let longer = " ".repeat(MAX_LINE_BYTES + 1);
        for (line, wrong) in [
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
            assert!(error.contains(wrong), "{error} instead of {wrong}");
        }
    }

    #[test]
    fn a_long_line_is_passed_over_and_the_next_one_is_whole() {
        let mut text = vec![b'x'; 3 * MAX_LINE_BYTES];
        text.extend(b"\nnext\nlast");
        let mut lines = lines(&text);
        let (number, line) = lines.next().unwrap().unwrap();
        assert_eq!((number, line.len()), (1, MAX_LINE_BYTES + 1));
        assert_eq!(lines.next().unwrap(), Some((2, &b"next\n"[..])));
        assert_eq!(lines.next().unwrap(), Some((3, &b"last"[..])));
        assert_eq!(lines.next().unwrap(), None);
        let progress = lines.progress();
        assert_eq!((progress.bytes, progress.lines), (text.len() as u64, 3));
        assert_eq!(progress.sha256, hex(&Sha256::digest(&text)));
    }

    #[test]
    fn what_is_done_is_passed_over_only_where_the_file_still_begins_with_it() {
        let progress = |text: &[u8], count: usize| {
            let mut lines = lines(text);
            for _ in 0..count {
                lines.next().unwrap();
            }
            lines.progress()
        };
        let done = progress(b"first\nsecond\nthird\n", 2);
        let mut grown = lines(b"first\nsecond\nanother\n");
        assert!(grown.pass_over(&done).unwrap());
        assert_eq!(grown.next().unwrap(), Some((3, &b"another\n"[..])));
        for changed in [&b"first\nsecand\nthird\n"[..], b"first\n", b""] {
            assert!(!lines(changed).pass_over(&done).unwrap(), "{changed:?}");
        }
        let without_end = progress(b"first\nsec", 2);
        assert!(lines(b"first\nsec").pass_over(&without_end).unwrap());
        assert!(!lines(b"first\nsecond\n").pass_over(&without_end).unwrap());
    }
}
