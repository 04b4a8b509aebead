//! Okapi BM25: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), with the
//! inverse document frequency of Lucene. Search computes it in SQL (`store/sql/search_lexical.sql`).

/// ln(1 + (N - n + 0.5) / (n + 0.5)), positive for every n up to N; Robertson's form is negative for terms in more than
/// half of the documents. A larger n, as between two writes, counts as N.
pub(super) fn idf(documents: u64, document_frequency: u64) -> f64 {
    let document_frequency = as_f64(document_frequency.min(documents));
    ((as_f64(documents) - document_frequency + 0.5) / (document_frequency + 0.5)).ln_1p()
}

/// Counts of documents are far below 2^53, where the conversion begins to round.
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const K1: f64 = 1.2;
    const B: f64 = 0.75;

    /// idf · tf · (k1 + 1) / (tf + k1 · (1 - b + b · length / average length)).
    fn term_score(idf: f64, tf: f64, relative_length: f64, k1: f64, b: f64) -> f64 {
        if tf <= 0.0 { 0.0 } else { idf * tf * (k1 + 1.0) / (tf + k1 * (1.0 - b + b * relative_length)) }
    }

    const CORPUS: [&str; 5] = [
        "the cat sat on the mat",
        "the dog sat on the log",
        "cats and dogs are friends",
        "a bird sang in the tree",
        "my cat chased a bird and my cat slept",
    ];

    fn scores(query: &str, k1: f64, idf: impl Fn(u64, u64, &str) -> f64) -> Vec<f64> {
        let documents: Vec<Vec<&str>> = CORPUS.iter().map(|text| text.split(' ').collect()).collect();
        let average = as_f64(documents.iter().map(|document| document.len() as u64).sum()) / as_f64(5);
        let score = |document: &Vec<&str>| {
            let of_term = |term| {
                let document_frequency = documents.iter().filter(|other| other.contains(&term)).count() as u64;
                let tf = document.iter().filter(|other| **other == term).count() as u64;
                term_score(idf(5, document_frequency, term), as_f64(tf), as_f64(document.len() as u64) / average, k1, B)
            };
            query.split(' ').map(of_term).sum()
        };
        documents.iter().map(score).collect()
    }

    fn assert_close(actual: &[f64], expected: &[f64]) {
        assert_eq!(actual.len(), expected.len());
        for (actual, expected) in actual.iter().zip(expected) {
            assert!((actual - expected).abs() < 1e-6, "{actual} is not {expected}");
        }
    }

    #[test]
    fn scores_match_hand_computed_values() {
        // N = 5, n = 2: ln(1 + 3.5 / 2.5) = ln 2.4.
        assert_close(&[idf(5, 2), idf(5, 1), idf(5, 3)], &[0.875_468_737, 1.386_294_361, 0.538_996_501]);
        // 6 of 6.4 terms on average: 0.875469 * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 6 / 6.4)).
        assert_close(&[term_score(0.875_468_737, 1.0, 6.0 / 6.4, 1.2, 0.75)], &[0.898_440_3]);
    }

    #[test]
    fn scores_match_rank_bm25() {
        // rank_bm25 0.2.2: BM25Okapi(corpus, k1=1.2, b=0.75) with its `idf` replaced by the one above.
        let ours = |documents, document_frequency, _: &str| idf(documents, document_frequency);
        assert_close(&scores("cat bird", 1.2, ours), &[0.898_440, 0.0, 0.0, 0.898_440, 1.831_039]);
        assert_close(&scores("the cat", 1.2, ours), &[1.652_821, 0.754_381, 0.0, 0.553_139, 1.080_333]);
        // With its own idf for k1 = 1.5: a quarter of the average in place of a negative one.
        let okapi = |documents: u64, document_frequency: u64, term: &str| match term {
            "the" => 0.199_554_011_697,
            _ => ((as_f64(documents - document_frequency) + 0.5) / (as_f64(document_frequency) + 0.5)).ln(),
        };
        assert_close(&scores("cat bird", 1.5, okapi), &[0.346_209, 0.0, 0.0, 0.346_209, 0.709_625]);
        assert_close(&scores("the cat", 1.5, okapi), &[0.637_131, 0.290_922, 0.0, 0.205_329, 0.425_157]);
        assert_close(&scores("dog sat", 1.5, okapi), &[0.346_209, 1.476_614, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn score_grows_with_rarity_and_frequency_and_falls_with_length() {
        assert!((0..100).all(|n| idf(100, n) > idf(100, n + 1)));
        assert!(idf(100, 100) > 0.0 && idf(1, 1) > 0.0);
        let score = |tf, length| term_score(1.0, tf, length / 10.0, K1, B);
        assert!(score(2.0, 10.0) > score(1.0, 10.0) && score(1.0, 9.0) > score(1.0, 10.0));
        assert!(score(1e9, 10.0) < K1 + 1.0);
    }

    #[test]
    fn inconsistent_counts_give_finite_scores() {
        assert!(idf(3, 9) > 0.0 && idf(0, 0).is_finite());
        assert_close(&[term_score(1.0, 0.0, 0.0, K1, B), term_score(1.0, 1.0, 1.0, K1, B)], &[0.0, 1.0]);
    }
}
