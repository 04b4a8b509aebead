//! The documents say what the code does.

use std::{collections::BTreeSet, fs};

use agent_service::config::VARIABLES;

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Names in the first column of tables, where they are set as code and look like variables.
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
    // Read by the tests alone, hence in no configuration.
    let read_by_code: BTreeSet<_> = VARIABLES.iter().copied().chain(["TEST_DATABASE_URL"]).map(str::to_owned).collect();
    for readme in ["README.md", "README.zh-CN.md"] {
        assert_eq!(documented(&read(readme)), read_by_code, "{readme}");
    }
}

#[test]
fn the_example_environment_has_every_variable_of_the_service() {
    let example = read(".env.example");
    let names: BTreeSet<_> = example
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, VARIABLES.iter().copied().collect());
}

#[test]
fn both_readmes_begin_with_the_two_commands() {
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
        // Comments are translated, commands are not.
        code.iter()
            .flat_map(|block| block.lines())
            .map(|line| line.split(" #").next().unwrap().trim_end().to_owned())
            .collect()
    };
    assert_eq!(blocks("README.md"), blocks("README.zh-CN.md"));
}

/// The lines without their indentation, which a snippet does not keep.
fn unindented(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn snippets_for_clients_are_those_of_the_examples() {
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
        assert!(is_real, "no example has\n{snippet}");
        snippets += 1;
    }
    assert!(snippets > 0);
}
