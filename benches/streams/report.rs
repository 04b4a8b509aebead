//! Compares two servers.

pub use crate::quantile::{number, quantile};
use crate::table::Table;

pub struct Comparison(Table);

impl Comparison {
    pub fn new(id: &'static str, caption: String) -> Self {
        Self(Table::new(id, caption, &["measured", "service", "bare tonic", "ratio"]))
    }

    pub fn row(&self, what: &str, service: f64, bare: f64) {
        // A lateness of zero has no ratio.
        let ratio = if bare > 0.0 { format!("{:.2}", service / bare) } else { String::new() };
        self.0.row([what.to_owned(), number(service), number(bare), ratio]);
    }

    pub fn ratio(&self, what: &str, ratio: f64) {
        self.0.row([what.to_owned(), String::new(), String::new(), format!("{ratio:.2}")]);
    }
}

/// NaN without values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(&mut values.into_iter().collect::<Vec<_>>(), 0.5)
}
