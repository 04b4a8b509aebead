//! The progress bar of an import on a terminal.

use std::{path::Path, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use super::report::{Report, count};

const TICK: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub struct ImportProgress(ProgressBar);

impl ImportProgress {
    pub fn new(files: usize) -> Self {
        let bar = ProgressBar::new(files as u64);
        // An invalid template leaves the default style.
        if let Ok(style) = ProgressStyle::with_template("{spinner} {bar:24} {pos}/{len} files  {prefix}  {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    pub fn update(&self, report: &Report, file: &Path) {
        let chunks = count(report.chunks, "chunk", "chunks");
        self.0.set_prefix(format!("{chunks}, {}", count(report.memories, "memory", "memories")));
        self.0.set_message(file.display().to_string());
    }

    pub fn finish_file(&self) {
        self.0.inc(1);
    }

    pub fn print_line(&self, line: &str) {
        self.0.suspend(|| eprintln!("{line}"));
    }

    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}
