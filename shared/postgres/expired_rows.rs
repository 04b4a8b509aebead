/// Rows of a user that a module deleted because their time was over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ExpiredRows {
    pub(crate) deleted: u64,
    /// More has expired: the transaction has deleted as much as it may, or another one had locked rows.
    pub(crate) is_partial: bool,
    /// Nothing of the user is left that expires.
    pub(crate) is_empty: bool,
}
