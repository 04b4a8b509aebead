//! Who calls and what a call is about: identifiers that are parsed once at the edge and passed on as proof.

mod authenticator;
mod keys;
mod token;

use std::{fmt, sync::Arc};

pub use authenticator::{Authenticator, AuthnError, CredentialError, Credentials, Principal};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::error::{InvalidArgument, Problem, check_text};

/// Longest identifier, in bytes.
pub const MAX_ID_BYTES: usize = 256;

/// Checks an identifier: not empty, at most [`MAX_ID_BYTES`], without control characters or slashes.
///
/// # Errors
/// The rule of the contract that it breaks, at `field`.
pub fn check_id(field: &str, id: &str) -> Result<(), InvalidArgument> {
    if id.is_empty() {
        return Err(InvalidArgument::new(field, Problem::Missing));
    }
    check_text(field, id, MAX_ID_BYTES)?;
    if id.chars().any(|c| c.is_control() || c == '/') {
        return Err(InvalidArgument::new(field, Problem::NotAnIdentifier));
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses what a client sent in `field`.
            ///
            /// # Errors
            /// The rule of [`check_id`] that it breaks.
            pub fn parse(field: &str, id: &str) -> Result<Self, InvalidArgument> {
                check_id(field, id)?;
                Ok(Self(id.into()))
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

identifier! {
    /// A user; the first part of every key.
    UserId
}
identifier! {
    /// A conversation of a user.
    SessionId
}
identifier! {
    /// One request, named by its client.
    RequestId
}

impl UserId {
    /// The user of a call: from the body, or where that is empty from the metadata `user-id`.
    ///
    /// # Errors
    /// Neither is given, both are and differ, or the one that counts is no identifier.
    pub fn from_call(body: &str, metadata: Option<&str>) -> Result<Self, InvalidArgument> {
        let metadata = metadata.unwrap_or_default();
        if !body.is_empty() && !metadata.is_empty() && body != metadata {
            return Err(InvalidArgument::new("user_id", Problem::Contradicts { other: "the metadata user-id" }));
        }
        Self::parse("user_id", if body.is_empty() { metadata } else { body })
    }

    /// A short digest for logs, so that calls of one user can be found without naming the user.
    #[must_use]
    pub fn digest(&self) -> String {
        let hash = Sha256::digest(self.0.as_bytes());
        hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl SessionId {
    /// A new conversation.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

impl RequestId {
    /// An id for a request whose client sent none.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

/// The id that ties the logs of all services on a request's way together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceId(Arc<str>);

impl TraceId {
    /// The trace of a call: from `traceparent` (W3C Trace Context), else `x-trace-id`, else the client's request id,
    /// else a new one. What is malformed counts as absent: a trace must never make a call fail.
    #[must_use]
    pub fn from_call(traceparent: Option<&str>, x_trace_id: Option<&str>, request_id: &str) -> Self {
        let id = traceparent
            .and_then(w3c_trace_id)
            .or_else(|| x_trace_id.filter(|id| check_id("x-trace-id", id).is_ok()))
            .or_else(|| check_id("request_id", request_id).is_ok().then_some(request_id));
        match id {
            Some(id) => Self(id.into()),
            None => Self(Uuid::new_v4().simple().to_string().into()),
        }
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The trace-id field of a `traceparent` header, <https://www.w3.org/TR/trace-context/#traceparent-header>.
fn w3c_trace_id(header: &str) -> Option<&str> {
    let mut fields = header.trim().split('-');
    let (version, trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let hex = |text: &str, len| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let valid = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && trace.bytes().any(|b| b != b'0')
        && hex(parent, 16)
        && hex(flags, 2);
    valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_comes_from_the_body_or_the_metadata_but_never_from_two_different_ones() {
        assert_eq!(UserId::from_call("", Some("ann")).unwrap().as_str(), "ann");
        assert_eq!(UserId::from_call("ann", None).unwrap().as_str(), "ann");
        assert_eq!(UserId::from_call("ann", Some("ann")).unwrap().as_str(), "ann");
        assert_eq!(UserId::from_call("ann", Some("bob")).unwrap_err().field, "user_id");
        assert_eq!(UserId::from_call("", None).unwrap_err().problem, Problem::Missing);
    }

    #[test]
    fn identifiers_are_bounded_and_hold_no_control_characters_or_slashes() {
        assert!(check_id("id", &"x".repeat(256)).is_ok());
        assert!(check_id("id", "用户-1 @a.b").is_ok());
        assert!(check_id("id", &"x".repeat(257)).is_err());
        for bad in ["a/b", "a\nb", "a\0b", "a\u{7f}", ""] {
            assert!(check_id("id", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_trace_is_taken_from_the_best_source_that_is_well_formed() {
        let w3c = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceId::from_call(Some(w3c), Some("x"), "r").as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(TraceId::from_call(Some("00-zz"), Some("x"), "r").as_str(), "x");
        assert_eq!(TraceId::from_call(None, Some("a/b"), "r").as_str(), "r");
        assert_eq!(TraceId::from_call(None, None, "").as_str().len(), 32);
        let zero = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        assert_eq!(TraceId::from_call(Some(&zero), Some("x"), "").as_str(), "x");
    }
}
