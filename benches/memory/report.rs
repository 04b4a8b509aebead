pub use crate::{
    quantile::{number, quantile},
    table::Table,
};

pub fn count(value: usize) -> String {
    if value < 1_000 { value.to_string() } else { format!("{},{:03}", count(value / 1_000), value % 1_000) }
}
