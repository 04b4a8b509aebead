//! Tokens: as providers count them, or estimated where they do not tell.

use crate::language::is_han;

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    /// Tokens of the question with everything around it.
    pub prompt: u32,
    /// Of these, those that the provider had in its cache.
    pub cached: u32,
    /// Tokens of the answer, thought included.
    pub completion: u32,
    /// Of these, those of thought.
    pub reasoning: u32,
}

impl TokenUsage {
    /// Both together.
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

/// Estimates the tokens of a text: about four characters of an alphabetic script each, or two thirds of a token for a
/// Han character. Real tokenisers differ by up to a third, so whoever shows it marks it as an estimate.
#[must_use]
pub fn estimate_tokens(text: &str) -> u32 {
    // Text without a Han character, such as the English prompt, is counted at a fraction of the cost.
    let chars = text.chars().count() as u64;
    let han = if text.is_ascii() { 0 } else { text.chars().filter(|c| is_han(*c)).count() as u64 };
    let other = chars - han;
    u32::try_from((han * 2).div_ceil(3) + other.div_ceil(4)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chinese_costs_more_tokens_a_character_than_english() {
        assert_eq!(estimate_tokens(""), 0);
        assert_eq!(estimate_tokens("four"), 1);
        assert_eq!(estimate_tokens("线性代数学"), 4);
    }
}
