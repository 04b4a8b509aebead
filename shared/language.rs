//! The languages that the service itself speaks: statuses, errors and prompts exist in each.

/// A language of the service's own words. Answers may be in any language that the model knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Language {
    /// English; also for every tag that is not Chinese.
    #[default]
    English,
    /// Chinese.
    Chinese,
}

impl Language {
    /// The language for a BCP 47 tag: Chinese for `zh` and `zh-…`, English for anything else.
    ///
    /// `_` is accepted for `-`, because mobile platforms write `zh_CN`.
    #[must_use]
    pub fn from_tag(tag: &str) -> Self {
        let primary = tag.split(['-', '_']).next().unwrap_or_default();
        if primary.eq_ignore_ascii_case("zh") { Self::Chinese } else { Self::English }
    }

    /// The language that a text is written in, as far as the service distinguishes: Chinese if it has a Han character.
    #[must_use]
    pub fn detect(text: &str) -> Self {
        if text.chars().any(is_han) { Self::Chinese } else { Self::English }
    }

    /// Picks the wording of this language.
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
    fn tags_of_chinese_in_any_spelling_mean_chinese_and_all_others_english() {
        for tag in ["zh", "zh-CN", "ZH-Hant-TW", "zh_CN"] {
            assert_eq!(Language::from_tag(tag), Language::Chinese, "{tag}");
        }
        for tag in ["", "en", "fr-FR", "zha", "中文"] {
            assert_eq!(Language::from_tag(tag), Language::English, "{tag}");
        }
    }
}
