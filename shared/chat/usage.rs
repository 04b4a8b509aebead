use crate::llm::{Prices, TokenUsage};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageReport {
    pub usage: TokenUsage,
    /// `None`: the price of some model is unknown.
    pub cost_micro_usd: Option<i64>,
    /// Some provider sent no counts.
    pub is_estimated: bool,
    pub model: String,
    pub by_model: Vec<(String, TokenUsage)>,
}

#[derive(Debug, Default)]
pub(super) struct UsageTally {
    models: Vec<(String, TokenUsage)>,
    is_estimated: bool,
}

impl UsageTally {
    pub(super) fn add(&mut self, model: String, tokens: TokenUsage) {
        match self.models.iter_mut().find(|(known, _)| *known == model) {
            Some((_, total)) => *total = total.plus(tokens),
            None => self.models.push((model, tokens)),
        }
    }

    pub(super) fn add_estimate(&mut self, model: String, prompt: u32, completion: u32) {
        self.is_estimated = true;
        self.add(model, TokenUsage { prompt, completion, ..TokenUsage::default() });
    }

    pub(super) fn report(self, answering_model: &str, prices: &Prices) -> Option<UsageReport> {
        if self.models.is_empty() {
            return None;
        }
        let costs = self.models.iter().map(|(model, tokens)| prices.cost(model, tokens));
        // Rounded once, not per model.
        #[expect(clippy::cast_possible_truncation, reason = "u32 token counts at any real price fit an i64")]
        let cost_micro_usd = costs.sum::<Option<f64>>().map(|cost| cost.round() as i64);
        let usage = self.models.iter().fold(TokenUsage::default(), |sum, (_, tokens)| sum.plus(*tokens));
        Some(UsageReport {
            usage,
            cost_micro_usd,
            is_estimated: self.is_estimated,
            model: answering_model.to_owned(),
            by_model: self.models,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_sums_by_model_and_has_no_cost_without_a_price() {
        let prices = Prices::built_in().unwrap();
        let tokens = TokenUsage { prompt: 1000, cached: 0, completion: 100, reasoning: 0 };
        let mut tally = UsageTally::default();
        assert!(UsageTally::default().report("m", &prices).is_none());
        tally.add("gpt-4o-mini".into(), tokens);
        tally.add("gpt-4o-mini".into(), tokens);
        tally.add("gpt-4o".into(), tokens);
        let report = tally.report("gpt-4o", &prices).unwrap();
        assert_eq!((report.usage.prompt, report.usage.completion, report.is_estimated), (3000, 300, false));
        assert_eq!(report.cost_micro_usd, Some(2 * (150 + 60) + 2500 + 1000));
        assert_eq!(report.by_model.len(), 2);
        let mut tally = UsageTally::default();
        tally.add("gpt-4o-mini".into(), tokens);
        tally.add_estimate("no-such-model".into(), 7, 8);
        let report = tally.report("no-such-model", &prices).unwrap();
        assert_eq!((report.cost_micro_usd, report.is_estimated), (None, true));
    }
}
