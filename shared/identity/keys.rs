//! The public keys of a token issuer: a JWK set (RFC 7517) behind a URL, cached and refreshed.
//!
//! At most one fetch runs at a time, and fetches are rate limited, so that tokens with invented key ids cannot make the service
//! flood the issuer. An issuer that hangs delays only calls whose key is unknown.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio_util::task::AbortOnDropHandle;

use super::error::CredentialError;
use crate::provider::http_client;

const MAX_FETCHES: usize = 3;
const FETCH_WINDOW: Duration = Duration::from_secs(30);
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_KEY_SET_BYTES: usize = 1 << 20;
/// A token without a key id is checked against each key.
const MAX_KEYS: usize = 100;
/// The range of bits that ring verifies; the minimum is that of RFC 7518, section 3.3.
const RSA_BITS: RangeInclusive<usize> = 2048..=8192;

#[derive(Debug, Clone, Copy)]
pub(super) struct KeyLifetimes {
    /// Age at which the next token triggers a refresh in the background.
    refresh_after: Duration,
    /// Age at which cached keys are no longer accepted.
    expire_after: Duration,
}

impl Default for KeyLifetimes {
    fn default() -> Self {
        Self { refresh_after: Duration::from_mins(10), expire_after: Duration::from_hours(12) }
    }
}

pub(super) struct KeySet {
    issuer: Arc<Issuer>,
    lifetimes: KeyLifetimes,
    refresh: Mutex<Option<AbortOnDropHandle<()>>>,
}

struct Issuer {
    url: String,
    client: reqwest::Client,
    cache: RwLock<CachedKeys>,
    /// Locked for the time of a fetch.
    fetch_state: Arc<AsyncMutex<FetchState>>,
}

#[derive(Default)]
struct FetchState {
    started: VecDeque<Instant>,
    last_ended: Option<Instant>,
    /// Also true while a fetch runs, and after one was cancelled.
    has_failed: bool,
}

impl FetchState {
    fn may_fetch(&mut self) -> bool {
        self.started.retain(|started| started.elapsed() < FETCH_WINDOW);
        self.started.len() < MAX_FETCHES
    }
}

#[derive(Default)]
struct CachedKeys {
    keys: Arc<[VerificationKey]>,
    fetched_at: Option<Instant>,
}

struct VerificationKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl KeySet {
    pub(super) fn new(url: &str, lifetimes: KeyLifetimes) -> Result<Self, reqwest::Error> {
        let issuer = Issuer {
            url: url.to_owned(),
            client: http_client(FETCH_TIMEOUT)?,
            cache: RwLock::default(),
            fetch_state: Arc::default(),
        };
        Ok(Self { issuer: Arc::new(issuer), lifetimes, refresh: Mutex::default() })
    }

    /// The keys with this id, or all of this algorithm if the token names none.
    pub(super) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<DecodingKey>, CredentialError> {
        let found = self.cached(id, algorithm);
        if !found.is_empty() {
            return Ok(found);
        }
        let fetched = self.issuer.fetch().await;
        let found = self.cached(id, algorithm);
        match (found.is_empty(), fetched) {
            (false, _) => Ok(found),
            // The unknown key may be a new one that could not be fetched.
            (true, false) => Err(CredentialError::KeysUnavailable),
            (true, true) => Err(CredentialError::Invalid),
        }
    }

    /// Skips expired keys.
    fn cached(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let (keys, age) = self.issuer.cached_keys();
        if age.is_none_or(|age| age >= self.lifetimes.expire_after) {
            return Vec::new();
        }
        let matching =
            keys.iter().filter(|key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id));
        let found: Vec<_> = matching.map(|key| key.key.clone()).collect();
        if !found.is_empty() && age.is_some_and(|age| age >= self.lifetimes.refresh_after) {
            self.start_refresh();
        }
        found
    }

    /// In the background, unless a fetch is running or the rate limit is reached.
    fn start_refresh(&self) {
        let Ok(mut state) = self.issuer.fetch_state.clone().try_lock_owned() else { return };
        if state.may_fetch() {
            let issuer = self.issuer.clone();
            let refresh = tokio::spawn(async move {
                issuer.fetch_now(state).await;
            });
            *self.refresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(refresh));
        }
    }
}

impl Issuer {
    fn cached_keys(&self) -> (Arc<[VerificationKey]>, Option<Duration>) {
        let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
        (cache.keys.clone(), cache.fetched_at.map(|fetched_at| fetched_at.elapsed()))
    }

    /// Returns whether the cached keys are the issuer's latest.
    async fn fetch(&self) -> bool {
        let requested = Instant::now();
        let mut state = self.fetch_state.clone().lock_owned().await;
        // A call that waited for another one's fetch uses its result.
        let is_fetched = state.last_ended.is_some_and(|ended| ended > requested);
        if is_fetched || !state.may_fetch() {
            return !state.has_failed;
        }
        self.fetch_now(state).await
    }

    async fn fetch_now(&self, mut state: OwnedMutexGuard<FetchState>) -> bool {
        state.started.push_back(Instant::now());
        // Stays so if this future is dropped.
        state.has_failed = true;
        let downloaded = self.download().await;
        state.last_ended = Some(Instant::now());
        state.has_failed = downloaded.is_err();
        match downloaded {
            Ok(keys) => {
                let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
                *cache = CachedKeys { keys: keys.into(), fetched_at: Some(Instant::now()) };
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the key set at JWT_JWKS_URL cannot be fetched");
                false
            }
        }
    }

    async fn download(&self) -> Result<Vec<VerificationKey>, String> {
        let request = self.client.get(&self.url).timeout(FETCH_TIMEOUT).send();
        let mut response = request.await.and_then(reqwest::Response::error_for_status).map_err(without_url)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(without_url)? {
            body.extend_from_slice(&chunk);
            if body.len() > MAX_KEY_SET_BYTES {
                return Err("the key set is larger than 1 MB".to_owned());
            }
        }
        parse(&body)
    }
}

fn without_url(error: reqwest::Error) -> String {
    crate::error::with_causes(&error.without_url())
}

#[derive(Deserialize)]
struct KeySetDocument {
    keys: Vec<serde_json::Value>,
}

/// Skips keys that are not for verifying RS256 or ES256.
fn parse(body: &[u8]) -> Result<Vec<VerificationKey>, String> {
    let document: KeySetDocument =
        serde_json::from_slice(body).map_err(|_| "the response is not a JWK set".to_owned())?;
    let keys = document.keys.into_iter().filter_map(|key| verification_key(&serde_json::from_value(key).ok()?));
    let keys: Vec<_> = keys.take(MAX_KEYS + 1).collect();
    if keys.len() > MAX_KEYS { Err(format!("the key set has more than {MAX_KEYS} keys")) } else { Ok(keys) }
}

fn verification_key(jwk: &Jwk) -> Option<VerificationKey> {
    let (algorithm, key_algorithm) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        _ => return None,
    };
    // Each member is optional, and binding if present (RFC 7517, section 4).
    let common = &jwk.common;
    let is_for_signatures = common.public_key_use.as_ref().is_none_or(|key_use| *key_use == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|algorithm| algorithm == key_algorithm);
    if !is_for_signatures {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let key = if algorithm == Algorithm::RS256 { strong_rsa_key(&key)? } else { key };
    Some(VerificationKey { id: common.key_id.clone(), algorithm, key })
}

/// `None` for a key whose size makes its signatures forgeable, or too slow to verify.
fn strong_rsa_key(key: &DecodingKey) -> Option<DecodingKey> {
    let DecodingKeyKind::RsaModulusExponent { n, e } = key.kind() else { return None };
    // Some issuers encode a leading zero, which RFC 7518, section 6.3.1.1, forbids and ring refuses.
    let digits = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect::<Vec<_>>();
    let (n, e) = (digits(n), digits(e));
    let bits = (n.len() * 8).saturating_sub(n.first().map_or(0, |first| first.leading_zeros() as usize));
    if !RSA_BITS.contains(&bits) {
        tracing::warn!(
            bits,
            "an RSA key at JWT_JWKS_URL is not accepted: it must have {} to {} bits",
            RSA_BITS.start(),
            RSA_BITS.end()
        );
        return None;
    }
    Some(DecodingKey::from_rsa_raw_components(&n, &e))
}

#[cfg(test)]
mod tests;
