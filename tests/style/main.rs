//! Checks of the source text: imports form no cycle, and the words are those of the field.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]

mod imports;
mod lexer;
mod words;
