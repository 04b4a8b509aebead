//! The documents agree with the code.

use std::{collections::BTreeSet, fs};

use agent_service::config::VARIABLES;

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Environment variables (in backticks) of the first column of tables.
fn documented(markdown: &str) -> BTreeSet<String> {
    let first_cells = markdown.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    first_cells
        .flat_map(|cell| cell.split('`'))
        .filter(|name| name.len() > 3 && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn both_readmes_document_exactly_the_variables_that_are_read() {
    // Only the tests read it.
    let read_by_code: BTreeSet<_> = VARIABLES.iter().copied().chain(["TEST_DATABASE_URL"]).map(str::to_owned).collect();
    for readme in ["README.md", "README.zh-CN.md"] {
        assert_eq!(documented(&read(readme)), read_by_code, "{readme}");
    }
}

#[test]
fn example_environment_lists_every_variable() {
    let example = read(".env.example");
    let names: BTreeSet<_> = example
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, VARIABLES.iter().copied().collect());
}

#[test]
fn both_readmes_begin_with_run_and_test_commands() {
    for readme in ["README.md", "README.zh-CN.md"] {
        let text = read(readme);
        let (run, test) = (text.find("cargo run").unwrap(), text.find("cargo test").unwrap());
        assert!(run < 1500 && test < 3000, "{readme}: {run}, {test}");
    }
}

#[test]
fn both_readmes_show_the_same_commands() {
    let blocks = |path: &str| -> Vec<String> {
        let text = read(path);
        let code: Vec<_> = text.split("```").skip(1).step_by(2).map(str::to_owned).collect();
        // Comments are translated.
        code.iter()
            .flat_map(|block| block.lines())
            .map(|line| line.split(" #").next().unwrap().trim_end().to_owned())
            .collect()
    };
    assert_eq!(blocks("README.md"), blocks("README.zh-CN.md"));
}

/// Snippets are indented differently than their example.
fn unindented(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn client_snippets_are_taken_from_examples() {
    let guide = read("docs/clients.md");
    let mut snippets = 0;
    for block in guide.split("```").skip(1).step_by(2) {
        let (language, snippet) = block.split_once('\n').unwrap();
        let examples: &[&str] = match language {
            "go" => &["go/agent/agent.go", "go/chat/main.go", "go/bridge/main.go"],
            "python" => &["python/chat.py"],
            "ts" => &["connect-web/chat.ts"],
            "js" => &["grpc-web/chat.js"],
            _ => continue,
        };
        let snippet = unindented(snippet);
        let is_real = examples.iter().any(|path| unindented(&read(&format!("examples/{path}"))).contains(&snippet));
        assert!(is_real, "no example contains this snippet:\n{snippet}");
        snippets += 1;
    }
    assert!(snippets > 0);
}
