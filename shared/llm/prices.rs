//! Prices of models.

use std::{collections::HashMap, fs, path::Path};

use serde::Deserialize;

use super::tokens::TokenUsage;

/// Published prices. They change, so that a file can replace them.
const BUILT_IN: &str = include_str!("prices.json");
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// US dollars per million tokens, which is micro-dollars per token.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    pub input: f64,
    /// `None` = `input`.
    pub cached_input: Option<f64>,
    pub output: f64,
    /// `None` = `output`.
    pub reasoning: Option<f64>,
}

impl Price {
    /// In micro-dollars.
    fn cost(&self, tokens: &TokenUsage) -> f64 {
        let cached = tokens.cached.min(tokens.prompt);
        let reasoning = tokens.reasoning.min(tokens.completion);
        f64::from(tokens.prompt - cached) * self.input
            + f64::from(cached) * self.cached_input.unwrap_or(self.input)
            + f64::from(tokens.completion - reasoning) * self.output
            + f64::from(reasoning) * self.reasoning.unwrap_or(self.output)
    }
}

#[derive(Debug, Clone)]
pub struct Prices(HashMap<String, Price>);

#[derive(Debug, thiserror::Error)]
pub enum PricesError {
    #[error("PRICES_FILE cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("PRICES_FILE is larger than 1 MiB")]
    TooLarge,
    #[error(
        "PRICES_FILE is not like {{\"gpt-4o-mini\": {{\"input\": 0.15, \"cached_input\": 0.075, \"output\": 0.6}}}}: {0}"
    )]
    Malformed(#[from] serde_json::Error),
    #[error("PRICES_FILE: a price of {model} is negative or not a number")]
    InvalidPrice { model: String },
}

impl Prices {
    pub fn built_in() -> Result<Self, PricesError> {
        Self::parse(BUILT_IN)
    }

    pub fn load(path: &Path) -> Result<Self, PricesError> {
        if fs::metadata(path)?.len() > MAX_FILE_BYTES {
            return Err(PricesError::TooLarge);
        }
        Self::parse(&fs::read_to_string(path)?)
    }

    fn parse(json: &str) -> Result<Self, PricesError> {
        let prices: HashMap<String, Price> = serde_json::from_str(json)?;
        let is_invalid = |price: &Price| {
            let all = [Some(price.input), price.cached_input, Some(price.output), price.reasoning];
            all.into_iter().flatten().any(|price| !price.is_finite() || price < 0.0)
        };
        match prices.iter().find(|(_, price)| is_invalid(price)) {
            Some((model, _)) => Err(PricesError::InvalidPrice { model: model.clone() }),
            None => Ok(Self(prices)),
        }
    }

    /// In micro-dollars; `None` = the price is unknown.
    #[must_use]
    pub fn cost(&self, model: &str, tokens: &TokenUsage) -> Option<f64> {
        self.price(model).map(|price| price.cost(tokens))
    }

    /// By name, or by the name without its date: `gpt-4o-mini-2024-07-18` costs as much as `gpt-4o-mini`.
    fn price(&self, model: &str) -> Option<&Price> {
        if let Some(price) = self.0.get(model) {
            return Some(price);
        }
        let dated = |name: &str| {
            let rest = model.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            rest.is_some_and(|rest| {
                rest == "latest" || rest.len() >= 4 && rest.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-')
            })
        };
        self.0.iter().filter(|(name, _)| dated(name)).max_by_key(|(name, _)| name.len()).map(|(_, price)| price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices() -> Prices {
        Prices::parse(
            r#"{
                "m": {"input": 2.0, "cached_input": 0.5, "output": 8.0, "reasoning": 16.0},
                "m-mini": {"input": 1.0, "output": 4.0}
            }"#,
        )
        .unwrap()
    }

    #[test]
    fn cached_and_reasoning_prices_have_defaults() {
        let tokens = TokenUsage { prompt: 1000, cached: 400, completion: 100, reasoning: 30 };
        assert_eq!(prices().cost("m", &tokens), Some(600.0 * 2.0 + 400.0 * 0.5 + 70.0 * 8.0 + 30.0 * 16.0));
        assert_eq!(prices().cost("m-mini", &tokens), Some(1000.0 + 400.0));
        let impossible = TokenUsage { prompt: 1, cached: 9, completion: 1, reasoning: 9 };
        assert_eq!(prices().cost("m", &impossible), Some(0.5 + 16.0));
        assert_eq!(prices().cost("unknown", &tokens), None);
    }

    #[test]
    fn price_ignores_date_suffix_only() {
        let prices = prices();
        for model in ["m-2026-01-31", "m-20260131", "m-latest", "m-0131"] {
            assert_eq!(prices.price(model).map(|price| price.input), Some(2.0), "{model}");
        }
        assert_eq!(prices.price("m-mini-2026-01-31").map(|price| price.input), Some(1.0));
        for model in ["m-large", "m-mini-large", "m2", "M", "m-"] {
            assert_eq!(prices.price(model), None, "{model}");
        }
    }

    #[test]
    fn built_in_prices_parse_and_invalid_ones_fail() {
        let built_in = Prices::built_in().unwrap();
        for model in ["gpt-4o-mini", "qwen-plus", "deepseek-chat"] {
            assert!(built_in.price(model).is_some(), "{model} is a default");
        }
        for price in built_in.0.values() {
            assert!(price.cached_input.unwrap_or(price.input) <= price.input);
        }
        assert!(matches!(Prices::parse("[]"), Err(PricesError::Malformed(_))));
        assert!(matches!(
            Prices::parse(r#"{"m": {"input": 1, "output": 1, "typo": 1}}"#),
            Err(PricesError::Malformed(_))
        ));
        let negative = Prices::parse(r#"{"m": {"input": -1, "output": 1}}"#);
        assert!(negative.unwrap_err().to_string().contains('m'));
    }
}
