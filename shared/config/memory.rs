use super::EnvReader;

pub(super) const BM25_K1: &str = "BM25_K1";
pub(super) const BM25_B: &str = "BM25_B";
pub(super) const VECTOR_INDEX_THRESHOLD: &str = "VECTOR_INDEX_THRESHOLD";

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryConfig {
    /// BM25 term frequency saturation, 0 to 10.
    pub k1: f64,
    /// BM25 length normalization, 0 to 1.
    pub b: f64,
    /// Memories of one user from which vectors are searched by an ANN index (HNSW) instead of exact kNN.
    pub vector_index_threshold: usize,
}

impl MemoryConfig {
    pub(super) fn read(reader: &mut EnvReader<'_>) -> Self {
        let threshold = reader.integer(VECTOR_INDEX_THRESHOLD, 1_000, 1_000_000_000, "20000").unwrap_or(20_000);
        Self {
            k1: reader.decimal(BM25_K1, 0.0..=10.0, 1.2),
            b: reader.decimal(BM25_B, 0.0..=1.0, 0.75),
            vector_index_threshold: usize::try_from(threshold).unwrap_or(usize::MAX),
        }
    }
}
