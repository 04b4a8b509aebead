//! Cached keys that age while the issuer answers, fails or hangs.

use serde_json::{Value, json};

use super::*;

#[path = "../../../tests/support/fake_provider.rs"]
#[expect(dead_code, reason = "these tests use a part of it")]
mod fake_provider;

use fake_provider::{FakeProvider, Step};

const LONG: Duration = Duration::from_hours(1);

/// The public key of RFC 7517, appendix A.1, without `use`.
fn public_jwk(id: &str) -> Value {
    json!({
        "kty": "EC", "crv": "P-256", "kid": id,
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
    })
}

async fn fetched(lifetimes: KeyLifetimes) -> (FakeProvider, KeySet) {
    let mut issuer = FakeProvider::start().await;
    let keys = KeySet::new(&issuer.base_url, lifetimes).unwrap();
    issuer.respond(200, &json!({"keys": [public_jwk("known")]}).to_string()).await;
    assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    issuer.requests.recv().await.unwrap();
    (issuer, keys)
}

#[tokio::test]
async fn hanging_issuer_does_not_delay_known_keys() {
    let (mut issuer, keys) = fetched(KeyLifetimes { refresh_after: Duration::ZERO, expire_after: LONG }).await;
    issuer.script(vec![Step::AwaitDisconnect]).await;
    for _ in 0..3 {
        assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    }
    issuer.requests.recv().await.unwrap();
    assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    assert!(issuer.disconnects.try_recv().is_err(), "a call waited for the fetch");
    assert!(issuer.requests.try_recv().is_err(), "a second fetch was started");
    // The background refresh is aborted with its key set.
    drop(keys);
    issuer.disconnects.recv().await.unwrap();
}

#[tokio::test]
async fn stale_keys_serve_until_the_issuer_answers() {
    let (mut issuer, keys) = fetched(KeyLifetimes { refresh_after: Duration::ZERO, expire_after: LONG }).await;
    issuer.respond(500, "").await;
    assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    issuer.requests.recv().await.unwrap();
    issuer.respond(200, &json!({"keys": [public_jwk("next")]}).to_string()).await;
    // The removed key is accepted until the refresh has completed.
    while keys.find(Some("known"), Algorithm::ES256).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!keys.cached(Some("next"), Algorithm::ES256).is_empty());
}

#[tokio::test]
async fn expired_keys_are_not_accepted_without_the_issuer() {
    let (issuer, keys) = fetched(KeyLifetimes { refresh_after: LONG, expire_after: LONG }).await;
    let keys =
        KeySet { lifetimes: KeyLifetimes { refresh_after: Duration::ZERO, expire_after: Duration::ZERO }, ..keys };
    issuer.respond(500, "").await;
    assert_eq!(keys.find(Some("known"), Algorithm::ES256).await.err(), Some(CredentialError::KeysUnavailable));
    let url = issuer.base_url.clone();
    drop(issuer);
    let cold = KeySet::new(&url, KeyLifetimes::default()).unwrap();
    assert_eq!(cold.find(Some("known"), Algorithm::ES256).await.err(), Some(CredentialError::KeysUnavailable));
}

#[tokio::test]
async fn cancelled_fetch_counts_as_failed() {
    let (mut issuer, keys) = fetched(KeyLifetimes { refresh_after: LONG, expire_after: LONG }).await;
    issuer.script(vec![Step::AwaitDisconnect]).await;
    {
        let mut finding = std::pin::pin!(keys.find(Some("unknown"), Algorithm::ES256));
        tokio::select! {
            _ = &mut finding => panic!("the issuer answered"),
            _ = issuer.requests.recv() => {}
        }
    }
    let state = keys.issuer.fetch_state.lock().await;
    assert!(state.has_failed, "the unknown key may be one that could not be fetched");
}

#[test]
fn keys_for_other_purposes_are_skipped() {
    let with = |name: &str, value: Value| {
        let mut key = public_jwk("k");
        key[name] = value;
        parse(json!({"keys": [key]}).to_string().as_bytes()).unwrap().len()
    };
    for (name, value) in [("use", json!("sig")), ("key_ops", json!(["verify"])), ("alg", json!("ES256"))] {
        assert_eq!(with(name, value.clone()), 1, "{name} {value}");
    }
    for (name, value) in [
        ("use", json!("enc")),
        ("key_ops", json!(["sign"])),
        ("key_ops", json!([])),
        ("alg", json!("ES384")),
        ("alg", json!("RS256")),
        ("alg", json!("ECDH-ES")),
        ("crv", json!("P-384")),
        ("kty", json!("oct")),
    ] {
        assert_eq!(with(name, value.clone()), 0, "{name} {value}");
    }
}
