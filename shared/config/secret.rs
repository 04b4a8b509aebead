use std::fmt;

/// A value that must never be printed: `Debug` shows `[secret]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// For the one call site that sends the secret.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Why others could guess the secret; `None` = it may serve as a key.
    pub(super) fn weakness(&self, min_bytes: usize) -> Option<String> {
        let length = self.0.len();
        if length < min_bytes {
            return Some(format!("has {length} bytes, but needs at least {min_bytes}"));
        }
        if is_key_file(&self.0) {
            return Some("is a key file, whose public part is known to others".to_owned());
        }
        if is_repetitive(self.0.as_bytes()) {
            return Some("repeats itself".to_owned());
        }
        is_placeholder(&self.0).then(|| "is a placeholder from an example".to_owned())
    }
}

/// PEM or JWK. HS256 would take a public key for a secret.
fn is_key_file(secret: &str) -> bool {
    secret.contains("-----BEGIN ") || secret.starts_with('{') && secret.contains("\"kty\"")
}

fn is_repetitive(secret: &[u8]) -> bool {
    (1..=secret.len() / 2).any(|period| secret[period..] == secret[..secret.len() - period])
}

/// No random value contains one of these; punctuation and case do not count.
fn is_placeholder(secret: &str) -> bool {
    const PLACEHOLDERS: [&str; 15] = [
        // As in our examples, where no shell replaces it by its output.
        "opensslrand",
        "changeme",
        "changethis",
        "changeit",
        "replaceme",
        "replacethis",
        "placeholder",
        "yoursecret",
        "yourkey",
        "yourapikey",
        "your256bit",
        "atleast256bits",
        "password",
        "1234567890",
        "0123456789",
    ];
    let letters: String = secret.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    PLACEHOLDERS.iter().any(|placeholder| letters.contains(placeholder))
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessable_secrets_have_a_weakness() {
        for (secret, problem) in [
            ("short", "has 5 bytes, but needs at least 16"),
            ("fifteen-bytes--", "has 15 bytes, but needs at least 16"),
            ("aaaaaaaaaaaaaaaaaaaa", "repeats itself"),
            ("change-it-change-it-", "repeats itself"),
            ("secret-secret-sec", "repeats itself"),
            ("please-Change_Me-soon", "is a placeholder"),
            ("your-256-bit-secret", "is a placeholder"),
            ("a-string-secret-at-least-256-bits-long", "is a placeholder"),
            ("1234567890123456", "is a placeholder"),
            ("$(openssl rand -hex 32)", "is a placeholder"),
            ("output of: openssl rand -hex 32", "is a placeholder"),
            ("-----BEGIN PUBLIC KEY-----\nMFkw", "is a key file"),
            (r#"{"kty":"EC","crv":"P-256"}"#, "is a key file"),
        ] {
            let weakness = Secret::new(secret).weakness(16).unwrap_or_default();
            assert!(weakness.starts_with(problem), "{secret}: {weakness:?}");
        }
        for secret in [
            "sixteen-bytes---",
            "a passphrase of words",
            "8f3b1c5e9d2a7046",
            "q7Zp/2m+Kx9vLr4TtY1aWg==",
            "密钥-网关与服务共享",
        ] {
            assert_eq!(Secret::new(secret).weakness(16), None, "{secret}");
        }
    }
}
