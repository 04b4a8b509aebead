use std::collections::BTreeSet;

use super::tokenizer;

const MAX_TERMS: usize = 256;

/// At most 256 terms.
pub(crate) fn distinct_terms(text: &str) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let distinct = tokenizer::terms(text).into_iter().filter(|term| seen.insert(term.clone()));
    distinct.take(MAX_TERMS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distinct_terms_keep_their_order() {
        assert_eq!(distinct_terms("Algebra, algebra and 特征值"), ["algebra", "特征", "征值"]);
    }
}
