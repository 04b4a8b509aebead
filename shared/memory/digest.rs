use sha2::{Digest as _, Sha256};

pub(super) fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}
