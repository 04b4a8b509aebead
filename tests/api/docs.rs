//! The documents agree with the code and with each other.

mod code;
mod links;
mod text;
mod translations;

use std::{collections::BTreeSet, fs, path::Path};

use agent_service::config::{Config, VARIABLES};

use text::{code_blocks, code_spans, first_cells, read};

/// Pages whose names of files and types must exist, and whose sentences must be short.
const PAGES: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "infra/README.md",
    "docs/tutorial",
    "docs/how-to",
    "docs/reference",
    "docs/explanation",
];

fn names(items: impl IntoIterator<Item = impl Into<String>>) -> BTreeSet<String> {
    items.into_iter().map(Into::into).collect()
}

fn is_variable(name: &str) -> bool {
    name.len() > 3 && name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
}

#[test]
fn configuration_reference_lists_exactly_the_variables_that_are_read() {
    // Only the tests read the last one.
    let read_by_code = names(VARIABLES.iter().copied().chain(["TEST_DATABASE_URL"]));
    let documented = first_cells(&read("docs/reference/configuration.md"));
    assert_eq!(names(documented.into_iter().filter(|name| is_variable(name))), read_by_code);
}

#[test]
fn documented_defaults_are_those_of_the_code() {
    let key = ("LLM_API_KEY", "sk-none");
    let mut defaults = 0;
    for line in read("docs/reference/configuration.md").lines() {
        let Some((name, rest)) = line.strip_prefix("| `").and_then(|row| row.split_once("` | ")) else { continue };
        let cell = rest.split(" | ").next().unwrap_or_default();
        let Some(default) = cell.strip_prefix('`').and_then(|cell| cell.strip_suffix('`')) else { continue };
        // Other defaults depend on further settings or on the system.
        let is_value = !default.contains(['`', '~']) && !is_variable(default);
        if !is_variable(name) || !is_value || name == "TEST_DATABASE_URL" {
            continue;
        }
        for base in [&[][..], &[key]] {
            let config = |set: Option<(&str, &str)>| {
                let values: Vec<_> = base.iter().copied().chain(set).collect();
                let value = |wanted: &str| values.iter().find(|(name, _)| *name == wanted);
                let config = Config::read(&|wanted| value(wanted).map(|(_, value)| (*value).to_owned()));
                format!("{:?}", config.unwrap_or_else(|error| panic!("{name}: {error}")))
            };
            assert_eq!(config(Some((name, default))), config(None), "{name}={default}");
        }
        defaults += 1;
    }
    assert!(defaults > 20, "only {defaults} defaults are checked");
}

#[test]
fn variables_in_the_documents_exist() {
    // Variables of clients, scripts, AWS and systems.
    let known: BTreeSet<_> = VARIABLES.iter().copied().collect();
    for (path, markdown) in text::pages(PAGES) {
        for span in code_spans(&markdown) {
            let name = span.split('=').next().unwrap_or_default();
            let prefixes = ["DATABASE_", "LLM_", "EMBEDDING_", "JWT_", "GRPC_", "DEMO_", "RATE_", "BM25_", "DEEPSEEK_"];
            if is_variable(name) && prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                assert!(known.contains(name), "{path}: {name} is no variable of the service");
            }
        }
    }
}

#[test]
fn example_environment_lists_every_variable() {
    let example = read(".env.example");
    let listed: BTreeSet<_> = example
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").split_once('='))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(listed, VARIABLES.iter().copied().collect());
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
fn readme_has_at_most_150_lines() {
    assert!(read("README.md").lines().count() <= 150);
}

#[test]
fn readme_shows_what_the_program_prints() {
    let readme = read("README.md");
    let listing = readme.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let printed: String = text::files("functions/local/src", &["rs"]).iter().map(|path| read(path)).collect();
    for line in listing.lines() {
        // Labels stand apart from their values, and these are inserted when the line is printed.
        let parts = line.split("  ").flat_map(|part| {
            ["0.1.0", "http://127.0.0.1:50051", "~/.local/share/agent-service"]
                .into_iter()
                .fold(vec![part], |parts, value| parts.into_iter().flat_map(|part| part.split(value)).collect())
        });
        for part in parts.map(str::trim).filter(|part| part.len() > 1) {
            assert!(printed.contains(part), "the program does not print {part:?}");
        }
    }
}

/// The lines without their indentation, which a snippet does not keep.
fn unindented(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn client_snippets_are_taken_from_examples() {
    let sources: Vec<_> = ["go/agent/agent.go", "go/chat/main.go", "go/bridge/main.go", "python/chat.py"]
        .into_iter()
        .chain(["connect-web/chat.ts", "grpc-web/chat.js"])
        .map(|path| unindented(&read(&format!("examples/{path}"))))
        .collect();
    let mut snippets = 0;
    for (path, markdown) in text::pages(&["docs"]) {
        for (language, snippet) in code_blocks(&markdown) {
            if ["go", "python", "ts", "js"].contains(&language.as_str()) {
                let snippet = unindented(&snippet);
                assert!(sources.iter().any(|source| source.contains(&snippet)), "{path}: no example has\n{snippet}");
                snippets += 1;
            }
        }
    }
    assert!(snippets > 0);
}

/// Whether a source file has a function with an attribute of tests.
fn is_test(source: &str, name: &str) -> bool {
    source.split_once(&format!("fn {name}(")).is_some_and(|(before, _)| {
        let item = before.rsplit("\n\n").next().unwrap_or_default();
        item.contains("#[test]") || item.contains("#[tokio::test")
    })
}

/// Whether the suite of the conversation stores lists a case. One that is missing there does not run.
fn is_suite_case(topic: &str, name: &str) -> bool {
    let main = read("tests/conversations/main.rs");
    let cases =
        main.split_once(&format!("\n    {topic}:\n")).map(|(_, rest)| rest.split(';').next().unwrap_or_default());
    cases.is_some_and(|cases| cases.split_whitespace().any(|case| case == name))
}

#[test]
fn guarantees_name_existing_tests() {
    let page = read("docs/reference/guarantees.md");
    let mut tests = 0;
    for span in code_spans(&page) {
        let Some((path, name)) = span.split_once(".rs::") else { continue };
        let is_case = path.strip_prefix("tests/conversations/").is_some_and(|topic| is_suite_case(topic, name));
        assert!(is_case || is_test(&read(&format!("{path}.rs")), name), "{span} is no test that runs");
        tests += 1;
    }
    assert!(tests > 30, "only {tests} tests are named");
}

#[test]
fn sentences_are_short_on_average() {
    for (path, markdown) in text::pages(PAGES) {
        let lengths = text::sentence_lengths(&markdown);
        let (words, sentences) = (lengths.iter().sum::<usize>(), lengths.len());
        assert!(words < 20 * sentences, "{path}: {words} words in {sentences} sentences");
    }
}

#[test]
fn every_page_is_listed_in_the_readme() {
    let readme = read("README.md");
    for path in text::files("docs", &["md"]) {
        // Chinese pages are listed in README.zh-CN.md.
        if !Path::new(&path).starts_with("docs/zh") {
            assert!(readme.contains(&format!("({path}")), "{path}");
        }
    }
    assert!(fs::exists(text::absolute("LICENSE")).unwrap());
}
