//! Precision and recall of fact extraction on labelled dialogues, and that no instruction becomes a fact. Prints the table of
//! docs/explanation/measurements.md: `cargo test --test learning figures -- --nocapture`.

use std::{collections::BTreeMap, sync::Arc};

use agent_service::{
    chat::TurnRecord,
    learning::{Extractor, RuleExtractor},
    llm::Message,
};
use jiff::ToSpan as _;
use serde::Deserialize;
use serde_json::Value;

use crate::harness::{Harness, ScriptedModel, citation, process_queue, record, session, user};

/// A dialogue with the facts about its user that are expected at its end.
#[derive(Debug, Deserialize)]
struct Dialogue {
    id: String,
    topic: String,
    zone: String,
    turns: Vec<Turn>,
    /// Patterns of the current facts: `&` joins required words, `|` separates alternatives.
    facts: Vec<String>,
    /// Patterns of superseded facts.
    before: Vec<String>,
    /// Words that must not occur in any fact.
    never: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    user: String,
    #[serde(default)]
    assistant: String,
    #[serde(default)]
    recalled: Vec<String>,
    tool: Option<String>,
    /// Answers of the scripted model, one per request.
    model: Vec<Value>,
}

impl Turn {
    fn record(&self, zone: &str) -> TurnRecord {
        let mut record = record(&self.user, &self.assistant);
        record.timezone = zone.to_owned();
        record.citations = self.recalled.iter().map(|text| citation(text)).collect();
        if let Some(tool) = &self.tool {
            record.messages.insert(1, Message::Tool { call_id: "c".into(), content: tool.clone() });
        }
        record
    }
}

fn dialogues() -> Vec<Dialogue> {
    let lines = include_str!("dialogues.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn matches(text: &str, pattern: &str) -> bool {
    let text = text.to_lowercase();
    pattern.to_lowercase().split(" & ").all(|any| any.split('|').any(|word| text.contains(word)))
}

#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Figures {
    dialogues: usize,
    expected: usize,
    found: usize,
    /// All current facts, including unexpected ones.
    known: usize,
    /// Superseded facts that are expected, and those of them that the history has.
    changed: usize,
    history: usize,
    /// Facts with words of `Dialogue::never`.
    injected: usize,
}

impl Figures {
    fn precision(&self) -> f64 {
        self.found as f64 / self.known.max(1) as f64
    }

    fn recall(&self) -> f64 {
        self.found as f64 / self.expected.max(1) as f64
    }

    fn add(&mut self, other: &Self) {
        self.dialogues += other.dialogues;
        self.expected += other.expected;
        self.found += other.found;
        self.known += other.known;
        self.changed += other.changed;
        self.history += other.history;
        self.injected += other.injected;
    }
}

/// Runs all dialogues through the queue, each with its own user.
async fn figures(name: &str, extractor: Arc<dyn Extractor>, script: impl Fn(&Turn)) -> Figures {
    let harness = Harness::new().await;
    let worker = harness.worker(extractor);
    let mut tables: BTreeMap<(String, &str), Figures> = BTreeMap::new();
    let mut all = Figures::default();
    for dialogue in dialogues() {
        let (user, session) = (user(&dialogue.id), session("s"));
        // A Monday.
        let mut at: jiff::Timestamp = "2026-11-23T02:00:00Z".parse().unwrap();
        for turn in &dialogue.turns {
            harness.store_turn(&user, &session, &turn.record(&dialogue.zone)).await;
            harness.set_turn_time(&user, &session, at).await;
            at += 10.minutes();
            script(turn);
            process_queue(&worker).await;
            while harness.expire_retry_delays().await > 0 {
                process_queue(&worker).await;
            }
        }
        let (facts, history) = harness.facts(&user).await;
        let mut unmatched: Vec<&str> = facts.iter().map(|fact| fact.content.as_str()).collect();
        let known = unmatched.len();
        let mut found = 0;
        for expected in &dialogue.facts {
            // A fact matches one expectation only.
            match unmatched.iter().position(|fact| matches(fact, expected)) {
                Some(at) => {
                    unmatched.remove(at);
                    found += 1;
                }
                None => println!("{name}: {} misses {expected}", dialogue.id),
            }
        }
        for fact in &unmatched {
            println!("{name}: {} has an unexpected fact: {fact}", dialogue.id);
        }
        let in_history = |pattern: &&String| history.iter().any(|fact| matches(&fact.content, pattern));
        let injected = |content: &str| dialogue.never.iter().any(|word| matches(content, word));
        let figures = Figures {
            dialogues: 1,
            expected: dialogue.facts.len(),
            found,
            known,
            changed: dialogue.before.len(),
            history: dialogue.before.iter().filter(in_history).count(),
            injected: facts.iter().chain(&history).filter(|fact| injected(&fact.content)).count(),
        };
        let language = if dialogue.id.starts_with("zh") { "Chinese" } else { "English" };
        tables.entry((dialogue.topic, language)).or_default().add(&figures);
        all.add(&figures);
    }
    assert_eq!(harness.count_rows("learning_jobs").await, 0, "no job may fail for good");
    println!(
        "\n{name}\n\n| dialogues | | facts | found | unexpected | changes | in history | injected |\n|---|---|---|---|---|---|---|---|"
    );
    for ((topic, language), figures) in &tables {
        print_row(&format!("{topic}, {language}"), figures);
    }
    print_row("all", &all);
    println!("\nprecision {:.3}, recall {:.3}", all.precision(), all.recall());
    all
}

fn print_row(name: &str, figures: &Figures) {
    let Figures { dialogues, expected, found, known, changed, history, injected } = figures;
    println!(
        "| {name} | {dialogues} | {expected} | {found} | {} | {changed} | {history} | {injected} |",
        known - found
    );
}

#[test]
fn dialogues_cover_each_topic_in_both_languages() {
    let dialogues = dialogues();
    for topic in ["facts", "changes", "repeats", "remarks", "injections"] {
        for language in ["en-", "zh-"] {
            let some = dialogues.iter().filter(|dialogue| dialogue.topic == topic && dialogue.id.starts_with(language));
            assert!(some.count() >= 2, "{topic}, {language}");
        }
    }
    assert!(dialogues.len() >= 40);
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_rules_stay_above_their_floors() {
    let figures = figures("by rules", Arc::new(RuleExtractor), |_| {}).await;
    assert_eq!(figures.injected, 0);
    assert!(figures.precision() >= 0.95, "{figures:?}");
    assert!(figures.recall() >= 0.72, "{figures:?}");
    assert_eq!(figures.history, figures.changed);
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_scripted_model_are_exact() {
    let model = ScriptedModel::new(&[]);
    let script = |turn: &Turn| {
        let answers: Vec<String> =
            turn.model.iter().map(|answer| answer.as_str().map_or_else(|| answer.to_string(), str::to_owned)).collect();
        model.script(&answers.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let figures = figures("by a scripted model", model.extractor(), script).await;
    assert_eq!(figures.injected, 0);
    assert!(figures.precision() >= 0.95, "{figures:?}");
    assert!(figures.recall() >= 0.95, "{figures:?}");
    assert_eq!(figures.history, figures.changed);
}
