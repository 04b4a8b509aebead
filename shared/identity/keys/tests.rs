//! Keys that grow old while their issuer answers, fails or hangs.

use serde_json::{Value, json};

use super::*;

#[path = "../../../tests/support/fake_provider.rs"]
#[expect(dead_code, reason = "these tests need less of it")]
mod fake_provider;

use fake_provider::{FakeProvider, Step};

const FOR_EVER: Duration = Duration::from_hours(1);

/// The public key of RFC 7517, appendix A.1, but for its purpose.
fn published(id: &str) -> Value {
    json!({
        "kty": "EC", "crv": "P-256", "kid": id,
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
    })
}

/// An issuer, and its keys, which were fetched once and are that old ever since.
async fn fetched(ages: KeyLifetimes) -> (FakeProvider, KeySet) {
    let mut issuer = FakeProvider::start().await;
    let keys = KeySet::new(&issuer.base_url, ages).unwrap();
    issuer.respond(200, &json!({"keys": [published("known")]}).to_string()).await;
    assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    issuer.requests.recv().await.unwrap();
    (issuer, keys)
}

#[tokio::test]
async fn an_issuer_that_hangs_holds_nobody_up_whose_key_is_known() {
    let (mut issuer, keys) = fetched(KeyLifetimes { refresh_after: Duration::ZERO, expire_after: FOR_EVER }).await;
    issuer.script(vec![Step::AwaitDisconnect]).await;
    for _ in 0..3 {
        assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    }
    issuer.requests.recv().await.unwrap();
    assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    assert!(issuer.disconnects.try_recv().is_err(), "somebody waited until the fetch was given up");
    assert!(issuer.requests.try_recv().is_err(), "one fetch at a time");
    // What is fetched for nobody ends with the keys.
    drop(keys);
    issuer.disconnects.recv().await.unwrap();
}

#[tokio::test]
async fn keys_that_are_old_go_on_while_the_issuer_fails_and_are_replaced_when_it_answers() {
    let (mut issuer, keys) = fetched(KeyLifetimes { refresh_after: Duration::ZERO, expire_after: FOR_EVER }).await;
    issuer.respond(500, "").await;
    assert!(keys.find(Some("known"), Algorithm::ES256).await.is_ok());
    issuer.requests.recv().await.unwrap();
    issuer.respond(200, &json!({"keys": [published("next")]}).to_string()).await;
    // The key that is no longer there goes on until the refresh has arrived, and then is unknown.
    while keys.find(Some("known"), Algorithm::ES256).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!keys.known(Some("next"), Algorithm::ES256).is_empty());
}

#[tokio::test]
async fn keys_that_are_too_old_count_no_longer_and_without_an_issuer_there_are_none() {
    let (issuer, keys) = fetched(KeyLifetimes { refresh_after: FOR_EVER, expire_after: FOR_EVER }).await;
    let keys = KeySet { ages: KeyLifetimes { refresh_after: Duration::ZERO, expire_after: Duration::ZERO }, ..keys };
    issuer.respond(500, "").await;
    assert_eq!(keys.find(Some("known"), Algorithm::ES256).await.err(), Some(CredentialError::KeysUnavailable));
    let url = issuer.base_url.clone();
    drop(issuer);
    let cold = KeySet::new(&url, KeyLifetimes::default()).unwrap();
    assert_eq!(cold.find(Some("known"), Algorithm::ES256).await.err(), Some(CredentialError::KeysUnavailable));
}

#[tokio::test]
async fn a_fetch_that_its_caller_gave_up_has_failed() {
    let (mut issuer, keys) = fetched(KeyLifetimes { refresh_after: FOR_EVER, expire_after: FOR_EVER }).await;
    issuer.script(vec![Step::AwaitDisconnect]).await;
    {
        let mut asking = std::pin::pin!(keys.find(Some("unknown"), Algorithm::ES256));
        tokio::select! {
            _ = &mut asking => panic!("nobody answers"),
            _ = issuer.requests.recv() => {}
        }
    }
    let fetching = keys.issuer.fetching.lock().await;
    assert!(fetching.failed, "the unknown key may be one that could not be fetched");
}

#[test]
fn keys_for_other_purposes_are_passed_over() {
    let with = |name: &str, value: Value| {
        let mut key = published("k");
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
