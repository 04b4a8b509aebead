//! What a call has spent.

use super::UsageReport;
use crate::llm::{Prices, TokenUsage};

/// Tokens by model, counted by providers or else estimated.
#[derive(Debug, Default)]
pub(super) struct UsageTally {
    models: Vec<(String, TokenUsage)>,
    is_estimated: bool,
}

impl UsageTally {
    /// Adds what a provider counted.
    pub(super) fn add(&mut self, model: String, tokens: TokenUsage) {
        match self.models.iter_mut().find(|(known, _)| *known == model) {
            Some((_, so_far)) => *so_far = so_far.plus(tokens),
            None => self.models.push((model, tokens)),
        }
    }

    /// Adds what nobody counted.
    pub(super) fn add_estimate(&mut self, model: String, prompt: u32, completion: u32) {
        self.is_estimated = true;
        self.add(model, TokenUsage { prompt, completion, ..TokenUsage::default() });
    }

    /// All together; `None` = nothing was spent.
    pub(super) fn report(self, answering: &str, prices: &Prices) -> Option<UsageReport> {
        if self.models.is_empty() {
            return None;
        }
        let costs = self.models.iter().map(|(model, tokens)| prices.cost(model, tokens));
        // Rounded once, and not for each model.
        #[expect(clippy::cast_possible_truncation, reason = "so many dollars there are not")]
        let cost_micro_usd = costs.sum::<Option<f64>>().map(|cost| cost.round() as i64);
        let usage = self.models.iter().fold(TokenUsage::default(), |sum, (_, tokens)| sum.plus(*tokens));
        Some(UsageReport {
            usage,
            cost_micro_usd,
            is_estimated: self.is_estimated,
            model: answering.to_owned(),
            by_model: self.models,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_add_up_by_model_and_an_unknown_price_is_no_price_of_zero() {
        let prices = Prices::built_in().unwrap();
        let tokens = TokenUsage { prompt: 1000, cached: 0, completion: 100, reasoning: 0 };
        let mut tally = UsageTally::default();
        assert!(UsageTally::default().report("m", &prices).is_none());
        tally.add("gpt-4o-mini".into(), tokens);
        tally.add("gpt-4o-mini".into(), tokens);
        tally.add("gpt-4o".into(), tokens);
        let spent = tally.report("gpt-4o", &prices).unwrap();
        assert_eq!((spent.usage.prompt, spent.usage.completion, spent.is_estimated), (3000, 300, false));
        assert_eq!(spent.cost_micro_usd, Some(2 * (150 + 60) + 2500 + 1000));
        assert_eq!(spent.by_model.len(), 2);
        let mut tally = UsageTally::default();
        tally.add("gpt-4o-mini".into(), tokens);
        tally.add_estimate("unheard-of".into(), 7, 8);
        let spent = tally.report("unheard-of", &prices).unwrap();
        assert_eq!((spent.cost_micro_usd, spent.is_estimated), (None, true));
    }
}
