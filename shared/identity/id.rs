//! Identifiers, parsed once at the edge. The types are the proof that the rules hold.

use std::{fmt, sync::Arc};

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::error::{InvalidArgument, Problem, check_text};

pub const MAX_ID_BYTES: usize = 256;

/// Identifiers are not empty, have at most [`MAX_ID_BYTES`] and no control characters or slashes.
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
    ($name:ident) => {
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn parse(field: &str, id: &str) -> Result<Self, InvalidArgument> {
                check_id(field, id)?;
                Ok(Self(id.into()))
            }

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

identifier!(UserId);
identifier!(SessionId);
// Named by the client: the key of idempotency.
identifier!(RequestId);

impl UserId {
    /// The message and the metadata `user-id` must agree where both name the user.
    pub fn from_call(body: &str, metadata: &[&str]) -> Result<Self, InvalidArgument> {
        let metadata = user_in_metadata(metadata, body)?.unwrap_or_default();
        if !body.is_empty() && !metadata.is_empty() && body != metadata {
            return Err(contradicting_users());
        }
        Self::parse("user_id", if body.is_empty() { metadata } else { body })
    }

    /// For logs: correlates the calls of a user without naming them.
    #[must_use]
    pub fn digest(&self) -> String {
        let hash = Sha256::digest(self.0.as_bytes());
        hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The one user whom all values of the metadata `user-id` name. A proxy may have added a value, or joined several with commas
/// (RFC 9110, section 5.3); `known`, the user that the call names elsewhere, tells an id that contains a comma from that.
pub(super) fn user_in_metadata<'m>(values: &[&'m str], known: &str) -> Result<Option<&'m str>, InvalidArgument> {
    let users = values.iter().flat_map(|value| if *value == known { vec![*value] } else { value.split(',').collect() });
    let mut users = users.map(str::trim).filter(|user| !user.is_empty());
    let first = users.next();
    if users.any(|user| Some(user) != first) { Err(contradicting_users()) } else { Ok(first) }
}

fn contradicting_users() -> InvalidArgument {
    InvalidArgument::new("user_id", Problem::DiffersFromMetadata { key: "user-id" })
}

impl SessionId {
    /// Version 7, so that ids sort by time.
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

impl RequestId {
    #[must_use]
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string().into())
    }
}

/// Correlates the logs of all services that take part in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceId(Arc<str>);

impl TraceId {
    /// From `traceparent` (W3C Trace Context), else `x-trace-id`, else the client's request id, else a new one. A malformed
    /// value counts as absent: tracing never makes a call fail.
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
    let is_valid = hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && trace.bytes().any(|b| b != b'0')
        && hex(parent, 16)
        && hex(flags, 2);
    is_valid.then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_comes_from_body_or_metadata_without_conflict() {
        let user = |body, metadata: &[&str]| UserId::from_call(body, metadata).map(|user| user.to_string());
        for (body, metadata) in [
            ("", &["ann"][..]),
            ("ann", &[]),
            ("ann", &["ann"]),
            ("", &["ann", "ann"]),
            ("", &["ann, ann"]),
            ("ann", &["", "ann,"]),
        ] {
            assert_eq!(user(body, metadata).as_deref(), Ok("ann"), "{body} {metadata:?}");
        }
        for (body, metadata) in [
            ("ann", &["bob"][..]),
            ("", &["ann", "bob"]),
            ("ann", &["ann", "bob"]),
            ("", &["ann, bob"]),
            ("", &["ann,bob"]),
            ("ann", &["ann, bob"]),
            ("ann", &["ann", "ann, bob"]),
        ] {
            assert_eq!(user(body, metadata), Err(contradicting_users()), "{body} {metadata:?}");
        }
        assert_eq!(user("ann, bob", &["ann, bob"]).as_deref(), Ok("ann, bob"), "an id with a comma");
        assert_eq!(UserId::from_call("", &[]).unwrap_err().problem, Problem::Missing);
    }

    #[test]
    fn ids_are_bounded_without_control_chars_and_slashes() {
        assert!(check_id("id", &"x".repeat(256)).is_ok());
        assert!(check_id("id", "用户-1 @a.b").is_ok());
        assert!(check_id("id", &"x".repeat(257)).is_err());
        for bad in ["a/b", "a\nb", "a\0b", "a\u{7f}", ""] {
            assert!(check_id("id", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn trace_id_comes_from_first_well_formed_source() {
        let w3c = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(TraceId::from_call(Some(w3c), Some("x"), "r").as_str(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(TraceId::from_call(Some("00-zz"), Some("x"), "r").as_str(), "x");
        assert_eq!(TraceId::from_call(None, Some("a/b"), "r").as_str(), "r");
        assert_eq!(TraceId::from_call(None, None, "").as_str().len(), 32);
        let zero = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        assert_eq!(TraceId::from_call(Some(&zero), Some("x"), "").as_str(), "x");
    }
}
