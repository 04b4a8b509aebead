use serde_json::json;

use crate::measurements::append;

/// A table in Markdown.
pub struct Table {
    id: &'static str,
    columns: Vec<String>,
    caption: String,
}

impl Table {
    /// `id` names the benchmark and its part, `streams/frames`, and a table where a part has several: `streams/frames/cpu`. The
    /// document has a place for each. The caption says how it was measured.
    pub fn new(id: &'static str, caption: impl Into<String>, columns: &[&str]) -> Self {
        let caption = caption.into();
        println!("\n{caption}\n\n| {} |\n|{}", columns.join(" | "), "---|".repeat(columns.len()));
        Self { id, columns: columns.iter().map(|&column| column.to_owned()).collect(), caption }
    }

    pub fn row(&self, cells: impl IntoIterator<Item = impl Into<String>>) {
        let cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        println!("| {} |", cells.join(" | "));
        let row = json!({"table": self.id, "caption": self.caption, "columns": self.columns, "row": cells});
        if let Err(error) = append(&row) {
            eprintln!("the row is not reported: {error}");
        }
    }
}
