//! Hits, scores and totals of every kind of search equal a calculation from the stored postings and vectors.

use std::collections::{BTreeMap, BTreeSet};

use agent_service::{
    embedding::{Embedder as _, HashedEmbedder},
    memory::{MAX_COUNTED, RetrievalQuery},
};
use sqlx::{Executor as _, PgConnection, Row as _};

use crate::harness::{TestServer, engine_query, memory_input, user};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap()
    }
}

/// Terms that no stemmer changes; those at the beginning are frequent.
const WORDS: [&str; 16] = [
    "kat", "zat", "mat", "dok", "lok", "frint", "bort", "zang", "tri", "wok", "gruk", "pim", "xan", "vob", "hux",
    "jalt",
];

fn text(random: &mut Random, words: usize) -> String {
    let word = |random: &mut Random| {
        let rank = random.below(WORDS.len()).min(random.below(WORDS.len()));
        WORDS[rank]
    };
    (0..words).map(|_| word(random)).collect::<Vec<_>>().join(" ")
}

/// The postings and vectors of the user `ann`.
struct Stored {
    /// By term and memory: frequency and length.
    postings: BTreeMap<String, BTreeMap<String, (f64, f64)>>,
    vectors: BTreeMap<String, Vec<f64>>,
}

impl Stored {
    async fn read(owner: &mut PgConnection) -> Self {
        let mut postings: BTreeMap<String, BTreeMap<_, _>> = BTreeMap::new();
        let rows = owner.fetch_all("select term, memory_id, frequency::float8, length::float8 from memory_postings");
        for row in rows.await.unwrap() {
            postings.entry(row.get(0)).or_default().insert(row.get(1), (row.get(2), row.get(3)));
        }
        let rows = owner.fetch_all("select memory_id, embedding::real[]::float8[] from memory_vectors").await.unwrap();
        Self { postings, vectors: rows.iter().map(|row| (row.get(0), row.get(1))).collect() }
    }

    fn lexical(&self, query: &str) -> BTreeMap<&str, f64> {
        let lengths: BTreeMap<&str, f64> =
            self.postings.values().flatten().map(|(id, (_, length))| (id.as_str(), *length)).collect();
        let memories = lengths.len() as f64;
        let average = lengths.values().sum::<f64>() / memories;
        let terms: BTreeSet<&str> = query.split(' ').filter(|term| self.postings.contains_key(*term)).collect();
        let idf = |term: &str| {
            let matching = self.postings[term].len() as f64;
            (1.0 + (memories - matching + 0.5) / (matching + 0.5)).ln()
        };
        let mut scores: BTreeMap<&str, f64> = BTreeMap::new();
        for term in &terms {
            for (id, (frequency, length)) in &self.postings[*term] {
                *scores.entry(id).or_default() +=
                    idf(term) * frequency * 2.2 / (frequency + 1.2 * (0.25 + 0.75 * length / average));
            }
        }
        let reference: f64 = terms.iter().map(|term| idf(term)).sum();
        let mapped = |x: f64| x / (1.0 + x * x).sqrt();
        scores.into_iter().map(|(id, score)| (id, mapped(score / reference))).collect()
    }

    fn scores(&self, query: &RetrievalQuery, vector: &[f32]) -> BTreeMap<&str, f64> {
        let alpha = f64::from(query.alpha);
        let mut scores: BTreeMap<&str, f64> = BTreeMap::new();
        if alpha > 0.0 {
            for (id, stored) in &self.vectors {
                let cosine: f64 = stored.iter().zip(vector).map(|(a, b)| a * f64::from(*b)).sum();
                scores.insert(id, alpha * cosine.clamp(0.0, 1.0));
            }
        }
        if alpha < 1.0 {
            for (id, score) in self.lexical(&query.text) {
                *scores.entry(id).or_default() += (1.0 - alpha) * score;
            }
        }
        scores
    }
}

async fn assert_equals_calculation(server: &TestServer, stored: &Stored, query: &RetrievalQuery) {
    let vector = HashedEmbedder::new().embed(&[&query.text]).await.unwrap().remove(0);
    let scores = stored.scores(query, &vector);
    let found = server.engine.retrieve(&user("ann"), query).await.unwrap();
    let hits: Vec<(&str, f32)> = found.hits.iter().map(|(memory, score)| (memory.id.as_str(), *score)).collect();
    assert!(
        hits.is_sorted_by(|(a, a_score), (b, b_score)| a_score > b_score || a_score == b_score && a < b),
        "{query:?}: {hits:?}"
    );
    let mut expected: Vec<f64> = scores.values().copied().filter(|score| *score >= query.min_score.into()).collect();
    expected.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(hits.len(), expected.len().min(query.limit), "{query:?}");
    for ((id, score), best) in hits.iter().zip(&expected) {
        assert!((f64::from(*score) - best).abs() < 1e-5, "{query:?}: {score} is not {best}");
        assert!((f64::from(*score) - scores[id]).abs() < 1e-5, "{query:?}: {id} scores {}", scores[id]);
    }
    if query.counts_matches {
        assert_eq!(found.total, expected.len().min(MAX_COUNTED.max(query.limit)), "{query:?}");
    }
    // Of equal scores the first ids are found.
    if let Some((last, score)) = hits.last() {
        let before = |id: &str| id < *last && !hits.iter().any(|(hit, _)| *hit == id);
        let missed: Vec<_> =
            scores.iter().filter(|(id, of_id)| before(id) && **of_id > f64::from(*score) + 1e-5).collect();
        assert!(missed.is_empty(), "{query:?}: {missed:?}");
    }
}

#[tokio::test]
async fn hits_and_totals_equal_a_calculation_over_all_memories() {
    let server = TestServer::start(&[]).await;
    let mut random = Random(15);
    let mut memories: Vec<_> = (0..1_300)
        .map(|number| {
            let words = 1 + random.below(8);
            memory_input(&format!("m{number:04}"), &text(&mut random, words))
        })
        .collect();
    for number in 0..40 {
        memories[600 + number].supersedes = vec![format!("m{number:04}")];
    }
    server.add_memories("ann", memories[..800].to_vec()).await;
    server.add_memories("ann", memories[800..].to_vec()).await;
    server.delete_memories(&["m0900", "m0901"]).await;
    let mut owner = server.connect_as_owner().await;
    // Memories without a vector, as a store has while it moves to another model.
    owner.execute("delete from memory_vectors where memory_id between 'm0500' and 'm0519'").await.unwrap();
    let stored = Stored::read(&mut owner).await;
    for number in 0..15 {
        let words = 1 + random.below(6);
        let query = engine_query(&text(&mut random, words), 1.0);
        for alpha in [0.0, 0.1, 0.5, 0.9, 1.0] {
            for (limit, min_score, counts_matches) in
                [(10, 0.0, true), (1, 0.0, false), (100, 0.0, true), (10, 0.3, true), (8, 0.2, false)]
            {
                if number % 5 != 0 && limit != 10 {
                    continue;
                }
                let query = RetrievalQuery { alpha, limit, min_score, counts_matches, ..query.clone() };
                assert_equals_calculation(&server, &stored, &query).await;
            }
        }
    }
}

#[tokio::test]
async fn equal_scores_are_ordered_by_id_among_many_duplicates() {
    let server = TestServer::start(&[]).await;
    let memories: Vec<_> = (0..900)
        .map(|number| memory_input(&format!("m{number:04}"), if number % 3 == 0 { "kat zat" } else { "kat" }))
        .collect();
    server.add_memories("ann", memories).await;
    let stored = Stored::read(&mut server.connect_as_owner().await).await;
    let every_third: Vec<String> = (0..10).map(|number| format!("m{:04}", 3 * number)).collect();
    for alpha in [0.0, 0.5, 1.0] {
        let query = engine_query("kat zat", alpha);
        assert_equals_calculation(&server, &stored, &query).await;
        let found = server.engine.retrieve(&user("ann"), &query).await.unwrap();
        assert_eq!(found.hits.iter().map(|(memory, _)| memory.id.clone()).collect::<Vec<_>>(), every_third, "{alpha}");
        assert_eq!(found.total, 900);
    }
}

#[tokio::test]
async fn terms_beyond_the_postings_budget_are_dropped_most_frequent_first() {
    let server = TestServer::start(&[]).await;
    let contents = [("a", "kat zat"), ("b", "zat mat"), ("c", "mat"), ("d", "dok")];
    server.add_memories("ann", contents.map(|(id, content)| memory_input(id, content)).to_vec()).await;
    let mut owner = server.connect_as_owner().await;
    owner
        .execute(
            "update memory_users set memories = 200000;
             update memory_terms set memories = case term when 'kat' then 3 when 'zat' then 40000 when 'mat' then 60000 end
             where term in ('kat', 'zat', 'mat')",
        )
        .await
        .unwrap();
    let found = async |text: &str| {
        let found = server.engine.retrieve(&user("ann"), &engine_query(text, 0.0)).await.unwrap();
        found.hits.into_iter().map(|(memory, _)| memory.id).collect::<BTreeSet<_>>()
    };
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(found("mat kat zat").await, ids(&["a", "b"]));
    assert_eq!(found("mat").await, ids(&["b", "c"]), "the rarest term is never dropped");
    assert_eq!(found("unheard").await, ids(&[]));
}
