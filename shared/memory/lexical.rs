use std::collections::BTreeSet;

use super::tokenizer;

/// Postings that one search reads. The most frequent terms are dropped first: they cost most and discriminate least.
pub(super) const POSTINGS_BUDGET: u64 = 50_000;

const MAX_TERMS: usize = 256;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct QueryTerm {
    pub(super) term: String,
    pub(super) idf: f64,
    pub(super) document_frequency: u64,
}

/// At most 256 terms.
pub(crate) fn distinct_terms(text: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let distinct = tokenizer::terms(text).into_iter().filter(|term| seen.insert(term.clone()));
    distinct.take(MAX_TERMS).collect()
}

/// Keeps at least the rarest term.
pub(super) fn within_budget(mut terms: Vec<QueryTerm>) -> Vec<QueryTerm> {
    terms.sort_by(|a, b| a.document_frequency.cmp(&b.document_frequency).then_with(|| a.term.cmp(&b.term)));
    let mut read = 0;
    let mut is_first = true;
    terms.retain(|term| {
        read += term.document_frequency;
        std::mem::take(&mut is_first) || read <= POSTINGS_BUDGET
    });
    terms
}

/// The score of a memory of average length that has each term once. Scores are divided by it.
pub(super) fn reference_score(terms: &[QueryTerm]) -> f64 {
    terms.iter().map(|term| term.idf).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::bm25;

    fn term(term: &str, document_frequency: u64) -> QueryTerm {
        QueryTerm { term: term.into(), idf: bm25::idf(1_000_000, document_frequency), document_frequency }
    }

    #[test]
    fn distinct_terms_keep_their_order() {
        assert_eq!(distinct_terms("Algebra, algebra and 特征值"), ["algebra", "特征", "征值"]);
    }

    #[test]
    fn budget_drops_frequent_terms_and_never_the_rarest() {
        let within = |terms| within_budget(terms).into_iter().map(|term| term.term).collect::<Vec<_>>();
        assert_eq!(within(vec![term("all", 60_000), term("rare", 3), term("some", 40_000)]), ["rare", "some"]);
        assert_eq!(within(vec![term("all", 60_000)]), ["all"]);
        assert!(within(Vec::new()).is_empty());
    }
}
