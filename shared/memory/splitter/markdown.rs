//! Blocks that the splitter distinguishes.

pub(super) const MAX_TITLE_CHARS: usize = 120;

pub(super) enum BlockKind<'a> {
    /// The level, 1 to 6, and the title.
    Heading(usize, &'a str),
    Text,
    Code,
}

pub(super) struct Block<'a> {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) kind: BlockKind<'a>,
}

pub(super) struct Blocks<'a> {
    content: &'a str,
    at: usize,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(content: &'a str) -> Self {
        Self { content, at: 0 }
    }

    /// Returns the start of the next line as well.
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

/// `None` for an indentation of more than three spaces, which is code or part of a list.
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

/// `under` may be the underline of a heading.
fn setext_level(line: &str, under: &str) -> Option<usize> {
    let is_title = flush_left(line)?.starts_with(|c: char| !matches!(c, '-' | '*' | '+' | '>' | '|' | '=' | '_'));
    let under = flush_left(under)?;
    let level = match under.as_bytes() {
        [b'=', b'=', ..] => 1,
        [b'-', b'-', ..] => 2,
        _ => return None,
    };
    // A longer line is a paragraph with a rule below it.
    let is_short = line.chars().nth(MAX_TITLE_CHARS).is_none();
    (is_title && is_short && under.trim_matches(if level == 1 { '=' } else { '-' }).is_empty()).then_some(level)
}

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

pub(super) fn line_end(text: &str) -> usize {
    text.find('\n').map_or(text.len(), |at| at + 1)
}
