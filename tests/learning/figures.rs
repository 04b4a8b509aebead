//! How well facts are found in labelled dialogues, and that no instruction becomes one. Prints the table of
//! docs/performance.md: `cargo test --test learning figures -- --nocapture`.

use std::{collections::BTreeMap, sync::Arc};

use agent_service::{
    chat::TurnRecord,
    learning::{Extractor, RuleExtractor},
    llm::Message,
};
use jiff::ToSpan as _;
use serde::Deserialize;
use serde_json::Value;

use crate::world::{ScriptedModel, World, citation, record, session, user, work};

/// A dialogue with what is to be known of its user in the end.
#[derive(Debug, Deserialize)]
struct Dialogue {
    id: String,
    topic: String,
    zone: String,
    turns: Vec<Turn>,
    /// Words of the facts that count in the end: `&` joins what has to be there, `|` what may stand in place of each other.
    facts: Vec<String>,
    /// Words of facts that others have taken the place of.
    before: Vec<String>,
    /// Words that no fact may have.
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
    /// What a model gives, one answer for each time that it is asked.
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

fn has(text: &str, words: &str) -> bool {
    let text = text.to_lowercase();
    words.to_lowercase().split(" & ").all(|any| any.split('|').any(|word| text.contains(word)))
}

/// What came of some dialogues.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Figures {
    dialogues: usize,
    /// Facts that are to be known, and those of them that are.
    expected: usize,
    found: usize,
    /// Facts that are known.
    known: usize,
    /// Facts that are to be history, and those of them that are.
    changed: usize,
    history: usize,
    /// Facts with words that none may have.
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

/// Holds all dialogues, each with a user of its own, and has everything learned through the queue.
async fn figures(name: &str, extractor: Arc<dyn Extractor>, script: impl Fn(&Turn)) -> Figures {
    let world = World::new().await;
    let learning = world.process(extractor);
    let mut tables: BTreeMap<(String, &str), Figures> = BTreeMap::new();
    let mut all = Figures::default();
    for dialogue in dialogues() {
        let (user, session) = (user(&dialogue.id), session("s"));
        // A Monday.
        let mut at: jiff::Timestamp = "2026-11-23T02:00:00Z".parse().unwrap();
        for turn in &dialogue.turns {
            world.keep(&user, &session, &turn.record(&dialogue.zone)).await;
            world.date(&user, &session, at).await;
            at += 10.minutes();
            script(turn);
            work(&learning).await;
            while world.let_waits_pass().await > 0 {
                work(&learning).await;
            }
        }
        let (facts, history) = world.facts(&user).await;
        let mut unmatched: Vec<&str> = facts.iter().map(|fact| fact.content.as_str()).collect();
        let known = unmatched.len();
        let mut found = 0;
        for expected in &dialogue.facts {
            // One fact may hold what two are expected of, as "16 years old and in grade 10" does, but each is found once.
            match unmatched.iter().position(|fact| has(fact, expected)) {
                Some(at) => {
                    unmatched.remove(at);
                    found += 1;
                }
                None => println!("{name}: {} lacks {expected}", dialogue.id),
            }
        }
        for fact in &unmatched {
            println!("{name}: {} has too much: {fact}", dialogue.id);
        }
        let in_history = |words: &&String| history.iter().any(|fact| has(&fact.content, words));
        let injected = |content: &str| dialogue.never.iter().any(|word| has(content, word));
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
    assert_eq!(world.count("learning_jobs").await, 0, "nothing was given up");
    println!(
        "\n{name}\n\n| dialogues | | facts | found | too much | changes | in history | injected |\n|---|---|---|---|---|---|---|---|"
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
fn there_are_dialogues_of_each_kind_in_both_languages() {
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
async fn figures_of_the_rules() {
    let figures = figures("by rules", Arc::new(RuleExtractor), |_| {}).await;
    assert_eq!(figures.injected, 0);
    assert!(figures.precision() >= 0.9, "{figures:?}");
    assert!(figures.recall() >= 0.75, "{figures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_a_scripted_model() {
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
