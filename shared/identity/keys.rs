//! The public keys of an issuer of tokens: a JWK set (RFC 7517) behind a URL, kept and fetched again when a key is missing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio_util::task::AbortOnDropHandle;

use super::CredentialError;
use crate::provider::http_client;

/// Keys are fetched no more often than this many times in this long, whatever tokens ask for.
const FETCHES: (usize, Duration) = (3, Duration::from_secs(30));
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BYTES: usize = 1 << 20;

/// How long keys count.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyLifetimes {
    /// After this, they are fetched again with the next token, which does not wait for that.
    refresh_after: Duration,
    /// After this, they count no longer.
    expire_after: Duration,
}

impl Default for KeyLifetimes {
    fn default() -> Self {
        Self { refresh_after: Duration::from_mins(10), expire_after: Duration::from_hours(12) }
    }
}

/// The keys of one issuer.
pub(super) struct KeySet {
    issuer: Arc<Issuer>,
    ages: KeyLifetimes,
    /// The fetch of keys that nobody waits for. It ends with this.
    refresh: Mutex<Option<AbortOnDropHandle<()>>>,
}

struct Issuer {
    url: String,
    client: reqwest::Client,
    kept: RwLock<CachedKeys>,
    /// One fetch at a time.
    fetching: Arc<AsyncMutex<FetchState>>,
}

#[derive(Default)]
struct FetchState {
    /// When the latest began.
    began: VecDeque<Instant>,
    /// When the last one ended.
    ended: Option<Instant>,
    /// Whether the last one failed, or was given up.
    failed: bool,
}

impl FetchState {
    /// Whether it is not too early for another.
    fn is_due(&mut self) -> bool {
        let (most, within) = FETCHES;
        self.began.retain(|began| began.elapsed() < within);
        self.began.len() < most
    }
}

#[derive(Default)]
struct CachedKeys {
    keys: Arc<[Key]>,
    since: Option<Instant>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl KeySet {
    pub(super) fn new(url: &str, ages: KeyLifetimes) -> Result<Self, reqwest::Error> {
        let issuer = Issuer {
            url: url.to_owned(),
            client: http_client(TIMEOUT)?,
            kept: RwLock::default(),
            fetching: Arc::default(),
        };
        Ok(Self { issuer: Arc::new(issuer), ages, refresh: Mutex::default() })
    }

    /// The keys that a token may be signed by: those of its id, or all of their kind where it names none.
    pub(super) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Vec<DecodingKey>, CredentialError> {
        let found = self.known(id, algorithm);
        if !found.is_empty() {
            return Ok(found);
        }
        let fetched = self.issuer.fetch().await;
        let found = self.known(id, algorithm);
        match (found.is_empty(), fetched) {
            (false, _) => Ok(found),
            // The key may be one that could not be fetched.
            (true, false) => Err(CredentialError::KeysUnavailable),
            (true, true) => Err(CredentialError::Invalid),
        }
    }

    /// What is kept and still counts.
    fn known(&self, id: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let (keys, age) = self.issuer.kept();
        if age.is_none_or(|age| age >= self.ages.expire_after) {
            return Vec::new();
        }
        let fitting = keys.iter().filter(|key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id));
        let found: Vec<_> = fitting.map(|key| key.key.clone()).collect();
        if !found.is_empty() && age.is_some_and(|age| age >= self.ages.refresh_after) {
            self.begin_refresh();
        }
        found
    }

    /// Fetches the keys beside the call, unless somebody is at it or it was just tried: an issuer that hangs holds nobody up
    /// whose key is known.
    fn begin_refresh(&self) {
        let Ok(mut fetching) = self.issuer.fetching.clone().try_lock_owned() else { return };
        if fetching.is_due() {
            let issuer = self.issuer.clone();
            let refresh = tokio::spawn(async move {
                issuer.fetch_now(fetching).await;
            });
            *self.refresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(refresh));
        }
    }
}

impl Issuer {
    fn kept(&self) -> (Arc<[Key]>, Option<Duration>) {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        (kept.keys.clone(), kept.since.map(|since| since.elapsed()))
    }

    /// Fetches the keys, unless that was just done, and says whether those that are kept are the issuer's latest.
    async fn fetch(&self) -> bool {
        let asked = Instant::now();
        let mut fetching = self.fetching.clone().lock_owned().await;
        // Whoever waited for somebody else's fetch has its result.
        let is_done = fetching.ended.is_some_and(|ended| ended > asked);
        if is_done || !fetching.is_due() {
            return !fetching.failed;
        }
        self.fetch_now(fetching).await
    }

    async fn fetch_now(&self, mut fetching: OwnedMutexGuard<FetchState>) -> bool {
        fetching.began.push_back(Instant::now());
        // So it stays if the caller gives up meanwhile.
        fetching.failed = true;
        let downloaded = self.download().await;
        fetching.ended = Some(Instant::now());
        fetching.failed = downloaded.is_err();
        match downloaded {
            Ok(keys) => {
                let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
                *kept = CachedKeys { keys: keys.into(), since: Some(Instant::now()) };
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the keys of JWT_JWKS_URL can not be fetched");
                false
            }
        }
    }

    async fn download(&self) -> Result<Vec<Key>, String> {
        let request = self.client.get(&self.url).timeout(TIMEOUT).send();
        let mut response = request.await.and_then(reqwest::Response::error_for_status).map_err(without_url)?;
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(without_url)? {
            body.extend_from_slice(&piece);
            if body.len() > MAX_BYTES {
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
struct Document {
    keys: Vec<serde_json::Value>,
}

/// The keys of a set that are there to check RS256 or ES256; others are passed over.
fn parse(body: &[u8]) -> Result<Vec<Key>, String> {
    let document: Document = serde_json::from_slice(body).map_err(|_| "it is not a JWK set".to_owned())?;
    Ok(document.keys.into_iter().filter_map(|key| usable(&serde_json::from_value(key).ok()?)).collect())
}

fn usable(jwk: &Jwk) -> Option<Key> {
    let (algorithm, named) = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        _ => return None,
    };
    // What a key says of its purpose is binding, what it does not say is free (RFC 7517, section 4).
    let common = &jwk.common;
    let is_for_signatures = common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify))
        && common.key_algorithm.is_none_or(|algorithm| algorithm == named);
    if !is_for_signatures {
        return None;
    }
    Some(Key { id: common.key_id.clone(), algorithm, key: DecodingKey::from_jwk(jwk).ok()? })
}

#[cfg(test)]
mod tests;
