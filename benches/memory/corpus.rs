//! SyntheticEmbedder texts and vectors, the same in every run.

use agent_service::{
    embedding::{EmbedError, Embedder, EmbeddingModel},
    memory::NewMemory,
};
use futures_util::future::BoxFuture;
use jiff::{Timestamp, ToSpan as _};

/// The dimension of all-MiniLM-L6-v2.
const DIMENSION: usize = 384;
const SUBJECTS: u64 = 500;
/// Distance of a text from its subject: two texts of a subject have a cosine of 1 / (1 + 0.8²) = 0.61.
const SPREAD: f32 = 0.8;
const WORDS: usize = 20_000;
/// Zipf-Mandelbrot: the frequency of the term of rank r is proportional to 1 / (r + SHIFT). The shift leaves out stop words,
/// which are not indexed.
const SHIFT: f64 = 20.0;
const WORDS_OF_MEMORY: usize = 15;
const WORDS_OF_QUERY: usize = 6;
/// Each of them stands in this share of the memories of a corpus with common words.
const COMMON_SHARE: f64 = 0.14;
const COMMON_WORDS: [&str; 5] = ["kat", "zat", "mok", "dok", "frint"];
const RARE_WORDS_OF_QUERY: usize = 5;
const SYLLABLES: [&str; 30] = [
    "ba", "ke", "lo", "mi", "tu", "ran", "sel", "dor", "vin", "gul", "pa", "he", "no", "ji", "fu", "tam", "len", "wor",
    "zim", "kub", "sha", "che", "tho", "bri", "plu", "gra", "ste", "flo", "qui", "dru",
];

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Seeded by the FNV-1a hash of a text.
    fn of_text(text: &str) -> Self {
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(hash)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    #[expect(clippy::cast_possible_truncation, reason = "it is below a usize")]
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Uniform in 0..1.
    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Approximately normal: the sum of four uniform random.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u64 = (0..4).map(|part| (bits >> (16 * part)) & 0xffff).sum();
        (sum as f32 - 131_070.0) / 37_837.0
    }

    fn direction(&mut self) -> Vec<f32> {
        unit((0..DIMENSION).map(|_| self.normal()).collect())
    }
}

fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    for x in &mut vector {
        *x /= length;
    }
    vector
}

pub struct Corpus {
    words: Vec<String>,
    random: Random,
    now: Timestamp,
    has_common_words: bool,
}

impl Corpus {
    pub fn new(seed: u64) -> Self {
        let syllable = |number: usize| SYLLABLES[number % SYLLABLES.len()];
        let base = SYLLABLES.len();
        let word = |rank: usize| format!("{}{}{}", syllable(rank), syllable(rank / base), syllable(rank / base / base));
        let words = (0..WORDS).map(word).collect();
        Self { words, random: Random::new(seed), now: Timestamp::now(), has_common_words: false }
    }

    pub fn with_common_words(seed: u64) -> Self {
        Self { has_common_words: true, ..Self::new(seed) }
    }

    fn text(&mut self, words: usize) -> String {
        let of_rank = |share: f64| SHIFT * ((WORDS as f64 / SHIFT + 1.0).powf(share) - 1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank is 0 to 20,000")]
        let rank = |share: f64| (of_rank(share) as usize).min(WORDS - 1);
        let words: Vec<&str> = (0..words).map(|_| self.words[rank(self.random.uniform())].as_str()).collect();
        words.join(" ")
    }

    pub fn query(&mut self) -> String {
        self.text(WORDS_OF_QUERY)
    }

    /// Five words that each stand in 14 % of the memories, and one that makes the vector another.
    pub fn common_query(&mut self) -> String {
        format!("{} {}", COMMON_WORDS.join(" "), self.text(1))
    }

    /// Words of the rarer half of the vocabulary.
    pub fn rare_query(&mut self) -> String {
        let word = |random: &mut Random| WORDS / 2 + random.below(WORDS / 2);
        let words: Vec<&str> = (0..RARE_WORDS_OF_QUERY).map(|_| self.words[word(&mut self.random)].as_str()).collect();
        words.join(" ")
    }

    pub fn content(&mut self) -> String {
        let mut text = self.text(WORDS_OF_MEMORY);
        if self.has_common_words {
            for word in COMMON_WORDS {
                if self.random.uniform() < COMMON_SHARE {
                    text.extend([" ", word]);
                }
            }
        }
        text
    }

    /// Memories of the last three years.
    pub fn memories(&mut self, count: usize) -> Vec<NewMemory> {
        let memory = |_| NewMemory {
            id: None,
            content: self.content(),
            source_type: "note".to_owned(),
            tags: Vec::new(),
            created_at: self.now.checked_sub(((self.random.next() % 26_000).cast_signed()).hours()).ok(),
            metadata: Default::default(),
            supersedes: Vec::new(),
        };
        (0..count).map(memory).collect()
    }
}

/// Vectors depend on the text alone, and cost no time.
pub struct SyntheticEmbedder {
    model: EmbeddingModel,
    /// Centers of the clusters; empty for vectors without structure.
    subjects: Vec<Vec<f32>>,
}

impl SyntheticEmbedder {
    pub fn clustered() -> Self {
        let mut random = Random::new(7);
        Self { subjects: (0..SUBJECTS).map(|_| random.direction()).collect(), ..Self::scattered() }
    }

    /// Vectors in random directions: the worst case for an ANN index.
    pub fn scattered() -> Self {
        let model = EmbeddingModel { name: "synthetic".to_owned(), dimension: DIMENSION };
        Self { model, subjects: Vec::new() }
    }

    pub fn vector(&self, text: &str) -> Vec<f32> {
        let mut random = Random::of_text(text);
        let Some(last) = self.subjects.len().checked_sub(1) else { return random.direction() };
        #[expect(clippy::cast_possible_truncation, reason = "it is below the number of subjects")]
        let center = &self.subjects[(random.next() % (last as u64 + 1)) as usize];
        unit(center.iter().zip(random.direction()).map(|(center, offset)| center + SPREAD * offset).collect())
    }
}

impl Embedder for SyntheticEmbedder {
    fn model(&self) -> &EmbeddingModel {
        &self.model
    }

    fn embed<'a>(&'a self, texts: &'a [&'a str]) -> BoxFuture<'a, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move { Ok(texts.iter().map(|text| self.vector(text)).collect()) })
    }
}
