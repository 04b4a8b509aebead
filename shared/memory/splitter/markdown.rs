//! The blocks of a document that matter for cutting it: headings, fenced code, and all other text.

use super::{MAX_TITLE, line_end};

/// What a block is.
pub(super) enum BlockKind<'a> {
    /// A heading with its level, 1 to 6, and its title.
    Heading(usize, &'a str),
    /// A paragraph, list or table.
    Text,
    /// Fenced code with its fences.
    Code,
}

/// Lines that belong together, as a range of the document.
pub(super) struct Block<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: BlockKind<'a>,
}

/// The blocks of a document: what stands between blank lines, headings and fences.
pub(super) struct Blocks<'a> {
    content: &'a str,
    at: usize,
}

impl<'a> Blocks<'a> {
    pub(super) fn of(content: &'a str) -> Self {
        Self { content, at: 0 }
    }

    /// The line at a position without its end, and where the next one begins; `None` at the end of the document.
    fn line(&self, at: usize) -> Option<(&'a str, usize)> {
        let rest = self.content.get(at..).filter(|rest| !rest.is_empty())?;
        let end = line_end(rest);
        Some((rest[..end].trim_end(), at + end))
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        let (mut start, (mut line, mut end)) = (self.at, self.line(self.at)?);
        while line.is_empty() {
            start = end;
            (line, end) = self.line(start)?;
        }
        let kind = if let Some((level, title)) = atx_heading(line) {
            BlockKind::Heading(level, title)
        } else if let Some(fence) = Fence::open(line) {
            while let Some((line, next)) = self.line(end) {
                end = next;
                if fence.is_closed_by(line) {
                    break;
                }
            }
            BlockKind::Code
        } else if let Some((level, next)) =
            self.line(end).and_then(|(under, next)| Some((setext_level(line, under)?, next)))
        {
            end = next;
            BlockKind::Heading(level, line.trim())
        } else {
            while let Some((line, next)) = self.line(end) {
                if line.is_empty() || atx_heading(line).is_some() || Fence::open(line).is_some() {
                    break;
                }
                end = next;
            }
            BlockKind::Text
        };
        self.at = end;
        Some(Block { start, end, kind })
    }
}

/// A line without an indentation of at most three spaces; `None` for a deeper one, which is code or part of a list.
fn flush_left(line: &str) -> Option<&str> {
    let text = line.trim_start_matches(' ');
    (line.len() - text.len() < 4 && !text.starts_with('\t')).then_some(text)
}

fn atx_heading(line: &str) -> Option<(usize, &str)> {
    let text = flush_left(line)?;
    let title = text.trim_start_matches('#');
    let level = text.len() - title.len();
    if !(1..=6).contains(&level) || !(title.is_empty() || title.starts_with([' ', '\t'])) {
        return None;
    }
    let open = title.trim_end_matches('#');
    Some((level, if open.is_empty() || open.ends_with([' ', '\t']) { open.trim() } else { title.trim() }))
}

/// The level of the heading that a line is, if the line under it is its underline.
fn setext_level(line: &str, under: &str) -> Option<usize> {
    let is_title = flush_left(line)?.starts_with(|c: char| !matches!(c, '-' | '*' | '+' | '>' | '|' | '=' | '_'));
    let under = flush_left(under)?;
    let level = match under.as_bytes() {
        [b'=', b'=', ..] => 1,
        [b'-', b'-', ..] => 2,
        _ => return None,
    };
    // Longer than a heading is a paragraph with a rule below it.
    let is_short = line.chars().nth(MAX_TITLE).is_none();
    (is_title && is_short && under.trim_matches(if level == 1 { '=' } else { '-' }).is_empty()).then_some(level)
}

/// The opening line of a fenced code block.
struct Fence {
    mark: char,
    len: usize,
}

impl Fence {
    fn open(line: &str) -> Option<Self> {
        let text = flush_left(line)?;
        let mark = text.chars().next().filter(|c| matches!(c, '`' | '~'))?;
        let info = text.trim_start_matches(mark);
        let len = text.len() - info.len();
        (len >= 3 && !(mark == '`' && info.contains('`'))).then_some(Self { mark, len })
    }

    fn is_closed_by(&self, line: &str) -> bool {
        flush_left(line).is_some_and(|text| text.len() >= self.len && text.trim_matches(self.mark).is_empty())
    }
}
