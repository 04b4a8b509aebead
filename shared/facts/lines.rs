//! Drops lines that a user does not type: quoted lines, code, tables, transcripts and letters.

use std::{borrow::Cow, ops::Range, sync::LazyLock};

use regex::Regex;

/// In characters. A longer paragraph counts as pasted.
const MAX_TYPED_PARAGRAPH: usize = 1_000;
/// In columns. Code is indented so far; who types does not indent.
const CODE_INDENTATION: usize = 4;

/// A line that begins like a quotation, code or a log, or has cells. Nothing in it can end that.
pub(super) static FOREIGN_START: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = concat!(
        r"(?i)^\s*(?:[>＞›»|｜│┃║▌▍$#%]|//|/\*|--\s|;;",
        // 2026-11-03 10:01 [12:30] 03/11/26, 12:30
        r"|[\[(]?\d{1,4}[-/.年]\d{1,2}[-/.月]\d{1,4}日?,?\s+\d{1,2}:\d{2}|\[?\d{1,2}:\d{2}(?::\d{2})?\]?\s+\S{1,20}\s*[:：])",
        // A cell behind a bar or a tab, and columns.
        r"|\s[|｜│┃║]\s|[|｜│┃║]\s*$|\S\s*\t\s*\S|\S {3,}\S",
    );
    Regex::new(pattern).ok()
});

/// A line of data or of code, where nothing was removed from it.
pub(super) static FOREIGN_LINE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern =
        concat!(r#"^\s*(?:[{\[<]|"[^"]*"\s*[:：])"#, r"|[;{}]\s*$|(?:^|\s)//|/\*|\*/|[!=]==?|&&|\w\(\)|\w::\w",);
    Regex::new(pattern).ok()
});

/// A participant of a conversation with an assistant, or of a lesson.
pub(super) static ROLE_LINE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = concat!(
        r"(?i)^\s*[*_]*(?:user|human|assistant|system|developer|tool|ai|bot|chatgpt|gpt|claude|gemini|teacher|student|customer|agent|q|a|",
        r"用户|助手|系统|人类|机器人|老师|学生|客服|问|答|甲|乙)[*_]*\s*[:：]",
    );
    Regex::new(pattern).ok()
});

/// A name and a colon. Two such lines in a paragraph make it a dialogue.
pub(super) static DIALOGUE_LINE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^\s*[*_]*[\p{L}][\p{L}\d ._-]{0,19}[*_]*[:：](?:\s*\S|\s*$)").ok());

pub(super) static SALUTATION: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?i)^\s*(?:dear |to whom it may concern|尊敬的|亲爱的|敬爱的)").ok());

pub(super) static SIGN_OFF: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = concat!(
        r"(?i)^\s*(?:(?:(?:with )?(?:best|kind|warm)(?:est)?(?: regards| wishes)?|regards|(?:yours )?sincerely(?: yours)?|",
        r"yours(?: truly| faithfully)?|respectfully|cheers|love)\s*[,.!，。]?\s*$|此致|敬礼|顺颂|祝好|谨上|敬上|祝您)",
    );
    Regex::new(pattern).ok()
});

/// One line for each line of the user, without blank ones.
pub(super) fn own_lines(message: &str) -> String {
    let mut own = String::with_capacity(message.len());
    let lines: Vec<&str> = message.lines().collect();
    let transcript = transcript(&lines);
    let letter = letter(&lines);
    let mut number = 0;
    for paragraph in lines.split(|line| line.trim().is_empty()) {
        let first = number;
        number += paragraph.len() + 1;
        let chars: usize = paragraph.iter().map(|line| line.chars().count() + 1).sum();
        if chars > MAX_TYPED_PARAGRAPH + 1 {
            continue;
        }
        let typed = paragraph.len().min(dialogue_start(paragraph));
        for (index, line) in paragraph[..typed].iter().enumerate() {
            let is_within = |range: &Range<usize>| range.contains(&(first + index));
            let is_foreign = is_foreign_start(line)
                || is_match(&FOREIGN_LINE, line)
                || is_match(&ROLE_LINE, line)
                || is_row(&paragraph[index.saturating_sub(1)..paragraph.len().min(index + 2)], line)
                || is_within(&transcript)
                || is_within(&letter);
            if !is_foreign {
                own.push_str(line.trim());
                own.push('\n');
            }
        }
    }
    own
}

/// Whether a line belongs to a stranger by how it begins, or by its cells.
pub(super) fn is_foreign_start(line: &str) -> bool {
    indentation(line) >= CODE_INDENTATION || is_match(&FOREIGN_START, line)
}

/// Fails closed: without its pattern, which a test excludes, everything matches.
fn is_match(pattern: &LazyLock<Option<Regex>>, line: &str) -> bool {
    pattern.as_ref().is_none_or(|pattern| pattern.is_match(line))
}

/// A speech may have several lines, so all from the first speaker on belongs to the dialogue.
fn dialogue_start(paragraph: &[&str]) -> usize {
    let has_speaker = |line: &&str| is_match(&DIALOGUE_LINE, &mask_times(line)) || is_match(&ROLE_LINE, line);
    if paragraph.iter().filter(|line| has_speaker(line)).count() < 2 {
        return paragraph.len();
    }
    paragraph.iter().position(has_speaker).unwrap_or(paragraph.len())
}

/// The lines from the first participant to the end of the last one's paragraph, if there are two.
fn transcript(lines: &[&str]) -> Range<usize> {
    let mut roles = lines.iter().enumerate().filter(|(_, line)| is_match(&ROLE_LINE, line)).map(|(number, _)| number);
    let (Some(first), Some(last)) = (roles.next(), roles.next_back()) else { return 0..0 };
    let rest = lines[last..].iter().position(|line| line.trim().is_empty());
    first..rest.map_or(lines.len(), |rest| last + rest)
}

/// The lines from a salutation to the name below the sign-off.
fn letter(lines: &[&str]) -> Range<usize> {
    let begin = lines.iter().position(|line| is_match(&SALUTATION, line));
    let end = lines.iter().rposition(|line| is_match(&SIGN_OFF, line));
    match (begin, end) {
        (Some(begin), Some(end)) if begin < end => begin..end + 2,
        _ => 0..0,
    }
}

/// Replaces a colon between digits, as in a time, a ratio or a score, which announces nothing. The length stays.
pub(super) fn mask_times(text: &str) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut before = ' ';
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let after = chars.peek().map_or(' ', |(_, next)| *next);
        if matches!(c, ':' | '：') && before.is_numeric() && after.is_numeric() {
            masked.push_str(&text[masked.len()..at]);
            masked.push(if c == ':' { '-' } else { '－' });
        }
        before = c;
    }
    if masked.is_empty() {
        return Cow::Borrowed(text);
    }
    masked.push_str(&text[masked.len()..]);
    Cow::Owned(masked)
}

fn indentation(line: &str) -> usize {
    let columns = |c: char| match c {
        '\t' => 4,
        '\u{3000}' => 2,
        _ => 1,
    };
    line.chars().take_while(|c| c.is_whitespace()).map(columns).sum()
}

/// A row of a table: as many bars, or commas without a space behind them, as the line above or below has.
fn is_row(neighbours: &[&str], line: &str) -> bool {
    let bars = |line: &str| line.matches(['|', '｜', '│']).count();
    let commas = |line: &str| {
        let next = line.chars().skip(1).chain([' ']);
        line.chars().zip(next).filter(|(c, next)| *c == ',' && !next.is_whitespace()).count()
    };
    let repeats = |count: &dyn Fn(&str) -> usize, min: usize| {
        let own = count(line);
        own >= min && neighbours.iter().filter(|other| count(other) == own).count() > 1
    };
    repeats(&bars, 1) || repeats(&commas, 2)
}
