//! Authentication: JWTs by shared secret or JWKS, and the internal API key.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_service::proto::agent_v1 as pb;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac::{HMAC_SHA256, HMAC_SHA512},
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use crate::{
    fake_provider::FakeProvider,
    harness::{TestServer, ask, ask_without_retrieval, assert_contract, error_of, memory_query, open_stream},
    jwt::{hmac, hs256_header, sign},
};

const SECRET: &str = "a secret that the gateway shares";
const INTERNAL_KEY: &str = "the internal key";

fn seconds_from_now(seconds: i64) -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap() + seconds
}

fn claims(subject: &str) -> Value {
    json!({"sub": subject, "exp": seconds_from_now(600), "iss": "gateway", "aud": ["agent", "other"]})
}

/// A claim or a field of a header.
fn with(mut object: Value, name: &str, value: Value) -> Value {
    object[name] = value;
    object
}

fn sign_hs256(claims: &Value) -> String {
    sign_with_header(&hs256_header(), claims)
}

fn sign_with_header(header: &Value, claims: &Value) -> String {
    sign(header, claims, hmac(HMAC_SHA256, SECRET.as_bytes()))
}

async fn list_memories(server: &TestServer, body_user: &str, metadata: &[(&'static str, &str)]) -> Result<(), Status> {
    let mut request = Request::new(pb::ListMemoriesRequest { user_id: body_user.into(), ..Default::default() });
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.as_bytes().try_into().unwrap());
    }
    server.memory().list_memories(request).await.map(drop)
}

async fn status_code(server: &TestServer, body_user: &str, metadata: &[(&'static str, &str)]) -> Code {
    list_memories(server, body_user, metadata).await.map_or_else(|status| status.code(), |()| Code::Ok)
}

async fn start_with_secret() -> TestServer {
    let variables = [
        ("AUTH", "jwt"),
        ("JWT_SECRET", SECRET),
        ("JWT_ISSUER", "gateway"),
        ("JWT_AUDIENCE", "agent"),
        ("INTERNAL_API_KEY", INTERNAL_KEY),
    ];
    TestServer::start(&variables).await
}

#[tokio::test]
async fn token_admits_its_subject_only() {
    let server = start_with_secret().await;
    let bearer = format!("Bearer {}", sign_hs256(&claims("ann")));
    let token = ("authorization", bearer.as_str());
    for (body, metadata, expected) in [
        ("ann", vec![token], Code::Ok),
        ("", vec![token], Code::Ok),
        ("ann", vec![token, ("user-id", "ann")], Code::Ok),
        ("bob", vec![token], Code::PermissionDenied),
        ("", vec![token, ("user-id", "bob")], Code::PermissionDenied),
        ("ann", vec![], Code::Unauthenticated),
        ("ann", vec![("authorization", "Basic YW5uOmFubg==")], Code::Unauthenticated),
        ("ann", vec![("authorization", "Bearer ")], Code::Unauthenticated),
        ("ann", vec![("user-id", "ann")], Code::Unauthenticated),
    ] {
        assert_eq!(status_code(&server, body, &metadata).await, expected, "{body} {metadata:?}");
    }
    let agent = || server.agent();
    let chat = agent().stream_chat(ask("hi")).await.map(drop);
    let retrieved = agent().retrieve_memory(memory_query("ann", "x")).await.map(drop);
    let export = server.memory().export_memories(pb::ExportMemoriesRequest { user_id: "ann".into() }).await.map(drop);
    for result in [chat, retrieved, export] {
        assert_eq!(result.unwrap_err().code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn contradicting_user_metadata_is_refused_under_every_auth() {
    let bearer = format!("Bearer {}", sign_hs256(&claims("ann")));
    let jwt = [("AUTH", "jwt"), ("JWT_SECRET", SECRET), ("INTERNAL_API_KEY", INTERNAL_KEY)];
    for (variables, credential) in [
        (&[][..], None),
        (&[("AUTH", "gateway")], None),
        (&jwt, Some(("authorization", bearer.as_str()))),
        (&jwt, Some(("x-internal-api-key", INTERNAL_KEY))),
    ] {
        let server = TestServer::start(variables).await;
        let code = async |body: &str, users: &[&str]| {
            let mut request = Request::new(pb::ListMemoriesRequest { user_id: body.into(), ..Default::default() });
            for user in users {
                request.metadata_mut().append("user-id", user.parse().unwrap());
            }
            if let Some((name, value)) = credential {
                request.metadata_mut().insert(name, value.parse().unwrap());
            }
            server.memory().list_memories(request).await.map_or_else(|status| status.code(), |_| Code::Ok)
        };
        for (body, users) in [
            ("", &["ann", "bob"][..]),
            ("ann", &["ann", "bob"]),
            ("", &["ann, bob"]),
            ("ann", &["ann,bob"]),
            ("ann", &["ann", "ann, bob"]),
        ] {
            assert_eq!(code(body, users).await, Code::InvalidArgument, "{variables:?} {credential:?} {body} {users:?}");
        }
        for (body, users) in [("ann", &["ann", "ann"][..]), ("", &["ann, ann"]), ("", &["ann"])] {
            assert_eq!(code(body, users).await, Code::Ok, "{variables:?} {credential:?} {body} {users:?}");
        }
    }
}

#[tokio::test]
async fn contradicting_credentials_are_unauthenticated() {
    let server = start_with_secret().await;
    let [ann, bob] = ["ann", "bob"].map(|user| format!("Bearer {}", sign_hs256(&claims(user))));
    for (name, first, second) in
        [("authorization", ann.as_str(), bob.as_str()), ("x-internal-api-key", INTERNAL_KEY, "guessed")]
    {
        for values in [[first, second], [second, first]] {
            let mut request = Request::new(pb::ListMemoriesRequest { user_id: "ann".into(), ..Default::default() });
            for value in values {
                request.metadata_mut().append(name, value.parse().unwrap());
            }
            let refused = server.memory().list_memories(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{name}");
        }
    }
}

#[tokio::test]
async fn invalid_tokens_are_unauthenticated() {
    let server = start_with_secret().await;
    let valid = claims("ann");
    let other_secret = sign(&hs256_header(), &valid, hmac(HMAC_SHA256, b"another secret"));
    let other_hash = sign(&json!({"alg": "HS512"}), &valid, hmac(HMAC_SHA512, SECRET.as_bytes()));
    let unsigned = |algorithm| sign(&json!({"alg": algorithm, "typ": "JWT"}), &valid, |_| Vec::new());
    let mut without_subject = valid.clone();
    without_subject.as_object_mut().unwrap().remove("sub");
    let mut without_expiry = valid.clone();
    without_expiry.as_object_mut().unwrap().remove("exp");
    for (case, token) in [
        ("expired", sign_hs256(&with(valid.clone(), "exp", json!(seconds_from_now(-60))))),
        ("not yet", sign_hs256(&with(valid.clone(), "nbf", json!(seconds_from_now(600))))),
        ("issuer", sign_hs256(&with(valid.clone(), "iss", json!("stranger")))),
        ("audience", sign_hs256(&with(valid.clone(), "aud", json!("stranger")))),
        ("no subject", sign_hs256(&without_subject)),
        ("no expiry", sign_hs256(&without_expiry)),
        ("an invalid subject", sign_hs256(&with(valid.clone(), "sub", json!("a/b")))),
        ("secret", other_secret),
        ("hash", other_hash),
        ("unsigned", unsigned("none")),
        ("unsigned, in other case", unsigned("nOnE")),
        ("without signature", unsigned("HS256")),
        ("issued in the future", sign_hs256(&with(valid.clone(), "iat", json!(seconds_from_now(600))))),
        ("expiry that is no number", sign_hs256(&with(valid.clone(), "exp", json!("4102444800")))),
        ("subject that is no text", sign_hs256(&with(valid.clone(), "sub", json!(["ann"])))),
        ("garbage", "a.b.c".into()),
        ("not UTF-8", "schlüssel".into()),
    ] {
        let bearer = format!("Bearer {token}");
        let rejected = list_memories(&server, "ann", &[("authorization", &bearer)]).await.unwrap_err();
        assert_eq!(rejected.code(), Code::Unauthenticated, "{case}");
        assert!(!rejected.message().contains("needs a token"), "the token was not read: {case}");
    }
    let slow_clock = sign_hs256(&with(valid, "exp", json!(seconds_from_now(-5))));
    assert_eq!(status_code(&server, "ann", &[("authorization", &format!("bearer {slow_clock}"))]).await, Code::Ok);
}

#[tokio::test]
async fn header_that_asks_for_more_than_a_signature_is_refused() {
    let server = start_with_secret().await;
    let claims = claims("ann");
    let code = async |header: &Value| {
        let bearer = format!("Bearer {}", sign_with_header(header, &claims));
        status_code(&server, "ann", &[("authorization", &bearer)]).await
    };
    for (name, value) in [
        // No extension is known: neither a registered one nor a header of RFC 7515 itself may be critical.
        ("crit", json!(["exp"])),
        ("crit", json!(["b64"])),
        ("crit", json!(["alg"])),
        ("crit", json!([])),
        ("crit", json!("b64")),
        ("crit", json!({"b64": true})),
        ("typ", json!("logout+jwt")),
        ("typ", json!("application/DPoP+jwt")),
    ] {
        assert_eq!(code(&with(hs256_header(), name, value.clone())).await, Code::Unauthenticated, "{name} {value}");
    }
    let critical = with(
        with(hs256_header(), "crit", json!(["http://example.com/UNDEFINED"])),
        "http://example.com/UNDEFINED",
        json!(true),
    );
    assert_eq!(code(&critical).await, Code::Unauthenticated, "the example of RFC 7515, appendix E");
    for header in [
        json!({"alg": "HS256"}),
        with(hs256_header(), "typ", json!("at+jwt")),
        with(hs256_header(), "typ", json!("application/at+JWT")),
        // Without `crit`, what is unknown is ignored. So is a key that the token brings itself.
        with(hs256_header(), "http://example.com/UNDEFINED", json!(true)),
        with(hs256_header(), "jku", json!("http://127.0.0.1:9/keys")),
    ] {
        assert_eq!(code(&header).await, Code::Ok, "{header}");
    }
}

#[tokio::test]
async fn oversized_token_is_unauthenticated() {
    let server = start_with_secret().await;
    let code = async |bytes: usize| {
        let claims = with(claims("ann"), "groups", json!("g".repeat(bytes)));
        let bearer = format!("Bearer {}", sign_hs256(&claims));
        status_code(&server, "ann", &[("authorization", &bearer)]).await
    };
    assert_eq!(code(6_000).await, Code::Ok);
    // Below the limit of HTTP/2 headers, although base64 adds a third.
    assert_eq!(code(10_000).await, Code::Unauthenticated);
}

#[tokio::test]
async fn internal_api_key_acts_for_any_user_in_every_mode() {
    let jwt = start_with_secret().await;
    let open = TestServer::start(&[("INTERNAL_API_KEY", INTERNAL_KEY)]).await;
    for server in [&jwt, &open] {
        for metadata in [("x-internal-api-key", INTERNAL_KEY), ("authorization", "Bearer the internal key")] {
            assert_eq!(status_code(server, "anyone", &[metadata]).await, Code::Ok, "{metadata:?}");
            assert_eq!(status_code(server, "", &[metadata, ("user-id", "anyone")]).await, Code::Ok);
            assert_eq!(
                status_code(server, "", &[metadata]).await,
                Code::InvalidArgument,
                "user-id is required with the internal key"
            );
        }
        for wrong in ["wrong", "the internal ke", "the internal keys", "THE INTERNAL KEY"] {
            assert_eq!(
                status_code(server, "ann", &[("x-internal-api-key", wrong)]).await,
                Code::Unauthenticated,
                "{wrong}"
            );
        }
        // Not UTF-8, which is a wrong key and no malformed request.
        assert_eq!(status_code(server, "ann", &[("x-internal-api-key", "schlüssel")]).await, Code::Unauthenticated);
    }
    assert_eq!(
        status_code(&open, "ann", &[("authorization", "Bearer whatever")]).await,
        Code::Ok,
        "AUTH=none ignores tokens"
    );
}

struct IssuerKey {
    id: &'static str,
    signing: EcdsaKeyPair,
    published: Value,
}

impl IssuerKey {
    fn new(id: &'static str) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let pair = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let signing = EcdsaKeyPair::from_pkcs8(algorithm, pair.as_ref(), &random).unwrap();
        let point = signing.public_key().as_ref();
        let [x, y] = [&point[1..33], &point[33..]].map(|number| URL_SAFE_NO_PAD.encode(number));
        let published = json!({"kty": "EC", "crv": "P-256", "kid": id, "x": x, "y": y});
        Self { id, signing, published }
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signature = |message: &[u8]| self.signing.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec();
        format!("Bearer {}", sign(header, claims, signature))
    }

    fn bearer(&self, subject: &str) -> String {
        self.sign(&json!({"alg": "ES256", "kid": self.id}), &claims(subject))
    }

    fn bearer_without_id(&self, claims: &Value) -> String {
        self.sign(&json!({"alg": "ES256"}), claims)
    }
}

#[tokio::test]
async fn jwks_is_fetched_once_and_again_for_a_new_key() {
    let mut issuer = FakeProvider::start().await;
    let url = format!("{}/jwks.json", issuer.base_url);
    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    let key = IssuerKey::new("first");

    // Without keys no token can be checked: the server is unavailable, the token not invalid.
    issuer.respond(503, "").await;
    let rejected = list_memories(&server, "ann", &[("authorization", &key.bearer("ann"))]).await.unwrap_err();
    assert_eq!(rejected.code(), Code::Unavailable, "{rejected:?}");
    issuer.requests.recv().await.unwrap();

    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    let unusable = json!({"kty": "OKP", "crv": "X25519", "x": "AA", "kid": "x"});
    issuer.respond(200, &json!({"keys": [unusable, key.published]}).to_string()).await;
    for _ in 0..3 {
        assert_eq!(status_code(&server, "ann", &[("authorization", &key.bearer("ann"))]).await, Code::Ok);
    }
    issuer.requests.recv().await.unwrap();
    assert!(issuer.requests.try_recv().is_err(), "the keys were fetched again");

    // Algorithm confusion: the public key is no HMAC secret. The token is rejected without a fetch.
    let public = key.published["x"].as_str().unwrap();
    let header = with(hs256_header(), "kid", json!("first"));
    let confused = format!("Bearer {}", sign(&header, &claims("ann"), hmac(HMAC_SHA256, public.as_bytes())));
    assert_eq!(status_code(&server, "ann", &[("authorization", &confused)]).await, Code::Unauthenticated);

    let next = IssuerKey::new("second");
    issuer.respond(200, &json!({"keys": [next.published]}).to_string()).await;
    assert_eq!(status_code(&server, "ann", &[("authorization", &next.bearer("ann"))]).await, Code::Ok);
    assert_eq!(issuer.requests.recv().await.unwrap().head.lines().next(), Some("GET /v1/jwks.json HTTP/1.1"));

    // Fetches for unknown keys are rate-limited, and a failed fetch keeps the cached keys.
    issuer.respond(500, "").await;
    for _ in 0..5 {
        let unknown = IssuerKey::new("stranger").bearer("ann");
        assert_ne!(status_code(&server, "ann", &[("authorization", &unknown)]).await, Code::Ok);
    }
    issuer.requests.recv().await.unwrap();
    assert!(issuer.requests.try_recv().is_err(), "fetches for unknown keys are not rate-limited");
    assert_eq!(status_code(&server, "ann", &[("authorization", &next.bearer("ann"))]).await, Code::Ok);
}

#[tokio::test]
async fn token_without_key_id_is_checked_against_each_key() {
    let issuer = FakeProvider::start().await;
    let url = format!("{}/jwks.json", issuer.base_url);
    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    let keys = [IssuerKey::new("first"), IssuerKey::new("second")];
    issuer.respond(200, &json!({"keys": [keys[0].published, keys[1].published]}).to_string()).await;
    for key in &keys {
        let bearer = key.bearer_without_id(&claims("ann"));
        assert_eq!(status_code(&server, "ann", &[("authorization", &bearer)]).await, Code::Ok, "{}", key.id);
        let expired = key.bearer_without_id(&with(claims("ann"), "exp", json!(seconds_from_now(-600))));
        let rejected = list_memories(&server, "ann", &[("authorization", &expired)]).await.unwrap_err();
        assert!(rejected.message().contains("expired"), "{rejected:?}");
    }
    let unknown = IssuerKey::new("stranger").bearer_without_id(&claims("ann"));
    assert_eq!(status_code(&server, "ann", &[("authorization", &unknown)]).await, Code::Unauthenticated);
}

#[tokio::test]
async fn published_keys_are_bound_to_their_algorithm_and_header() {
    let issuer = FakeProvider::start().await;
    let url = format!("{}/jwks.json", issuer.base_url);
    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    // Both have the same id, as during a careless rotation.
    let keys = [IssuerKey::new("same"), IssuerKey::new("same")];
    let key_set = json!({"keys": [keys[0].published, keys[1].published]}).to_string();
    issuer.respond(200, &key_set).await;
    for key in &keys {
        assert_eq!(status_code(&server, "ann", &[("authorization", &key.bearer("ann"))]).await, Code::Ok);
    }
    // For the token whose key is looked up again.
    issuer.respond(200, &key_set).await;
    let header = json!({"alg": "ES256", "kid": "same"});
    let zeros = format!("Bearer {}", sign(&header, &claims("ann"), |_| vec![0; 64]));
    for (case, bearer) in [
        ("crit", keys[0].sign(&with(header.clone(), "crit", json!(["b64"])), &claims("ann"))),
        ("another algorithm", keys[0].sign(&with(header.clone(), "alg", json!("ES384")), &claims("ann"))),
        (
            "an algorithm of another key type",
            keys[0].sign(&with(header.clone(), "alg", json!("RS256")), &claims("ann")),
        ),
        ("a signature of zeros", zeros),
    ] {
        let code = status_code(&server, "ann", &[("authorization", &bearer)]).await;
        assert_eq!(code, Code::Unauthenticated, "{case}");
    }
}

#[tokio::test]
async fn rsa_keys_below_2048_bits_are_refused() {
    let issuer = FakeProvider::start().await;
    let url = format!("{}/jwks.json", issuer.base_url);
    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    let fixture: Value = serde_json::from_str(include_str!("../golden/rsa_tokens.json")).unwrap();
    let keys = fixture["keys"].as_array().unwrap();
    let published = |key: &Value| json!({"kty": "RSA", "kid": key["kid"], "n": key["n"], "e": "AQAB"});
    let key_set = json!({"keys": keys.iter().map(published).collect::<Vec<_>>()}).to_string();
    for (key, expected) in keys.iter().zip([Code::Unauthenticated, Code::Unauthenticated, Code::Ok]) {
        // A token of an unknown key has the keys fetched again.
        issuer.respond(200, &key_set).await;
        let bearer = format!("Bearer {}", key["token"].as_str().unwrap());
        assert_eq!(status_code(&server, "ann", &[("authorization", &bearer)]).await, expected, "{}", key["kid"]);
    }
}

/// The paused clock passes the time at once.
#[tokio::test(start_paused = true)]
async fn stream_ends_a_minute_after_its_token_has_expired() {
    let variables =
        [("AUTH", "jwt"), ("JWT_SECRET", SECRET), ("CONVERSATIONS", "off"), ("DEMO_CHUNK_DELAY_MS", "3600000")];
    let server = TestServer::start_without_database(&variables).await;
    for (expires_in, ends_after) in [(5, 65), (600, 660), (-20, 40)] {
        let token = sign_hs256(&json!({"sub": "ann", "exp": seconds_from_now(expires_in)}));
        let mut call = ask_without_retrieval("hi");
        call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let started = tokio::time::Instant::now();
        let mut stream = open_stream(&server, call).await;
        let mut frames = Vec::new();
        while let Some(frame) = stream.message().await.unwrap() {
            frames.push(frame);
        }
        assert_contract(&frames);
        let error = error_of(&frames);
        assert_eq!((error.code.as_str(), error.error_code()), ("TOKEN_EXPIRED", pb::ErrorCode::Unauthorized));
        assert!(error.retryable);
        let seconds = started.elapsed().as_secs();
        assert!((ends_after - 2..=ends_after + 2).contains(&seconds), "{expires_in}: {seconds} s");
    }
}
