//! Bounds the memory that a statement takes, here and in Postgres.

use std::iter;

/// Consecutive parts of at most `most` items, each but one with `bytes` bytes at most: an item beyond that is a part of its own.
pub(in crate::memory) fn parts<T>(
    mut items: &[T],
    most: usize,
    bytes: usize,
    size: impl Fn(&T) -> usize,
) -> impl Iterator<Item = &[T]> {
    iter::from_fn(move || {
        let mut total = 0;
        let mut fits = |item: &T| {
            total += size(item);
            total <= bytes
        };
        let count = items.iter().take(most).take_while(|item| fits(item)).count().max(1).min(items.len());
        let (part, rest) = items.split_at(count);
        items = rest;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_bounded_by_count_and_bytes() {
        let sizes = [1, 2, 3, 100, 1, 1, 1, 1, 9];
        let parts: Vec<&[usize]> = parts(&sizes, 3, 10, |size| *size).collect();
        assert_eq!(parts, [&[1, 2, 3][..], &[100], &[1, 1, 1], &[1, 9]]);
        assert_eq!(super::parts::<usize>(&[], 3, 10, |size| *size).count(), 0);
    }
}
