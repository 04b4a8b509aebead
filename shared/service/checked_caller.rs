//! The caller of a request whose credentials are checked once, by its entry point or by its method.

use http::{Extensions, HeaderMap};

use crate::identity::{Authenticator, Caller, CredentialError, Credentials};

/// The result for one call, in the extensions of its request.
#[derive(Debug, Clone)]
pub struct CheckedCaller(pub(super) Result<Caller, CredentialError>);

impl CheckedCaller {
    #[must_use]
    pub fn is_authenticated(&self) -> bool {
        self.0.is_ok()
    }
}

/// An entry point that does not check headers leaves it to the method.
pub(super) async fn caller(
    authenticator: &Authenticator,
    extensions: &Extensions,
    headers: &HeaderMap,
) -> Result<Caller, CredentialError> {
    match extensions.get::<CheckedCaller>() {
        Some(checked) => checked.0.clone(),
        None => check(authenticator, headers).await.0,
    }
}

pub(super) async fn check(authenticator: &Authenticator, headers: &HeaderMap) -> CheckedCaller {
    let values = |name| headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect::<Vec<_>>();
    let (authorization, internal_api_key) = (values("authorization"), values("x-internal-api-key"));
    let credentials = Credentials { authorization: &authorization, internal_api_key: &internal_api_key };
    CheckedCaller(authenticator.verify(credentials).await)
}
