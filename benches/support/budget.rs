use std::io;

use serde_json::json;

use crate::measurements::append;

/// Reports a value that clocks cannot disturb, and that may grow by 5 % at most. `measures` is for somebody who sees only the
/// number.
pub fn budget(name: &str, value: f64, unit: &str, measures: &str) -> io::Result<()> {
    println!("{name:<44}{value:>12} {unit}");
    append(&json!({"budget": name, "value": value, "unit": unit, "measures": measures}))
}
