//! Identifiers and authentication: turns the credentials of a call into a [`Principal`]. Quotas and other admission rules are
//! not its business.

mod authenticator;
mod error;
mod id;
mod keys;
mod principal;
mod signature;
mod token;

pub use authenticator::{Authenticator, Credentials};
pub use error::{AuthnError, CredentialError};
pub use id::{MAX_ID_BYTES, RequestId, SessionId, TraceId, UserId, check_id};
pub use principal::{Caller, Principal};
