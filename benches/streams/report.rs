//! Prints a comparison of two servers.

pub use crate::quantile::{number, quantile};

pub struct Table;

impl Table {
    pub fn new() -> Self {
        println!("{:<38}{:>12}{:>12}{:>8}", "", "service", "bare tonic", "ratio");
        Self
    }

    pub fn row(&mut self, what: &str, service: f64, bare: f64) {
        println!("{what:<38}{:>12}{:>12}{:>8.2}", number(service), number(bare), service / bare);
    }
}

/// NaN without values.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(&mut values.into_iter().collect::<Vec<_>>(), 0.5)
}
