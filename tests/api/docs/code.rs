//! Names of the code that documents use: files, types, error codes, calls, fields, tables, commands.

use std::collections::BTreeSet;

use super::{
    PAGES, names,
    text::{absolute, code_spans, files, first_cells, pages, read},
};

/// Quoted upper-case words of a source file, above its tests.
fn quoted_codes(source: &str) -> BTreeSet<String> {
    let source = source.split("#[cfg(test)]").next().unwrap_or_default();
    let is_code = |text: &&str| text.len() > 3 && text.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    names(source.split('"').filter(is_code))
}

#[test]
fn error_reference_lists_exactly_the_codes_of_error_frames() {
    // The other names of the page are statuses of gRPC.
    const STATUSES: &[&str] = &[
        "INVALID_ARGUMENT",
        "UNAUTHENTICATED",
        "PERMISSION_DENIED",
        "NOT_FOUND",
        "ABORTED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "UNAVAILABLE",
        "UNIMPLEMENTED",
    ];
    let documented = names(first_cells(&read("docs/reference/errors.md")));
    // The source compares codes with a prefix as well.
    let codes = quoted_codes(&read("shared/service/failure.rs")).into_iter().filter(|code| !code.ends_with('_'));
    let codes: BTreeSet<_> = codes.collect();
    assert!(codes.is_subset(&documented), "not documented: {:?}", codes.difference(&documented));
    let is_upper = |name: &&String| name.len() > 3 && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    for name in documented.difference(&codes).filter(is_upper) {
        assert!(STATUSES.contains(&name.as_str()), "{name} is neither a code nor a status");
    }
}

#[test]
fn error_reference_lists_every_outcome_of_the_log() {
    let spans: BTreeSet<_> = code_spans(&read("docs/reference/errors.md")).into_iter().collect();
    let sources = [("shared/service/call.rs", "self.outcome = match"), ("shared/service/failure.rs", "fn outcome")];
    for (path, start) in sources {
        let source = read(path);
        let arms = source.split(start).skip(1).filter_map(|rest| rest.split("}\n").next());
        let outcomes: Vec<_> = arms.flat_map(|arms| arms.split("=> \"").skip(1)).collect();
        assert!(!outcomes.is_empty(), "{path}");
        for outcome in outcomes.iter().filter_map(|rest| rest.split('"').next()) {
            assert!(spans.contains(outcome), "{path}: {outcome} is not documented");
        }
    }
}

/// Words after a keyword at the beginning of a line, for example the names of messages.
fn declared<'a>(source: &'a str, keyword: &'a str) -> impl Iterator<Item = &'a str> {
    let lines = source.lines().map(str::trim).filter_map(move |line| line.strip_prefix(keyword));
    lines.filter_map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').find(|word| !word.is_empty()))
}

#[test]
fn api_reference_names_every_call_and_field_of_chats() {
    let page = read("docs/reference/api.md");
    let words: BTreeSet<_> = page.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    for proto in files("proto", &["proto"]) {
        for rpc in declared(&read(&proto), "rpc ") {
            assert!(words.contains(rpc), "{proto}: {rpc}");
        }
    }
    let proto = read("proto/agent_service.proto");
    for message in ["ChatRequest", "ChatResponse", "ChatConfig", "MemoryQuery", "MemoryFilter"] {
        let body = proto.split(&format!("message {message} {{")).nth(1).unwrap().split("\n}").next().unwrap();
        let fields = body.lines().map(str::trim).filter(|line| line.contains(" = ") && !line.starts_with("//"));
        for field in fields.map(|line| line.split(" = ").next().unwrap().rsplit(' ').next().unwrap()) {
            assert!(words.contains(field), "{message}.{field} is not in the reference");
        }
    }
}

/// `1_000` as `1,000`.
fn with_commas(number: &str) -> String {
    number.replace('_', ",")
}

#[test]
fn api_reference_states_the_size_limits_of_the_code() {
    let page = read("docs/reference/api.md");
    let sizes = page.split("## Sizes").nth(1).unwrap().split("## Client code").next().unwrap();
    let numbers: BTreeSet<_> = sizes.split(|c: char| !c.is_ascii_digit() && c != ',').collect();
    let sources = ["shared/service/parse/mod.rs", "shared/identity/mod.rs", "shared/conversation/session.rs"];
    let sources: String = sources.iter().chain(&["shared/memory/mod.rs"]).map(|path| read(path)).collect();
    let limits = sources.lines().filter_map(|line| line.split_once("const MAX_")?.1.split_once("usize = "));
    let limits: Vec<_> = limits.map(|(name, value)| (name, with_commas(value.trim_end_matches(';')))).collect();
    assert!(limits.len() > 10, "{limits:?}");
    for (name, value) in limits {
        assert!(numbers.contains(value.as_str()), "MAX_{name} {value}");
    }
}

#[test]
fn api_reference_names_every_header_of_web_clients() {
    let page = read("docs/reference/api.md");
    let cors = read("shared/transport/server/cors.rs");
    for header in cors.split('"').skip(1).step_by(2).filter(|name| name.starts_with("x-") || *name == "user-id") {
        // gRPC-Web libraries set these two by themselves.
        if !["x-grpc-web", "x-user-agent"].contains(&header) {
            assert!(page.contains(&format!("`{header}`")), "{header}");
        }
    }
}

#[test]
fn table_reference_lists_exactly_the_tables_of_the_migrations() {
    let migrations: String = files("infra/migrations", &["sql"]).iter().map(|path| read(path)).collect();
    let postgres = read("docs/reference/tables.md");
    let postgres = postgres.split("## DynamoDB").next().unwrap().split("### Locks").next().unwrap();
    assert_eq!(names(first_cells(postgres)), names(declared(&migrations, "create table ")));
}

#[test]
fn command_line_reference_lists_every_command_and_option() {
    let documented = names(code_spans(&read("docs/reference/command-line.md")));
    let options = read("functions/local/src/options.rs");
    let commands = options.split("pub enum Command {").nth(1).unwrap().split("\n}").next().unwrap();
    for command in commands.lines().map(str::trim).filter(|line| line.starts_with(char::is_uppercase)) {
        let command = command.split(['(', ',']).next().unwrap().to_lowercase();
        assert!(documented.contains(&command), "{command}");
    }
    let mut is_option = false;
    for line in options.lines().map(str::trim) {
        is_option |= line.starts_with("#[arg(long");
        if let Some(field) = line.strip_prefix("pub ").filter(|_| is_option) {
            let field = field.split(':').next().unwrap();
            // Options that may be given several times are named in the singular.
            let singular = field.trim_end_matches('s');
            let option = if options.contains(&format!("long = \"{singular}\"")) { singular } else { field };
            assert!(documented.contains(&format!("--{}", option.replace('_', "-"))), "--{option}");
            is_option = false;
        }
    }
}

#[test]
fn files_and_types_in_the_documents_exist() {
    const ROOTS: &[&str] =
        &["shared/", "functions/", "tests/", "proto/", "infra/", "web/", "examples/", "benches/", "fuzz/", "docs/"];
    let sources: String = ["shared", "functions", "examples", "proto", "template.yaml", "tests"]
        .into_iter()
        .flat_map(|path| files(path, &["rs", "proto", "ts", "go", "py", "yaml", "json"]))
        .map(|path| read(&path))
        .collect();
    // Messages of google.rpc, which the service writes by their crate's functions.
    let known = ["BadRequest", "ErrorInfo", "RetryInfo", "QuotaFailure"];
    let words = sources.split(|c: char| !c.is_alphanumeric() && c != '_');
    let words: BTreeSet<_> = words.chain(known).collect();
    let mut absent = Vec::new();
    for (path, markdown) in pages(PAGES) {
        for span in code_spans(&markdown) {
            let file = span.split([' ', ':']).next().unwrap_or_default();
            if ROOTS.iter().any(|root| file.starts_with(root)) && !file.contains(['*', '{']) && !absolute(file).exists()
            {
                absent.push(format!("{path}: {file}"));
            }
            if is_type(&span) && !words.contains(span.as_str()) {
                absent.push(format!("{path}: {span}"));
            }
        }
    }
    assert!(absent.is_empty(), "not in the code:\n{}", absent.join("\n"));
}

/// `CamelCase` with two capitals or more.
fn is_type(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(char::is_alphanumeric)
        && name.chars().filter(char::is_ascii_uppercase).count() >= 2
        && name.chars().any(char::is_lowercase)
}
