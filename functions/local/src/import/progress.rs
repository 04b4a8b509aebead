//! The progress bar of an import, where a person looks.

use std::{path::Path, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::report::{Report, count};

const TICK: Duration = Duration::from_millis(200);

/// A bar on standard error; where that is no terminal there is none.
#[derive(Clone)]
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(files: usize) -> Self {
        let bar = ProgressBar::new(files as u64);
        // A template that is wrong leaves the bar as it is.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {pos}/{len} files  {prefix}  {wide_msg}") {
            bar.set_style(style);
        }
        // A large document takes the server a while.
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Shows what has been done, and the file at hand.
    pub fn show(&self, report: &Report, file: &Path) {
        let chunks = count(report.chunks, "chunk", "chunks");
        self.0.set_prefix(format!("{chunks}, {}", count(report.memories, "memory", "memories")));
        self.0.set_message(file.display().to_string());
    }

    pub fn file_done(&self) {
        self.0.inc(1);
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        self.0.suspend(|| eprintln!("{line}"));
    }

    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
