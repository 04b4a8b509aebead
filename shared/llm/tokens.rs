//! Token counts: reported by providers, or estimated.

use crate::language::is_han;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    pub prompt: u32,
    /// The part of `prompt` that the provider had in its cache.
    pub cached: u32,
    /// Includes reasoning.
    pub completion: u32,
    /// The part of `completion` that is reasoning.
    pub reasoning: u32,
}

impl TokenUsage {
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            prompt: self.prompt.saturating_add(other.prompt),
            cached: self.cached.saturating_add(other.cached),
            completion: self.completion.saturating_add(other.completion),
            reasoning: self.reasoning.saturating_add(other.reasoning),
        }
    }
}

/// Four characters of an alphabetic script per token, or two thirds of a token per Han character. Real tokenizers differ by up
/// to a third, so the number must be marked as an estimate where it is shown.
#[must_use]
pub fn estimate_tokens(text: &str) -> u32 {
    // ASCII text, such as the English prompt, is counted at a fraction of the cost.
    let chars = text.chars().count() as u64;
    let han = if text.is_ascii() { 0 } else { text.chars().filter(|c| is_han(*c)).count() as u64 };
    let other = chars - han;
    u32::try_from((han * 2).div_ceil(3) + other.div_ceil(4)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chinese_needs_more_tokens_per_character() {
        assert_eq!(estimate_tokens(""), 0);
        assert_eq!(estimate_tokens("four"), 1);
        assert_eq!(estimate_tokens("线性代数学"), 4);
    }
}
