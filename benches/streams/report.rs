//! Numbers as text.

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

/// A number with as many digits as are worth reading.
pub fn number(value: f64) -> String {
    let decimals = if value.abs() < 100.0 { 2 } else { 0 };
    format!("{value:.decimals$}")
}

/// The middle of some numbers; not a number, if there are none.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(&mut values.into_iter().collect::<Vec<_>>(), 0.5)
}

/// The value below which a share of them lies; not a number, if there are none.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    values.sort_unstable_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the share is between 0 and 1")]
    let at = (last as f64 * share).round() as usize;
    values[at]
}
