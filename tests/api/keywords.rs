//! Finding by words, alone and together with meaning.

use std::collections::{BTreeMap, HashMap};

use agent_service::proto::agent_v1 as pb;
use sqlx::{Executor as _, Row as _};
use tonic::Code;

use crate::{
    fake_provider::FakeProvider,
    harness::{TestServer, ask},
};

fn query(text: &str, alpha: f32) -> pb::MemoryQuery {
    pb::MemoryQuery {
        user_id: "ann".into(),
        query_text: text.into(),
        hybrid_alpha: Some(alpha),
        limit: 100,
        ..Default::default()
    }
}

async fn add(server: &TestServer, memories: &[(&str, &str)]) {
    let memory = |(id, content): &(&str, &str)| pb::MemoryInput {
        id: (*id).into(),
        content: (*content).into(),
        ..Default::default()
    };
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories: memories.iter().map(memory).collect() };
    server.memory().add_memories(request).await.unwrap();
}

async fn forget(server: &TestServer, ids: &[&str]) {
    // A request that names nothing is refused.
    if ids.is_empty() {
        return;
    }
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let request = pb::DeleteMemoriesRequest { user_id: "ann".into(), ids, ..Default::default() };
    server.memory().delete_memories(request).await.unwrap();
}

async fn scores(server: &TestServer, query: pb::MemoryQuery) -> BTreeMap<String, f32> {
    let found = server.agent().retrieve_memory(query).await.unwrap().into_inner();
    assert!(found.items.is_sorted_by(|a, b| a.score >= b.score));
    found.items.into_iter().map(|item| (item.id, item.score)).collect()
}

async fn found(server: &TestServer, text: &str, alpha: f32) -> Vec<String> {
    let found = server.agent().retrieve_memory(query(text, alpha)).await.unwrap().into_inner();
    found.items.into_iter().map(|item| item.id).collect()
}

/// Words of the day, the month, the year and the weekday, which are indexed with every memory.
const DATE_WORDS: f64 = 4.0;

/// Okapi BM25 by the book, over words between spaces, measured by the sum of the known words' weights and bent into 0 to 1.
fn reference(memories: &BTreeMap<&str, &str>, query: &str) -> BTreeMap<String, f32> {
    let (k1, b) = (1.2, 0.75);
    let words: BTreeMap<&str, Vec<&str>> = memories.iter().map(|(id, text)| (*id, text.split(' ').collect())).collect();
    let count = words.len() as f64;
    let average = words.values().map(Vec::len).sum::<usize>() as f64 / count + DATE_WORDS;
    let mut scores: HashMap<&str, f64> = HashMap::new();
    let mut unit = 0.0;
    for term in query.split(' ') {
        let with_term = words.values().filter(|words| words.contains(&term)).count() as f64;
        if with_term == 0.0 {
            continue;
        }
        let idf = (1.0 + (count - with_term + 0.5) / (with_term + 0.5)).ln();
        unit += idf;
        for (id, words) in &words {
            let frequency = words.iter().filter(|word| **word == term).count() as f64;
            let length = words.len() as f64 + DATE_WORDS;
            *scores.entry(id).or_default() +=
                idf * frequency * (k1 + 1.0) / (frequency + k1 * (1.0 - b + b * length / average));
        }
    }
    let bent = |(id, score): (&str, f64)| {
        let x = score / unit;
        (id.to_owned(), (x / (1.0 + x * x).sqrt()) as f32)
    };
    scores.into_iter().filter(|(_, score)| *score > 0.0).map(bent).collect()
}

/// What is added, and what is forgotten then.
type Step = (&'static [(&'static str, &'static str)], &'static [&'static str]);

#[tokio::test]
async fn scores_are_those_of_okapi_bm25_after_every_add_change_and_forgetting() {
    let server = TestServer::start(&[]).await;
    // Words that no stemmer knows.
    let mut memories: BTreeMap<&str, &str> = BTreeMap::new();
    let steps: [Step; 5] = [
        (&[("a", "kat zat mat"), ("b", "dok zat lok lok"), ("c", "kat dok frint")], &[]),
        (&[("d", "bort zang tri kat kat"), ("e", "zat zat zat")], &[]),
        (&[("b", "kat lok"), ("f", "mat")], &["a"]),
        (&[("a", "kat zat mat"), ("c", "tri")], &["d", "none"]),
        (&[], &["b", "e"]),
    ];
    for (added, forgotten) in steps {
        add(&server, added).await;
        forget(&server, forgotten).await;
        memories.extend(added.iter().copied());
        memories.retain(|id, _| !forgotten.contains(id));
        for text in ["kat", "zat", "kat zat", "lok mat tri", "kat unheard", "dok frint zang bort"] {
            let (ours, expected) = (scores(&server, query(text, 0.0)).await, reference(&memories, text));
            assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{text}: {memories:?}");
            for (id, score) in &ours {
                assert!((score - expected[id]).abs() < 1e-4, "{text}, {id}: {score} is not {}", expected[id]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_statistics_are_right_after_many_writers_at_once() {
    let server = TestServer::start(&[]).await;
    let server = &server;
    let writer = async |writer: usize| {
        for round in 0..6 {
            let memories: Vec<_> = (0..20)
                .map(|n| (format!("m{}", (n * 7 + writer) % 25), format!("kat{} zat{} mok", (n + round) % 5, n % 3)))
                .collect();
            let memories: Vec<_> = memories.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
            add(server, &memories).await;
            forget(server, &[&format!("m{}", (round * 3 + writer) % 25), "m1"]).await;
        }
    };
    tokio::join!(writer(0), writer(1), writer(2));
    let mut behind = server.database.as_ref().unwrap().connect().await;
    for (what, statement) in [
        (
            "document frequencies",
            "select count(*) from (select term, count(*) as memories from memory_postings group by term) counted
             full join memory_terms using (term, memories) where counted.term is null or memory_terms.term is null",
        ),
        (
            "count and length",
            "select count(*) from memory_users,
                    (select count(*) as n, sum(length) as total
                     from (select distinct memory_id, length from memory_postings) each) counted
             where (memories, total_length) is distinct from (n, total)",
        ),
        (
            "memories without postings, or the other way round",
            "select count(*) from memories full join (select distinct memory_id as id from memory_postings) indexed
             using (id) where content is null or indexed.id is null",
        ),
    ] {
        let wrong: i64 = sqlx::query_scalar(statement).fetch_one(&mut behind).await.unwrap();
        assert_eq!(wrong, 0, "{what}");
    }
}

#[tokio::test]
async fn words_are_found_in_their_forms_in_english_and_chinese() {
    let server = TestServer::start(&[]).await;
    let memories = [
        ("english", "I keep mixing up eigenvalues, and my résumé mentions GPT-4 and C++"),
        ("chinese", "我总是搞混特征值和特征向量，高数2024期末考试"),
    ];
    add(&server, &memories).await;
    for (text, expected) in [
        ("eigenvalue", "english"),
        ("MIXED", "english"),
        ("resume", "english"),
        ("gpt4", "english"),
        ("c++", "english"),
        ("特征值", "chinese"),
        ("高数", "chinese"),
        ("2024", "chinese"),
        ("ＧＰＴ－４", "english"),
    ] {
        assert_eq!(found(&server, text, 0.0).await, [expected], "{text}");
    }
    assert!(found(&server, "gardening", 0.0).await.is_empty(), "a memory without any of the words is no hit");
}

#[tokio::test]
async fn words_alone_never_ask_the_embedder_and_meaning_alone_never_looks_up_words() {
    let mut provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.embedding_variables()).await;
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    add(&server, &[("a", "kat zat")]).await;
    provider.requests.recv().await.unwrap();
    for alpha in [0.0, 0.0009] {
        assert_eq!(found(&server, "kat", alpha).await, ["a"]);
    }
    assert!(provider.requests.try_recv().is_err(), "the embedder was asked");
    let mut behind = server.database.as_ref().unwrap().connect().await;
    behind.execute("drop table memory_postings, memory_terms").await.unwrap();
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    assert_eq!(found(&server, "anything", 1.0).await, ["a"]);
}

#[tokio::test]
async fn a_hybrid_score_is_the_weighted_mean_of_both_legs() {
    let server = TestServer::start(&[]).await;
    add(&server, &[("a", "kat zat mat"), ("b", "kat lok"), ("c", "dok frint")]).await;
    let (words, meaning) = (scores(&server, query("kat mat", 0.0)).await, scores(&server, query("kat mat", 1.0)).await);
    for alpha in [0.25, 0.5, 0.75] {
        for (id, score) in scores(&server, query("kat mat", alpha)).await {
            let expected = alpha * meaning[&id] + (1.0 - alpha) * words.get(&id).copied().unwrap_or(0.0);
            assert!((score - expected).abs() < 1e-5, "{id} at {alpha}: {score} is not {expected}");
        }
    }
    let unset = scores(&server, pb::MemoryQuery { hybrid_alpha: None, ..query("kat mat", 0.0) }).await;
    assert_eq!(unset, scores(&server, query("kat mat", 0.5)).await, "not set is one half");
}

#[tokio::test]
async fn a_floor_and_a_filter_hold_on_every_leg() {
    let server = TestServer::start(&[]).await;
    add(&server, &[("a", "kat zat mat"), ("b", "kat lok lok lok lok lok"), ("c", "dok frint")]).await;
    for alpha in [0.0, 0.5, 1.0] {
        let all = scores(&server, query("kat mat", alpha)).await;
        let floor = all["b"] + 1e-4;
        let above = scores(&server, pb::MemoryQuery { min_score: floor, ..query("kat mat", alpha) }).await;
        assert_eq!(above.keys().collect::<Vec<_>>(), ["a"], "alpha {alpha}: {all:?}");
        let filter = Some(pb::MemoryFilter { source_types: vec!["chat".into()], ..Default::default() });
        assert!(
            scores(&server, pb::MemoryQuery { filter, ..query("kat mat", alpha) }).await.is_empty(),
            "alpha {alpha}"
        );
    }
}

#[tokio::test]
async fn an_embedder_that_fails_leaves_the_words_and_the_metadata_says_so() {
    let provider = FakeProvider::start().await;
    let server = TestServer::start(&provider.embedding_variables()).await;
    provider.refuse(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    add(&server, &[("a", "kat zat")]).await;
    provider.refuse(503, "").await;
    let response = server.agent().retrieve_memory(query("kat", 0.5)).await.unwrap();
    assert_eq!(response.metadata().get("x-retrieval").unwrap(), "keywords-only");
    assert_eq!(response.get_ref().items[0].id, "a");
    provider.refuse(503, "").await;
    assert_eq!(server.agent().retrieve_memory(query("kat", 1.0)).await.unwrap_err().code(), Code::Unavailable);
    provider.refuse(503, "").await;
    let frames = server.chat(ask("kat")).await.unwrap();
    assert!(frames.iter().any(|frame| crate::harness::kind(frame) == "citations"), "a turn is grounded all the same");
}

#[tokio::test]
async fn memories_from_before_the_index_or_of_another_tokeniser_are_indexed_when_they_are_searched() {
    let server = TestServer::start(&[]).await;
    add(&server, &[("a", "kat zat"), ("b", "dok")]).await;
    let mut behind = server.database.as_ref().unwrap().connect().await;
    for change in [
        "truncate memory_users, memory_postings, memory_terms",
        "update memory_users set tokenizer = -1; update memory_postings set term = 'stale' where term = 'kat'",
    ] {
        behind.execute(change).await.unwrap();
        assert_eq!(found(&server, "kat", 0.0).await, ["a"], "{change}");
    }
    // Whoever has no memories leaves nothing behind by asking.
    let stranger = pb::MemoryQuery { user_id: "bob".into(), ..query("kat", 0.0) };
    assert!(scores(&server, stranger).await.is_empty());
    let users = sqlx::query("select count(*) as n from memory_users").fetch_one(&mut behind).await.unwrap();
    assert_eq!(users.get::<i64, _>("n"), 1);
}

#[tokio::test]
async fn a_time_that_the_query_names_brings_its_memories_forward() {
    let server = TestServer::start(&[]).await;
    let now = jiff::Timestamp::now().as_second();
    let told = |id: &str, days_ago: i64| pb::MemoryInput {
        id: id.into(),
        content: "I studied matrices 我学了矩阵".into(),
        created_at: Some(prost_types::Timestamp { seconds: now - days_ago * 86_400, nanos: 0 }),
        ..Default::default()
    };
    // Seven days ago is always in the week before this one, and fifty days ago never.
    let memories = vec![told("longer", 50), told("week", 7), told("year", 366 + 366)];
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
    server.memory().add_memories(request).await.unwrap();
    for text in ["which matrices did I study last week?", "上周学了什么矩阵"] {
        for alpha in [0.0, 0.5, 1.0] {
            let found = server.agent().retrieve_memory(query(text, alpha)).await.unwrap().into_inner().items;
            assert_eq!(found[0].id, "week", "{text} {alpha}");
            let bonus = found[0].score - found[1].score;
            assert!(bonus > 0.02, "{text} {alpha}: {bonus}");
            assert!(found.iter().all(|item| item.score <= 1.0));
        }
    }
}

#[tokio::test]
async fn a_time_that_a_query_names_is_of_the_time_zone_that_the_caller_tells() {
    let server = TestServer::start(&[]).await;
    // On May 8 in Shanghai, and still on May 7 in London.
    let told = |id: &str, seconds: i64| pb::MemoryInput {
        id: id.into(),
        content: "kat".into(),
        created_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        ..Default::default()
    };
    let memories = vec![told("evening", 1_683_486_000), told("day", 1_683_540_000)];
    let request = pb::AddMemoriesRequest { user_id: "ann".into(), memories };
    server.memory().add_memories(request).await.unwrap();
    let bonus_of_evening = async |zone: Option<&'static str>| {
        let mut request = tonic::Request::new(query("kat 2023-05-08", 1.0));
        if let Some(zone) = zone {
            request.metadata_mut().insert("x-timezone", zone.parse().unwrap());
        }
        let found = server.agent().retrieve_memory(request).await.unwrap().into_inner().items;
        let score = |id: &str| found.iter().find(|item| item.id == id).unwrap().score;
        (score("evening") - score("day")).abs() < 1e-6
    };
    assert!(bonus_of_evening(Some("Asia/Shanghai")).await);
    for utc in [None, Some("UTC"), Some("Nowhere/Nothing")] {
        assert!(!bonus_of_evening(utc).await, "{utc:?}");
    }
}
