//! What the words of a query are worth to a search.

use std::collections::BTreeSet;

use super::tokenizer;

/// Most postings that one search reads. A term that nearly every memory has costs most and says least, so that the most
/// frequent ones are left out first. Where even the rarest has more, the last so many memories by id are looked at: with
/// ids of ours the newest.
pub(super) const POSTINGS_BUDGET: u64 = 50_000;

/// Most terms of one query that are looked up: the first ones of a text that is no question any more.
const MAX_TERMS: usize = 256;

/// A term of a query.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct QueryTerm {
    pub(super) term: String,
    /// Its inverse document frequency.
    pub(super) idf: f64,
    /// In how many memories it stands.
    pub(super) document_frequency: u64,
}

/// The distinct terms of a query.
pub(super) fn query_terms(query: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let distinct = tokenizer::terms(query).into_iter().filter(|term| seen.insert(term.clone()));
    distinct.take(MAX_TERMS).collect()
}

/// Keeps the terms that say most, within the budget; the rarest one in any case.
pub(super) fn within_budget(mut terms: Vec<QueryTerm>) -> Vec<QueryTerm> {
    terms.sort_by(|a, b| a.document_frequency.cmp(&b.document_frequency).then_with(|| a.term.cmp(&b.term)));
    let mut read = 0;
    let mut first = true;
    terms.retain(|term| {
        read += term.document_frequency;
        std::mem::take(&mut first) || read <= POSTINGS_BUDGET
    });
    terms
}

/// What BM25 scores are measured by: what a memory of average length scores that has each of the terms once.
pub(super) fn reference_score(terms: &[QueryTerm]) -> f64 {
    terms.iter().map(|term| term.idf).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::bm25;

    fn term(term: &str, memories: u64) -> QueryTerm {
        QueryTerm { term: term.into(), idf: bm25::idf(1_000_000, memories), document_frequency: memories }
    }

    #[test]
    fn the_terms_of_a_query_are_distinct_and_in_order() {
        assert_eq!(query_terms("Algebra, algebra and 特征值"), ["algebra", "特征", "征值"]);
    }

    #[test]
    fn the_most_frequent_terms_are_left_out_first_and_the_rarest_never() {
        let kept = |terms| within_budget(terms).into_iter().map(|term| term.term).collect::<Vec<_>>();
        assert_eq!(kept(vec![term("all", 60_000), term("rare", 3), term("some", 40_000)]), ["rare", "some"]);
        assert_eq!(kept(vec![term("all", 60_000)]), ["all"]);
        assert!(kept(Vec::new()).is_empty());
    }
}
