//! The languages of the service's own texts: statuses, errors and prompts.

/// Enough of a text to tell its language.
const MAX_DETECTED_BYTES: usize = 4_000;
const MAX_LANGUAGE_RANGES: usize = 32;

/// Words that are seldom quoted alone in a sentence of the other language.
const ENGLISH_FUNCTION_WORDS: [&str; 50] = [
    "a",
    "an",
    "and",
    "are",
    "at",
    "be",
    "but",
    "by",
    "can",
    "could",
    "did",
    "do",
    "does",
    "explain",
    "for",
    "from",
    "have",
    "how",
    "i",
    "if",
    "in",
    "into",
    "is",
    "it",
    "me",
    "my",
    "not",
    "of",
    "on",
    "or",
    "please",
    "should",
    "that",
    "the",
    "this",
    "to",
    "translate",
    "was",
    "we",
    "were",
    "what",
    "when",
    "where",
    "which",
    "who",
    "why",
    "will",
    "with",
    "would",
    "you",
];
const CHINESE_FUNCTION_CHARACTERS: &str =
    "的了吗嗎呢吧么麼是在我你您他她它们們这這那哪谁誰什怎请請把被给給让讓和与與跟不没沒有会會能要想用个個为為帮幫";

/// Answers of the model may be in any other language.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Language {
    #[default]
    English,
    Chinese,
}

impl Language {
    /// Chinese for the BCP 47 tags `zh` and `zh-…`, English for any other. Mobile platforms write `zh_CN`.
    #[must_use]
    pub fn from_tag(tag: &str) -> Self {
        let primary = tag.split(['-', '_']).next().unwrap_or_default();
        if primary.eq_ignore_ascii_case("zh") { Self::Chinese } else { Self::English }
    }

    /// The tag of the language itself, without a region.
    #[must_use]
    pub fn tag(self) -> &'static str {
        self.pick("en", "zh")
    }

    /// The language of a text, English if it has no letters.
    #[must_use]
    pub fn detect(text: &str) -> Self {
        Self::of_text(text).unwrap_or_default()
    }

    /// By the majority of the letters. English terms in a Chinese sentence do not count, because they are often longer than the
    /// sentence around them: 什么是 eigenvalue. `None`: the text has no letters.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        let text = &text[..text.floor_char_boundary(MAX_DETECTED_BYTES)];
        let han = text.chars().filter(|c| is_han(*c)).count();
        let (mut words, mut letters, mut has_english_grammar) = (0, 0, false);
        for word in text.split(|c: char| !c.is_alphabetic() || is_han(c)).filter(|word| !word.is_empty()) {
            words += 1;
            letters += word.chars().count();
            has_english_grammar |= ENGLISH_FUNCTION_WORDS.iter().any(|function| function.eq_ignore_ascii_case(word));
        }
        if han + letters == 0 {
            return None;
        }
        let has_chinese_grammar = text.chars().any(|c| CHINESE_FUNCTION_CHARACTERS.contains(c));
        let is_chinese_with_terms = han > 1 && has_chinese_grammar && !has_english_grammar && words <= han;
        Some(if is_chinese_with_terms || han > letters { Self::Chinese } else { Self::English })
    }

    /// The first of our languages by the preference of an `Accept-Language` header (RFC 9110, section 12.5.4).
    #[must_use]
    pub fn from_accept_language(header: &str) -> Option<Self> {
        let range = |range: &str| {
            let mut parts = range.split(';').map(str::trim);
            let tag = parts.next()?;
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok())?;
            let primary = tag.split(['-', '_']).next().unwrap_or_default();
            let language = match primary.to_ascii_lowercase().as_str() {
                "zh" => Self::Chinese,
                "en" | "*" => Self::English,
                _ => return None,
            };
            (weight > 0.0).then_some((language, weight))
        };
        let ranges = header.split(',').take(MAX_LANGUAGE_RANGES).filter_map(range);
        // Of equal weights the first counts.
        ranges.reduce(|best, next| if next.1 > best.1 { next } else { best }).map(|(language, _)| language)
    }

    #[must_use]
    pub fn pick<T>(self, english: T, chinese: T) -> T {
        match self {
            Self::English => english,
            Self::Chinese => chinese,
        }
    }
}

/// Whether a character is a Han ideograph (CJK Unified Ideographs, its extensions and compatibility forms).
#[must_use]
pub fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_language_of_most_of_its_letters() {
        for (text, expected) in [
            ("帮我制定高数复习计划", Language::Chinese),
            ("What does 好 mean?", Language::English),
            ("How do I say 我想预约明天下午的会议 in English?", Language::English),
            ("Translate 你好世界", Language::English),
            ("Define 了", Language::English),
            ("请解释 PostgreSQL 的 MVCC", Language::Chinese),
            ("什么是 eigenvalue？", Language::Chinese),
            ("帮我复习 Python 的 list comprehension", Language::Chinese),
            ("Comment dire 我爱你 en français ?", Language::English),
            ("わたしは学生です", Language::English),
        ] {
            assert_eq!(Language::detect(text), expected, "{text}");
        }
        for text in ["", "42 + 7", "？！", "🙂"] {
            assert_eq!(Language::of_text(text), None, "{text}");
        }
    }

    #[test]
    fn long_text_is_read_in_part() {
        let text = format!("{}{}", "好".repeat(3_000), "word ".repeat(30_000));
        assert_eq!(Language::detect(&text), Language::Chinese);
    }

    #[test]
    fn accept_language_is_ordered_by_its_weights() {
        for (header, expected) in [
            ("zh-CN,zh;q=0.9,en;q=0.8", Some(Language::Chinese)),
            ("en-US,en;q=0.9,zh;q=0.8", Some(Language::English)),
            ("en;q=0.3, zh;q=0.7", Some(Language::Chinese)),
            ("fr, zh;q=0.5, en;q=0.4", Some(Language::Chinese)),
            ("zh;q=0, en", Some(Language::English)),
            ("*", Some(Language::English)),
            ("fr", None),
            ("", None),
            ("zh;q=x", None),
        ] {
            assert_eq!(Language::from_accept_language(header), expected, "{header}");
        }
    }

    #[test]
    fn language_is_chinese_for_every_spelling_of_zh_only() {
        for tag in ["zh", "zh-CN", "ZH-Hant-TW", "zh_CN"] {
            assert_eq!(Language::from_tag(tag), Language::Chinese, "{tag}");
        }
        for tag in ["", "en", "fr-FR", "zha", "中文"] {
            assert_eq!(Language::from_tag(tag), Language::English, "{tag}");
        }
    }
}
