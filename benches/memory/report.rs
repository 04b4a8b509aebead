//! Numbers as tables in Markdown.

pub use crate::quantile::{number, quantile};

pub struct Table;

impl Table {
    pub fn new(columns: &[&str]) -> Self {
        println!("\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
        Self
    }

    pub fn row(&self, cells: impl IntoIterator<Item = String>) {
        println!("| {} |", cells.into_iter().collect::<Vec<_>>().join(" | "));
    }
}

pub fn count(value: usize) -> String {
    if value < 1_000 { value.to_string() } else { format!("{},{:03}", count(value / 1_000), value % 1_000) }
}
