//! The lexical retriever (BM25), alone and in hybrid searches.

use std::collections::{BTreeMap, HashMap};

use agent_service::proto::agent_v1 as pb;
use sqlx::{Executor as _, Row as _};
use tonic::Code;

use crate::harness::{TestServer, ask, assert_index_consistent, frame_kind, memory_input, timestamp, weighted_query};

fn query(text: &str, alpha: f32) -> pb::MemoryQuery {
    pb::MemoryQuery { limit: 100, ..weighted_query(text, alpha) }
}

async fn add(server: &TestServer, memories: &[(&str, &str)]) {
    server.add_memories("ann", memories.iter().map(|(id, content)| memory_input(id, content)).collect()).await;
}

async fn scores(server: &TestServer, query: pb::MemoryQuery) -> BTreeMap<String, f32> {
    let found = server.retrieve(query).await;
    assert!(found.items.is_sorted_by(|a, b| a.score >= b.score));
    found.items.into_iter().map(|item| (item.id, item.score)).collect()
}

async fn found(server: &TestServer, text: &str, alpha: f32) -> Vec<String> {
    let found = server.retrieve(query(text, alpha)).await;
    found.items.into_iter().map(|item| item.id).collect()
}

/// Day, month, year and weekday are indexed with every memory.
const DATE_TERMS: f64 = 4.0;

/// Okapi BM25 over whitespace-separated terms, divided by the sum of the idf of known terms and mapped into 0..1.
fn reference(memories: &BTreeMap<&str, &str>, query: &str) -> BTreeMap<String, f32> {
    let (k1, b) = (1.2, 0.75);
    let terms: BTreeMap<&str, Vec<&str>> = memories.iter().map(|(id, text)| (*id, text.split(' ').collect())).collect();
    let count = terms.len() as f64;
    let average = terms.values().map(Vec::len).sum::<usize>() as f64 / count + DATE_TERMS;
    let mut scores: HashMap<&str, f64> = HashMap::new();
    let mut known_idf = 0.0;
    for term in query.split(' ') {
        let with_term = terms.values().filter(|terms| terms.contains(&term)).count() as f64;
        if with_term == 0.0 {
            continue;
        }
        let idf = (1.0 + (count - with_term + 0.5) / (with_term + 0.5)).ln();
        known_idf += idf;
        for (id, terms) in &terms {
            let frequency = terms.iter().filter(|other| **other == term).count() as f64;
            let length = terms.len() as f64 + DATE_TERMS;
            *scores.entry(id).or_default() +=
                idf * frequency * (k1 + 1.0) / (frequency + k1 * (1.0 - b + b * length / average));
        }
    }
    let mapped = |(id, score): (&str, f64)| {
        let x = score / known_idf;
        (id.to_owned(), (x / (1.0 + x * x).sqrt()) as f32)
    };
    scores.into_iter().filter(|(_, score)| *score > 0.0).map(mapped).collect()
}

type IndexChange = (&'static [(&'static str, &'static str)], &'static [&'static str]);

#[tokio::test]
async fn scores_equal_okapi_bm25_after_every_change() {
    let server = TestServer::start(&[]).await;
    // Terms that no stemmer changes.
    let mut memories: BTreeMap<&str, &str> = BTreeMap::new();
    let changes: [IndexChange; 5] = [
        (&[("a", "kat zat mat"), ("b", "dok zat lok lok"), ("c", "kat dok frint")], &[]),
        (&[("d", "bort zang tri kat kat"), ("e", "zat zat zat")], &[]),
        (&[("b", "kat lok"), ("f", "mat")], &["a"]),
        (&[("a", "kat zat mat"), ("c", "tri")], &["d", "none"]),
        (&[], &["b", "e"]),
    ];
    for (added, deleted) in changes {
        add(&server, added).await;
        // An empty selection is rejected.
        if !deleted.is_empty() {
            server.delete_memories(deleted).await;
        }
        memories.extend(added.iter().copied());
        memories.retain(|id, _| !deleted.contains(id));
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
async fn index_statistics_are_exact_after_concurrent_writes() {
    let server = TestServer::start(&[]).await;
    let server = &server;
    let writer = async |writer: usize| {
        for round in 0..6 {
            let memories: Vec<_> = (0..20)
                .map(|n| (format!("m{}", (n * 7 + writer) % 25), format!("kat{} zat{} mok", (n + round) % 5, n % 3)))
                .collect();
            let memories: Vec<_> = memories.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
            add(server, &memories).await;
            server.delete_memories(&[&format!("m{}", (round * 3 + writer) % 25), "m1"]).await;
        }
    };
    tokio::join!(writer(0), writer(1), writer(2));
    assert_index_consistent(&mut server.connect_as_owner().await).await;
}

#[tokio::test]
async fn terms_match_inflected_english_and_chinese() {
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
    assert!(found(&server, "gardening", 0.0).await.is_empty(), "a memory without any term is no hit");
}

#[tokio::test]
async fn each_retriever_runs_only_when_it_has_weight() {
    let (mut provider, server) = TestServer::start_with_embedder().await;
    provider.respond(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    add(&server, &[("a", "kat zat")]).await;
    provider.requests.recv().await.unwrap();
    for alpha in [0.0, 0.0009] {
        assert_eq!(found(&server, "kat", alpha).await, ["a"]);
    }
    assert!(provider.requests.try_recv().is_err(), "the embedder was called");
    let mut owner = server.connect_as_owner().await;
    owner.execute("drop table memory_postings, memory_terms").await.unwrap();
    provider.respond(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    assert_eq!(found(&server, "anything", 1.0).await, ["a"]);
}

#[tokio::test]
async fn hybrid_score_is_the_weighted_mean_of_both_retrievers() {
    let server = TestServer::start(&[]).await;
    add(&server, &[("a", "kat zat mat"), ("b", "kat lok"), ("c", "dok frint")]).await;
    let (lexical, vector) =
        (scores(&server, query("kat mat", 0.0)).await, scores(&server, query("kat mat", 1.0)).await);
    for alpha in [0.25, 0.5, 0.75] {
        for (id, score) in scores(&server, query("kat mat", alpha)).await {
            let expected = alpha * vector[&id] + (1.0 - alpha) * lexical.get(&id).copied().unwrap_or(0.0);
            assert!((score - expected).abs() < 1e-5, "{id} at {alpha}: {score} is not {expected}");
        }
    }
    let unset = scores(&server, pb::MemoryQuery { hybrid_alpha: None, ..query("kat mat", 0.0) }).await;
    assert_eq!(unset, scores(&server, query("kat mat", 0.5)).await, "the default is 0.5");
}

#[tokio::test]
async fn min_score_and_filter_apply_to_every_retriever() {
    let server = TestServer::start(&[]).await;
    add(&server, &[("a", "kat zat mat"), ("b", "kat lok lok lok lok lok"), ("c", "dok frint")]).await;
    for alpha in [0.0, 0.5, 1.0] {
        let all = scores(&server, query("kat mat", alpha)).await;
        let min_score = all["b"] + 1e-4;
        let above = scores(&server, pb::MemoryQuery { min_score, ..query("kat mat", alpha) }).await;
        assert_eq!(above.keys().collect::<Vec<_>>(), ["a"], "alpha {alpha}: {all:?}");
        let filter = Some(pb::MemoryFilter { source_types: vec!["chat".into()], ..Default::default() });
        assert!(
            scores(&server, pb::MemoryQuery { filter, ..query("kat mat", alpha) }).await.is_empty(),
            "alpha {alpha}"
        );
    }
}

#[tokio::test]
async fn failed_embedder_leaves_lexical_results_and_says_so() {
    let (provider, server) = TestServer::start_with_embedder().await;
    provider.respond(200, r#"{"data":[{"embedding":[1,0]}]}"#).await;
    add(&server, &[("a", "kat zat")]).await;
    provider.respond(503, "").await;
    let response = server.agent().retrieve_memory(query("kat", 0.5)).await.unwrap();
    assert_eq!(response.metadata().get("x-retrieval").unwrap(), "keywords-only");
    assert_eq!(response.get_ref().items[0].id, "a");
    provider.respond(503, "").await;
    assert_eq!(server.agent().retrieve_memory(query("kat", 1.0)).await.unwrap_err().code(), Code::Unavailable);
    provider.respond(503, "").await;
    let frames = server.chat(ask("kat")).await.unwrap();
    assert!(frames.iter().any(|frame| frame_kind(frame) == "citations"), "the turn is grounded lexically");
}

#[tokio::test]
async fn outdated_index_is_rebuilt_on_search() {
    let server = TestServer::start(&[]).await;
    add(&server, &[("a", "kat zat"), ("b", "dok")]).await;
    let mut owner = server.connect_as_owner().await;
    for change in [
        "truncate memory_users, memory_postings, memory_terms",
        "update memory_users set tokenizer = -1; update memory_postings set term = 'stale' where term = 'kat'",
    ] {
        owner.execute(change).await.unwrap();
        assert_eq!(found(&server, "kat", 0.0).await, ["a"], "{change}");
    }
    // A search of a user without memories creates no index.
    let of_bob = pb::MemoryQuery { user_id: "bob".into(), ..query("kat", 0.0) };
    assert!(scores(&server, of_bob).await.is_empty());
    let users = sqlx::query("select count(*) as n from memory_users").fetch_one(&mut owner).await.unwrap();
    assert_eq!(users.get::<i64, _>("n"), 1);
}

#[tokio::test]
async fn date_in_query_boosts_memories_of_that_time() {
    let server = TestServer::start(&[]).await;
    let now = jiff::Timestamp::now().as_second();
    let memory = |id: &str, days_ago: i64| pb::MemoryInput {
        created_at: Some(timestamp(now - days_ago * 86_400)),
        ..memory_input(id, "I studied matrices 我学了矩阵")
    };
    // Seven days ago always lies in last week, fifty days ago never.
    server.add_memories("ann", vec![memory("longer", 50), memory("week", 7), memory("year", 366 + 366)]).await;
    for text in ["which matrices did I study last week?", "上周学了什么矩阵"] {
        for alpha in [0.0, 0.5, 1.0] {
            let found = server.retrieve(query(text, alpha)).await.items;
            assert_eq!(found[0].id, "week", "{text} {alpha}");
            let bonus = found[0].score - found[1].score;
            assert!(bonus > 0.02, "{text} {alpha}: {bonus}");
            assert!(found.iter().all(|item| item.score <= 1.0));
        }
    }
}

#[tokio::test]
async fn date_in_query_is_read_in_the_time_zone_of_the_caller() {
    let server = TestServer::start(&[]).await;
    // May 8 in Shanghai, May 7 in UTC.
    let memory =
        |id: &str, seconds| pb::MemoryInput { created_at: Some(timestamp(seconds)), ..memory_input(id, "kat") };
    server.add_memories("ann", vec![memory("evening", 1_683_486_000), memory("day", 1_683_540_000)]).await;
    let evening_is_boosted = async |zone: Option<&'static str>| {
        let mut request = tonic::Request::new(query("kat 2023-05-08", 1.0));
        if let Some(zone) = zone {
            request.metadata_mut().insert("x-timezone", zone.parse().unwrap());
        }
        let found = server.agent().retrieve_memory(request).await.unwrap().into_inner().items;
        let score = |id: &str| found.iter().find(|item| item.id == id).unwrap().score;
        (score("evening") - score("day")).abs() < 1e-6
    };
    assert!(evening_is_boosted(Some("Asia/Shanghai")).await);
    for utc in [None, Some("UTC"), Some("Nowhere/Nothing")] {
        assert!(!evening_is_boosted(utc).await, "{utc:?}");
    }
}
