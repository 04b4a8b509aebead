//! Numbers beside each other.

pub use crate::quantile::{number, quantile};

/// A table of the two servers, printed as it grows.
pub struct Table;

impl Table {
    /// Prints the head.
    pub fn new() -> Self {
        println!("{:<38}{:>12}{:>12}{:>8}", "", "service", "bare tonic", "ratio");
        Self
    }

    /// Prints a line.
    pub fn row(&mut self, what: &str, service: f64, bare: f64) {
        println!("{what:<38}{:>12}{:>12}{:>8.2}", number(service), number(bare), service / bare);
    }
}

/// The middle of some numbers; not a number, if there are none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(&mut values.into_iter().collect::<Vec<_>>(), 0.5)
}
