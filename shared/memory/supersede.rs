//! Cycles of memories that supersede each other: retrieval would hide all of their members.

use std::collections::HashSet;

/// Cycles that can be reached from `ids`, each from the id by which it was reached first. Takes linear time.
pub(crate) fn cycles<'a>(
    ids: impl IntoIterator<Item = &'a str>,
    superseded_by: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Vec<&'a str>> {
    let mut visited = HashSet::new();
    let mut cycles = Vec::new();
    for start in ids {
        let mut path = Vec::new();
        let mut next = Some(start);
        while let Some(id) = next.filter(|id| visited.insert(*id)) {
            path.push(id);
            next = superseded_by(id);
        }
        // Otherwise the walk ended with a memory that nothing supersedes, or on the path of an earlier walk.
        if let Some(entry) = next.and_then(|entry| path.iter().position(|id| *id == entry)) {
            cycles.push(path.split_off(entry));
        }
    }
    cycles
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn cycles_of<'a>(ids: &[&'a str], edges: &[(&'a str, &'a str)]) -> Vec<Vec<&'a str>> {
        let edges: BTreeMap<_, _> = edges.iter().copied().collect();
        cycles(ids.iter().copied(), |id| edges.get(id).copied())
    }

    #[test]
    fn chains_and_trees_have_no_cycle() {
        assert!(cycles_of(&[], &[]).is_empty());
        assert!(cycles_of(&["a", "b", "c"], &[("a", "b"), ("b", "c")]).is_empty());
        assert!(cycles_of(&["a", "b", "c", "d"], &[("a", "c"), ("b", "c"), ("c", "d")]).is_empty());
    }

    #[test]
    fn cycle_begins_where_it_is_entered() {
        let edges = [("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")];
        assert_eq!(cycles_of(&["a", "d"], &edges), [["b", "c", "d"]]);
        assert_eq!(cycles_of(&["d", "a"], &edges), [["d", "b", "c"]]);
    }

    #[test]
    fn each_cycle_is_found_once() {
        let edges = [("a", "b"), ("b", "a"), ("c", "c"), ("d", "a")];
        assert_eq!(cycles_of(&["a", "b", "c", "d"], &edges), [vec!["a", "b"], vec!["c"]]);
    }

    #[test]
    fn unreachable_cycle_is_not_reported() {
        assert!(cycles_of(&["a"], &[("a", "b"), ("c", "d"), ("d", "c")]).is_empty());
    }

    proptest! {
        #[test]
        fn cycle_members_are_those_that_reach_themselves(edges in prop::collection::btree_map(0_u8..12, 0_u8..12, 0..12)) {
            let name = |id: u8| char::from(b'a' + id).to_string();
            let edges: BTreeMap<String, String> = edges.into_iter().map(|(old, new)| (name(old), name(new))).collect();
            let next = |id: &str| edges.get(id).map(String::as_str);
            let reaches_itself = |id: &&str| {
                let steps = std::iter::successors(next(id), |id| next(id));
                steps.take(edges.len()).any(|other| other == *id)
            };
            let expected: BTreeSet<&str> = edges.keys().map(String::as_str).filter(reaches_itself).collect();
            let found: Vec<&str> = cycles(edges.keys().map(String::as_str), next).concat();
            prop_assert_eq!(found.len(), expected.len());
            prop_assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), expected);
        }
    }
}
