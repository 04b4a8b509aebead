//! Removes pasted blocks: text between fences, between delimiter lines, and between tags. Linear in the length of the message.
//!
//! A block's text is a stranger's and may contain the marks that close it. So a block ends at the last mark that can close it,
//! or with the message if there is none, and a block that overlaps another one belongs to it.

use std::collections::HashMap;

use super::{count_steps, cut};

/// The shortest fence and the shortest delimiter line.
const MIN_FENCE: usize = 3;
/// HTML's elements without an end tag.
const VOID_ELEMENTS: [&str; 8] = ["br", "hr", "img", "input", "link", "meta", "source", "wbr"];

#[derive(Debug)]
struct Marker {
    start: usize,
    end: usize,
    kind: MarkerKind,
}

#[derive(Debug)]
enum MarkerKind {
    /// Opens and closes alike. A longer fence of the same character closes it, a shorter one does not.
    Fence {
        mark: char,
        length: usize,
    },
    Open {
        name: String,
        /// Whether it may stand without an end tag, and then has no text.
        is_void: bool,
        /// False for `[note]` and `a <b and c`, which are tags only if an end tag follows.
        is_certain: bool,
    },
    Close {
        name: String,
    },
    /// A forwarded mail, which has no end.
    Forwarded,
}

pub(super) fn remove_blocks(text: &str) -> String {
    let markers = markers(text);
    let mut last_close: HashMap<&str, usize> = HashMap::new();
    for marker in &markers {
        if let MarkerKind::Close { name } = &marker.kind {
            last_close.insert(name, marker.end);
        }
    }
    let mut blocks = Vec::new();
    let mut last_end = 0;
    for (index, marker) in markers.iter().enumerate() {
        if marker.start < last_end {
            continue;
        }
        let mut start = marker.start;
        let end = match &marker.kind {
            MarkerKind::Fence { mark, length } => fence_end(&markers[index..], *mark, *length).unwrap_or(text.len()),
            MarkerKind::Open { name, is_void, is_certain } => {
                match last_close.get(name.as_str()).copied().filter(|close| *close > marker.start) {
                    Some(close) => with_inner_tags(&markers[index..], close, &last_close),
                    None if !is_certain => continue,
                    None if *is_void => marker.end,
                    None => text.len(),
                }
            }
            MarkerKind::Forwarded => text.len(),
            // The beginning of the block is missing, so its line belongs to it.
            MarkerKind::Close { .. } => {
                count_steps(start - last_end);
                start = text[last_end..start].rfind('\n').map_or(last_end, |end| last_end + end + 1);
                marker.end
            }
        };
        blocks.push(start..end);
        last_end = end;
    }
    cut(text, blocks)
}

/// `None`: an odd number of fences leaves the last one open.
fn fence_end(markers: &[Marker], mark: char, length: usize) -> Option<usize> {
    count_steps(markers.len());
    let is_same = |marker: &&Marker| match marker.kind {
        MarkerKind::Fence { mark: other, length: longer } => other == mark && longer >= length,
        _ => false,
    };
    let (count, end) = markers.iter().filter(is_same).fold((0_usize, 0), |(count, _), marker| (count + 1, marker.end));
    count.is_multiple_of(2).then_some(end)
}

/// The end of a block that ends at `end` at least, and contains the whole of every tag that opens in it.
fn with_inner_tags(markers: &[Marker], mut end: usize, last_close: &HashMap<&str, usize>) -> usize {
    for marker in markers {
        count_steps(1);
        if marker.start >= end {
            break;
        }
        if let MarkerKind::Open { name, .. } = &marker.kind {
            end = end.max(last_close.get(name.as_str()).copied().unwrap_or_default());
        }
    }
    end
}

fn markers(text: &str) -> Vec<Marker> {
    let mut found = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let (start, end) = (offset, offset + line.len());
        offset = end;
        if is_delimiter_line(line) {
            // Of any character and length: what encloses a text need not look alike above and below.
            let is_mail = ["message", "mail", "邮件"].iter().any(|word| line.to_lowercase().contains(word));
            let rule = MarkerKind::Fence { mark: '-', length: MIN_FENCE };
            found.push(Marker { start, end, kind: if is_mail { MarkerKind::Forwarded } else { rule } });
            continue;
        }
        let indented = end - line.trim_start().len();
        let mut chars = line.char_indices().peekable();
        while let Some((at, c)) = chars.next() {
            let at = start + at;
            if matches!(c, '`' | '~' | '"' | '\'') {
                let mut length = 1;
                while chars.next_if(|(_, next)| *next == c).is_some() {
                    length += 1;
                }
                // In the middle of a line, ~~~ is a tone of voice.
                let is_fence = c != '~' || at == indented;
                if length >= MIN_FENCE && is_fence {
                    found.push(Marker { start: at, end: at + length, kind: MarkerKind::Fence { mark: c, length } });
                }
            } else if closing_bracket(c).is_some()
                && let Some(tag) = tag_at(text, at)
            {
                found.push(tag);
            } else if c == '-' && text[at..].starts_with("-->") {
                found.push(Marker { start: at, end: at + 3, kind: MarkerKind::Close { name: "!--".to_owned() } });
            }
        }
    }
    // An arrow is no end of a comment.
    let is_comment = |marker: &Marker| matches!(&marker.kind, MarkerKind::Open { name, .. } if name == "!--");
    if !found.iter().any(is_comment) {
        found.retain(|marker| !matches!(&marker.kind, MarkerKind::Close { name } if name == "!--"));
    }
    found
}

/// `-----`, `===`, `--- Forwarded message ---`, `------原始邮件------`.
fn is_delimiter_line(line: &str) -> bool {
    let is_rule =
        |c: char| matches!(c, '-' | '=' | '*' | '_' | '#' | '+' | '<' | '>' | '—' | '─' | '━' | '═' | '－' | '＝');
    let line = line.trim();
    let rule = |chars: &mut dyn Iterator<Item = char>| chars.take_while(|c| is_rule(*c)).count();
    // With a bar it is the second row of a table.
    rule(&mut line.chars()) >= MIN_FENCE && rule(&mut line.chars().rev()) >= MIN_FENCE && !line.contains('|')
}

const fn closing_bracket(open: char) -> Option<char> {
    Some(match open {
        '<' => '>',
        '＜' => '＞',
        '[' => ']',
        '［' => '］',
        '【' => '】',
        '〈' => '〉',
        '《' => '》',
        '{' => '}',
        _ => return None,
    })
}

/// `start` is the index of an opening bracket.
fn tag_at(text: &str, start: usize) -> Option<Marker> {
    let open = text[start..].chars().next()?;
    let close = closing_bracket(open)?;
    let inner = start + open.len_utf8();
    let rest = &text[inner..];
    if open == '<' && rest.starts_with("!--") {
        let kind = MarkerKind::Open { name: "!--".to_owned(), is_void: false, is_certain: true };
        return Some(Marker { start, end: inner + 3, kind });
    }
    let slash = rest.trim_start_matches(['/', '／']);
    let name_start = slash.trim_start();
    let is_close = slash.len() < rest.len();
    if !is_close && name_start.len() < rest.len() {
        return None;
    }
    let is_name = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ':' | '.');
    let name = name_start.split(|c| !is_name(c)).next().filter(|name| name.starts_with(char::is_alphabetic))?;
    let after = &name_start[name.len()..];
    let after_start = text.len() - after.len();
    count_steps(rest.len() - after.len());
    let name = name.to_lowercase();
    if is_close {
        let end = tag_end(after, open, close).map_or(after_start, |end| after_start + end);
        return Some(Marker { start, end, kind: MarkerKind::Close { name } });
    }
    let is_delimited = after.starts_with(|c: char| c.is_whitespace() || c == close || matches!(c, '/' | '／' | '='));
    // `<https://example.com>` is a link.
    if !is_delimited || after.starts_with("//") {
        return None;
    }
    let is_angle = matches!(open, '<' | '＜');
    let end = if is_angle { attributes_end(after, open, close).map(|end| after_start + end) } else { None };
    let is_void = end.is_some_and(|end| {
        VOID_ELEMENTS.contains(&name.as_str()) || text[..end - close.len_utf8()].ends_with(['/', '／'])
    });
    let kind = MarkerKind::Open { name, is_void, is_certain: end.is_some() };
    Some(Marker { start, end: end.unwrap_or(after_start), kind })
}

/// The end of a start tag, behind `close`. Quoted values may contain anything, over any number of lines.
///
/// Stops at another tag outside of quotes. That keeps all calls for a message linear together: of the calls that have passed a
/// position, each is outside of quotes or inside one of two kinds, a quotation mark permutes these three states, and a new call
/// begins outside. So at most two calls go beyond the next tag.
fn attributes_end(attributes: &str, open: char, close: char) -> Option<usize> {
    let mut quote = None;
    for (at, c) in attributes.char_indices() {
        count_steps(1);
        match (quote, c) {
            (None, '"' | '\'') => quote = Some(c),
            (None, c) if c == close => return Some(at + c.len_utf8()),
            (None, '<' | '＜') => break,
            (Some(mark), c) if c == mark => quote = None,
            _ => {}
        }
    }
    // A quotation mark without its partner is no quotation mark.
    tag_end(attributes, open, close)
}

/// The end of a tag without quoted values, behind `close`. Stops at the next bracket of its kind: each part of a message is
/// scanned at most once for each kind.
fn tag_end(rest: &str, open: char, close: char) -> Option<usize> {
    let plain = rest.split([open, '<', '＜']).next().unwrap_or_default();
    count_steps(plain.len());
    plain.find(close).map(|at| at + close.len_utf8())
}
