//! Authenticates a call by its headers, before an entry point reads its body.

use http::HeaderMap;
use tonic::{Status, metadata::MetadataMap};

use super::{
    call::RpcContext,
    caller_language::CallerLanguage,
    checked_caller::{self, CheckedCaller},
};
use crate::identity::{AuthnError, CredentialError};

/// Given to the entry points of each service.
#[derive(Clone)]
pub struct HeaderAuthentication(RpcContext);

impl HeaderAuthentication {
    pub(super) fn new(context: RpcContext) -> Self {
        Self(context)
    }

    /// Refuses wrong credentials with a status, as the method would. If the credentials cannot be checked, the method refuses
    /// the call itself: `StreamChat` may answer UNAVAILABLE with a frame.
    pub async fn check(&self, method: &'static str, headers: &HeaderMap) -> Result<CheckedCaller, Status> {
        match checked_caller::check(&self.0.authenticator, headers).await {
            CheckedCaller(Err(error)) if error != CredentialError::KeysUnavailable => {
                Err(self.refuse(method, headers, error))
            }
            checked => Ok(checked),
        }
    }

    fn refuse(&self, method: &'static str, headers: &HeaderMap, error: CredentialError) -> Status {
        let metadata = MetadataMap::from_headers(headers.clone());
        let mut rpc = self.0.begin_call(method, &metadata, "");
        rpc.reject(&AuthnError::from(error).into(), CallerLanguage::of_call(&metadata).resolve(""))
    }
}
