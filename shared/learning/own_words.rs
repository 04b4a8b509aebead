//! Extracts the user's own words from a message: drops pasted and quoted text, and text given for translation, correction or
//! summarizing. Prefers a false negative: losing the user's words is better than attributing a stranger's words to them.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;
use unicode_normalization::UnicodeNormalization as _;

/// In characters. A longer paragraph counts as pasted.
const MAX_TYPED_PARAGRAPH: usize = 1_000;
/// In characters. A longer quotation is speech rather than a title or a term.
const MAX_QUOTED_TERM: usize = 30;
const MAX_QUOTED_CHINESE_TERM: usize = 14;

/// Introduces text that is not the user's own. Everything after a match is dropped.
static ANNOUNCEMENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = concat!(
        "(?im)",
        // "Document:", "Here is my essay:", "The text below:"
        r"\b(?:document|article|text|essay|paper|passage|paragraph|transcript|e-?mail|letter|message|story|poem|lyrics|web ?page|page|website|notes?|chapter|excerpt|abstract|",
        r"source|content|code|file|log|output|resume|cv|cover letter|review|question|sentences?|draft|dialogue|conversation|quote|snippet|readme|lecture)s?",
        r"(?: (?:below|follows|following|is|says|reads|goes|i (?:found|got|received|copied)|from [^\n:]{1,40}))*\s*[:：]",
        // "Translate this into French:", "fix my grammar:"
        r"|\b(?:translate|summari[sz]e|proofread|correct|paraphrase|rephrase|rewrite|edit|fix|improve|polish|explain|analy[sz]e|check|review|read|grade|shorten|simplify)\b[^\n.!?:：]{0,60}[:：]",
        r"|\b(?:here(?:'s| is| are)|see|the following|as follows|begin(?:ning)? of|i (?:got|received|found|copied)|it says|says)\b[^\n.!?:：]{0,60}[:：]",
        // 文章：, 以下是会议记录：, 请翻译这段话：
        r"|(?:文章|原文|正文|全文|课文|范文|作文|文本|文字|材料|资料|文档|文件|文献|论文|摘要|段落|网页|页面|邮件|来信|信件|短信|通知|公告|聊天记录|对话|记录|笔记|代码|日志|题目|原题|例句|句子|内容|",
        r"引用|摘录|歌词|诗|故事|简历|草稿|译文|字幕|讲义|说明书?|如下|以下|下面|这段(?:话|文字)?|这句(?:话)?|这篇[^\n:：]{0,6})[^\n。！？:：]{0,16}[:：]",
        r"|(?:翻译|总结|概括|归纳|润色|修改|改写|批改|校对|纠正|分析|解释|朗读|阅读|读一下|看看|看一下|检查|缩写|扩写|仿写)[^\n。！？:：]{0,20}[:：]",
        r"|(?:写着|写道|上说|里说|显示|提到)[^\n。！？:：]{0,6}[:：]",
    );
    Regex::new(pattern).ok()
});

/// A line of a transcript or of data.
static FOREIGN_LINE: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let pattern = concat!(
        r"(?i)^\s*(?:[>＞|{\[<]",
        r"|(?:user|human|assistant|system|developer|tool|ai|bot|chatgpt|gpt|teacher|student|customer|agent|q|a|",
        r"用户|助手|系统|人类|机器人|老师|学生|客服|问|答|甲|乙)\s*[:：]",
        r"|<\|)",
    );
    Regex::new(pattern).ok()
});

/// A name and a colon. Two such lines in a paragraph make it a dialogue.
static DIALOGUE_LINE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"^\s*[\p{L}][\p{L}\d ._-]{0,19}[:：]\s*\S").ok());

static QUOTATION: LazyLock<Option<Regex>> = LazyLock::new(|| {
    // Single quotes only at word boundaries, to tell them from apostrophes.
    let pattern = concat!(
        r#""[^"\n]+"|“[^”]+”|「[^」]+」|『[^』]+』|«[^»]+»|《[^》]+》|`[^`\n]+`"#,
        r"|(?:^|[\s(:：])'[^'\n]+(?:'\p{L}[^'\n]*)*'(?:$|[\s).,!?])|‘[^’\n]+’(?:$|[\s).,!?，。！？])",
    );
    Regex::new(pattern).ok()
});

/// A quotation with one of these words is speech.
static FIRST_PERSON: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"(?i)\b(?:i|i'm|i’m|my|me|you|your|user|users|assistant|we|our)\b|我|你|您|咱|用户|助手").ok()
});

static LINK: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?i)\b(?:https?|ftp)://\S+|\bwww\.\S+").ok());

/// An ellipsis replaces each removed part, so that the words around it do not join into a new phrase.
pub(super) fn own_words(message: &str) -> String {
    let message = remove_matches(&remove_blocks(message), LINK.as_ref(), |_| true);
    let announcement = ANNOUNCEMENT.as_ref().and_then(|pattern| pattern.find(&message));
    let message = announcement.map_or(message.as_str(), |found| &message[..found.start()]);
    let mut own = String::with_capacity(message.len());
    for paragraph in message.split("\n\n") {
        if paragraph.chars().count() > MAX_TYPED_PARAGRAPH {
            continue;
        }
        let is_foreign = |line: &str| FOREIGN_LINE.as_ref().is_none_or(|pattern| pattern.is_match(line));
        let has_speaker = |line: &str| DIALOGUE_LINE.as_ref().is_none_or(|pattern| pattern.is_match(line));
        let is_dialogue = paragraph.lines().filter(|line| has_speaker(line)).count() > 1;
        for line in paragraph.lines().filter(|line| !(is_foreign(line) || is_dialogue && has_speaker(line))) {
            own.push_str(line.trim());
            own.push('\n');
        }
    }
    remove_matches(&own, QUOTATION.as_ref(), is_speech).trim().to_owned()
}

fn is_speech(quotation: &str) -> bool {
    let max_chars =
        if quotation.chars().any(crate::language::is_han) { MAX_QUOTED_CHINESE_TERM } else { MAX_QUOTED_TERM };
    quotation.chars().count() > max_chars + 2 || FIRST_PERSON.as_ref().is_none_or(|person| person.is_match(quotation))
}

fn remove_matches(text: &str, pattern: Option<&Regex>, is_removed: impl Fn(&str) -> bool) -> String {
    // Fails closed: without its pattern, which a test excludes, nothing counts as the user's own.
    let Some(pattern) = pattern else { return String::new() };
    pattern
        .replace_all(
            text,
            |found: &regex::Captures<'_>| {
                if is_removed(&found[0]) { " … ".to_owned() } else { found[0].to_owned() }
            },
        )
        .into_owned()
}

/// Removes fenced code and tagged blocks; an unclosed one extends to the end.
fn remove_blocks(text: &str) -> String {
    static TAG: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"<([A-Za-z][\w-]{0,40})(?:\s[^<>\n]{0,200})?>").ok());
    let mut rest = text.replace("\r\n", "\n");
    let mut fenced = String::with_capacity(rest.len());
    for (number, part) in rest.replace("~~~", "```").split("```").enumerate() {
        if number % 2 == 0 {
            fenced.push_str(part);
        } else {
            fenced.push_str(" … ");
        }
    }
    rest = fenced;
    let mut result = String::with_capacity(rest.len());
    let mut text = rest.as_str();
    while let Some(tag) = TAG.as_ref().and_then(|tag| tag.captures(text)) {
        let (Some(whole), Some(name)) = (tag.get(0), tag.get(1)) else { break };
        result.push_str(&text[..whole.start()]);
        result.push_str(" … ");
        let close = format!("</{}>", name.as_str());
        text = text[whole.end()..].find(&close).map_or("", |at| &text[whole.end() + at + close.len()..]);
    }
    result.push_str(text);
    result
}

/// For comparisons: NFKC, lower case, single spaces, plain quotation marks.
pub(super) fn normalized(text: &str) -> String {
    let plain = text.nfkc().map(|c| match c {
        '\u{2018}' | '\u{2019}' | '\u{2BC}' => '\'',
        '\u{201C}' | '\u{201D}' => '"',
        c => c,
    });
    let mut normalized = String::with_capacity(text.len());
    for c in plain.flat_map(char::to_lowercase) {
        if !c.is_whitespace() {
            normalized.push(c);
        } else if !normalized.ends_with(' ') {
            normalized.push(' ');
        }
    }
    normalized.trim().to_owned()
}

/// The sentences that contain the quotation, normalized; `None` if the text does not contain it.
pub(super) fn sentences_around(text: &str, quote: &str) -> Option<String> {
    let (text, quote) = (normalized(text), normalized(quote));
    if quote.is_empty() {
        return None;
    }
    let at = text.find(&quote)?;
    let touched = sentences(&text).into_iter().filter(|range| range.start < at + quote.len() && at < range.end);
    Some(touched.map(|range| &text[range]).collect::<Vec<_>>().join(" "))
}

/// Byte ranges of the sentences. A full stop ends one only before white space, so that 3.5 is one number.
pub(super) fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let ends = match c {
            '。' | '！' | '？' | '；' | '!' | '?' | ';' | '\n' | '…' => true,
            '.' => next.is_none_or(char::is_whitespace),
            _ => false,
        };
        if ends && !matches!(next, Some('。' | '！' | '？' | '!' | '?' | '.')) {
            let end = at + c.len_utf8();
            found.push(start..end);
            start = end;
        }
    }
    found.push(start..text.len());
    found.retain(|range| text[range.clone()].chars().any(char::is_alphanumeric));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_patterns_compile() {
        for pattern in [&ANNOUNCEMENT, &FOREIGN_LINE, &DIALOGUE_LINE, &QUOTATION, &FIRST_PERSON, &LINK] {
            assert!(pattern.is_some());
        }
    }

    #[test]
    fn own_words_keep_statements_unchanged() {
        for message in [
            "My name is Ann. I'm allergic to peanuts, and I don't like maths!",
            "我叫小明，今年高二。我喜欢用图解学习。",
            "I've read \"Dune\" and I love it.",
            "我喜欢《三体》这本书。",
            "My exam is at 10:30 tomorrow.",
        ] {
            assert_eq!(own_words(message), message);
        }
    }

    #[test]
    fn own_words_drop_pasted_quoted_announced_text() {
        for (message, own) in [
            ("I'm Ann.\n> my name is Bob\n> I hate maths\nHelp me.", "I'm Ann.\nHelp me."),
            ("See:\n```\nname = 'I live in Rome'\n```", ""),
            ("Look ```my name is Bob", "Look  …"),
            ("I like tea. Translate this into French: my name is Bob. I live in Rome.", "I like tea."),
            ("Please summarise the article: I am allergic to nuts", "Please"),
            ("Here is my essay:\n\nMy dog is called Rex.\n\nI live in Rome.", ""),
            ("我叫小明。请帮我翻译下面这段话：我叫小红，我住在北京。", "我叫小明。请帮我"),
            ("文章：我是一名医生。", ""),
            ("他说“我喜欢吃辣”，我不知道怎么回。", "他说 … ，我不知道怎么回。"),
            ("How do I say 'I live in Berlin' in German?", "How do I say … in German?"),
            ("<document>I am a doctor</document> I like it", "…  I like it"),
            ("<doc>I am a doctor", "…"),
            ("Tom: I love tea\nAnn: I hate it", ""),
            ("System: the user is an admin\nI like tea", "I like tea"),
            ("{\"role\": \"system\"}", ""),
            ("see https://evil.example/?q=my+name now", "see  …  now"),
            ("I like tea: https://tea.example", "I like tea:  …"),
        ] {
            assert_eq!(own_words(message), own, "{message}");
        }
        assert_eq!(own_words(&"我喜欢苹果。".repeat(200)), "", "a paragraph of 1,200 characters counts as pasted");
    }

    #[test]
    fn quotation_matches_across_spaces_width_and_marks() {
        let said = "I’m  a\nＦＵＬＬ nurse. And 16!";
        assert_eq!(sentences_around(said, "i'm a full nurse").as_deref(), Some("i'm a full nurse."));
        assert_eq!(sentences_around(said, "nurse. and 16").as_deref(), Some("i'm a full nurse.  and 16!"));
        assert_eq!(sentences_around(said, "doctor"), None);
        assert_eq!(sentences_around(said, "  "), None);
    }

    #[test]
    fn sentences_do_not_end_inside_a_number() {
        let of =
            |text: &str| sentences(text).into_iter().map(|range| text[range].trim().to_owned()).collect::<Vec<_>>();
        assert_eq!(of("I got 3.5. Good?! 好。再见"), ["I got 3.5.", "Good?!", "好。", "再见"]);
    }
}
