//! The public keys of an issuer of tokens: a JWK set (RFC 7517) behind a URL, kept and fetched again when a key is missing.

use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk},
};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::Unproven;
use crate::http_client;

/// After this, keys are fetched again with the next token.
const FRESH: Duration = Duration::from_mins(10);
/// Keys are fetched no more often than this many times in this long, whatever tokens ask for.
const FETCHES: (usize, Duration) = (3, Duration::from_secs(30));
/// How long keys count while no new ones can be had.
const STALE: Duration = Duration::from_hours(12);
const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BYTES: usize = 1 << 20;

/// The keys of one issuer.
pub(super) struct KeySet {
    url: String,
    client: reqwest::Client,
    kept: RwLock<Kept>,
    /// One fetch at a time.
    fetching: Mutex<Fetching>,
}

#[derive(Default)]
struct Fetching {
    /// When the latest began.
    began: VecDeque<Instant>,
    /// Whether the last one failed.
    failed: bool,
}

#[derive(Default)]
struct Kept {
    keys: Arc<[Key]>,
    since: Option<Instant>,
}

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl KeySet {
    pub(super) fn new(url: &str) -> Result<Self, reqwest::Error> {
        Ok(Self {
            url: url.to_owned(),
            client: http_client(TIMEOUT)?,
            kept: RwLock::default(),
            fetching: Mutex::default(),
        })
    }

    /// The key for a token, by its id, or the only one of its kind where the token names none.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, Unproven> {
        let (keys, age) = self.kept();
        let found = key_of(&keys, id, algorithm);
        if found.is_some() && age.is_some_and(|age| age < FRESH) {
            return found.ok_or(Unproven::Invalid);
        }
        let fetched = self.fetch().await;
        let (keys, age) = self.kept();
        match key_of(&keys, id, algorithm) {
            Some(key) if age.is_some_and(|age| age < STALE) => Ok(key),
            // The key may be one that could not be fetched.
            _ if !fetched => Err(Unproven::NoKeys),
            _ => Err(Unproven::Invalid),
        }
    }

    fn kept(&self) -> (Arc<[Key]>, Option<Duration>) {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        (kept.keys.clone(), kept.since.map(|since| since.elapsed()))
    }

    /// Fetches the keys, unless that was just done, and says whether those that are kept are the issuer's latest.
    async fn fetch(&self) -> bool {
        let asked = Instant::now();
        let mut fetching = self.fetching.lock().await;
        // Whoever waited for somebody else's fetch has its result.
        let is_done = fetching.began.back().is_some_and(|began| *began > asked);
        let (most, within) = FETCHES;
        fetching.began.retain(|began| began.elapsed() < within);
        if is_done || fetching.began.len() >= most {
            return !fetching.failed;
        }
        fetching.began.push_back(Instant::now());
        let downloaded = self.download().await;
        fetching.failed = downloaded.is_err();
        match downloaded {
            Ok(keys) => {
                let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
                *kept = Kept { keys: keys.into(), since: Some(Instant::now()) };
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

/// The keys of a set that can check RS256 or ES256; others are passed over.
fn parse(body: &[u8]) -> Result<Vec<Key>, String> {
    let document: Document = serde_json::from_slice(body).map_err(|_| "it is not a JWK set".to_owned())?;
    Ok(document.keys.into_iter().filter_map(|key| usable(&serde_json::from_value(key).ok()?)).collect())
}

fn usable(jwk: &Jwk) -> Option<Key> {
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(curve) if curve.curve == EllipticCurve::P256 => Algorithm::ES256,
        _ => return None,
    };
    Some(Key { id: jwk.common.key_id.clone(), algorithm, key: DecodingKey::from_jwk(jwk).ok()? })
}

fn key_of(keys: &[Key], id: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
    let mut fitting = keys.iter().filter(|key| key.algorithm == algorithm && (id.is_none() || key.id.as_deref() == id));
    let found = fitting.next()?;
    // Where no id tells, more than one is a guess.
    if id.is_none() && fitting.next().is_some() { None } else { Some(found.key.clone()) }
}
