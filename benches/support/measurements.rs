//! Measured values as lines of JSON, appended to the file that `MEASUREMENTS_FILE` names. `benches/budgets.py` compares budgets
//! with `benches/budgets.toml`; `benches/report.py` writes tables into `docs/explanation/measurements.md`.

use std::{
    fs::File,
    io::{self, Write as _},
};

use serde_json::Value;

const FILE: &str = "MEASUREMENTS_FILE";

/// A line is written at once, because several processes may append to the file.
pub fn append(line: &Value) -> io::Result<()> {
    let Some(path) = std::env::var_os(FILE) else { return Ok(()) };
    File::options().create(true).append(true).open(path)?.write_all(format!("{line}\n").as_bytes())
}
