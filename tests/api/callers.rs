//! Who is let in, and as whom.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_service::proto::agent_v1 as pb;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use crate::{fake_provider::FakeProvider, harness::TestServer};

const SECRET: &str = "a secret that the gateway shares";

fn seconds_from_now(seconds: i64) -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap() + seconds
}

fn claims(subject: &str) -> Value {
    json!({"sub": subject, "exp": seconds_from_now(600), "iss": "gateway", "aud": ["agent", "other"]})
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

fn hs256(claims: &Value) -> String {
    encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

async fn list(server: &TestServer, body_user: &str, metadata: &[(&'static str, &str)]) -> Result<(), Status> {
    let mut request = Request::new(pb::ListMemoriesRequest { user_id: body_user.into(), ..Default::default() });
    for (name, value) in metadata {
        request.metadata_mut().insert(*name, value.as_bytes().try_into().unwrap());
    }
    server.memory().list_memories(request).await.map(drop)
}

async fn code(server: &TestServer, body_user: &str, metadata: &[(&'static str, &str)]) -> Code {
    list(server, body_user, metadata).await.map_or_else(|status| status.code(), |()| Code::Ok)
}

async fn with_secret() -> TestServer {
    let variables = [
        ("AUTH", "jwt"),
        ("JWT_SECRET", SECRET),
        ("JWT_ISSUER", "gateway"),
        ("JWT_AUDIENCE", "agent"),
        ("INTERNAL_API_KEY", "internal"),
    ];
    TestServer::start(&variables).await
}

#[tokio::test]
async fn a_token_lets_its_subject_in_and_nobody_else() {
    let server = with_secret().await;
    let bearer = format!("Bearer {}", hs256(&claims("ann")));
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
        assert_eq!(code(&server, body, &metadata).await, expected, "{body} {metadata:?}");
    }
    // Every call is guarded.
    let agent = || server.agent();
    let chat = agent().stream_chat(crate::harness::ask("hi")).await.map(drop);
    let query = pb::MemoryQuery { user_id: "ann".into(), query_text: "x".into(), ..Default::default() };
    let retrieved = agent().retrieve_memory(query).await.map(drop);
    let export = server.memory().export_memories(pb::ExportMemoriesRequest { user_id: "ann".into() }).await.map(drop);
    for refused in [chat, retrieved, export] {
        assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn tokens_that_are_expired_unsigned_or_for_somebody_else_are_refused() {
    let server = with_secret().await;
    let good = claims("ann");
    let other_secret = encode(&Header::default(), &good, &EncodingKey::from_secret(b"another secret")).unwrap();
    let other_hash = encode(&Header::new(Algorithm::HS512), &good, &EncodingKey::from_secret(SECRET.as_bytes()));
    let [_, payload, _] =
        <[String; 3]>::try_from(hs256(&good).split('.').map(str::to_owned).collect::<Vec<_>>()).unwrap();
    // {"alg":"none","typ":"JWT"}
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
    let mut without_subject = good.clone();
    without_subject.as_object_mut().unwrap().remove("sub");
    let mut without_expiry = good.clone();
    without_expiry.as_object_mut().unwrap().remove("exp");
    for (what, token) in [
        ("expired", hs256(&with(good.clone(), "exp", json!(seconds_from_now(-60))))),
        ("not yet", hs256(&with(good.clone(), "nbf", json!(seconds_from_now(600))))),
        ("issuer", hs256(&with(good.clone(), "iss", json!("stranger")))),
        ("audience", hs256(&with(good.clone(), "aud", json!("stranger")))),
        ("no subject", hs256(&without_subject)),
        ("no expiry", hs256(&without_expiry)),
        ("a subject that is none", hs256(&with(good.clone(), "sub", json!("a/b")))),
        ("secret", other_secret),
        ("hash", other_hash.unwrap()),
        ("unsigned", unsigned),
        ("garbage", "a.b.c".into()),
        ("bytes that are no text", "schlüssel".into()),
    ] {
        let bearer = format!("Bearer {token}");
        let refused = list(&server, "ann", &[("authorization", &bearer)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{what}");
        assert!(!refused.message().contains("needs a token"), "there is one: {what}");
    }
    let slow_clock = hs256(&with(good, "exp", json!(seconds_from_now(-5))));
    assert_eq!(code(&server, "ann", &[("authorization", &format!("bearer {slow_clock}"))]).await, Code::Ok);
}

#[tokio::test]
async fn a_service_of_our_own_may_act_for_any_user_in_every_mode() {
    let jwt = with_secret().await;
    let open = TestServer::start(&[("INTERNAL_API_KEY", "internal")]).await;
    for server in [&jwt, &open] {
        for metadata in [("x-internal-api-key", "internal"), ("authorization", "Bearer internal")] {
            assert_eq!(code(server, "anyone", &[metadata]).await, Code::Ok, "{metadata:?}");
            assert_eq!(code(server, "", &[metadata, ("user-id", "anyone")]).await, Code::Ok);
            assert_eq!(code(server, "", &[metadata]).await, Code::InvalidArgument, "whoever it acts for must be named");
        }
        for wrong in ["wrong", "interna", "internals", "INTERNAL"] {
            assert_eq!(code(server, "ann", &[("x-internal-api-key", wrong)]).await, Code::Unauthenticated, "{wrong}");
        }
        // Bytes that are no text are a key as well: a wrong one.
        assert_eq!(code(server, "ann", &[("x-internal-api-key", "schlüssel")]).await, Code::Unauthenticated);
    }
    assert_eq!(code(&open, "ann", &[("authorization", "Bearer whatever")]).await, Code::Ok, "nobody asks for a token");
}

/// A key pair of an issuer, and how it publishes it.
struct IssuerKey {
    id: &'static str,
    signing: EncodingKey,
    published: Value,
}

impl IssuerKey {
    fn new(id: &'static str) -> Self {
        let pair = rcgen::KeyPair::generate().unwrap();
        let signing = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&signing, Algorithm::ES256).unwrap();
        let mut published = serde_json::to_value(jwk).unwrap();
        published["kid"] = json!(id);
        Self { id, signing, published }
    }

    fn bearer(&self, subject: &str) -> String {
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        format!("Bearer {}", encode(&header, &claims(subject), &self.signing).unwrap())
    }

    /// A token that does not say by which key it is signed.
    fn bearer_without_id(&self, claims: &Value) -> String {
        format!("Bearer {}", encode(&Header::new(Algorithm::ES256), claims, &self.signing).unwrap())
    }
}

#[tokio::test]
async fn published_keys_are_fetched_once_and_again_when_a_new_one_signs() {
    let mut issuer = FakeProvider::start().await;
    let url = format!("{}/jwks.json", issuer.base_url);
    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    let key = IssuerKey::new("first");

    // Nobody can be let in while there are no keys, and that is not the caller's fault.
    issuer.refuse(503, "").await;
    let refused = list(&server, "ann", &[("authorization", &key.bearer("ann"))]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    issuer.requests.recv().await.unwrap();

    // A server that has keys asks for no others while they do.
    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    let unusable = json!({"kty": "OKP", "crv": "X25519", "x": "AA", "kid": "x"});
    issuer.refuse(200, &json!({"keys": [unusable, key.published]}).to_string()).await;
    for _ in 0..3 {
        assert_eq!(code(&server, "ann", &[("authorization", &key.bearer("ann"))]).await, Code::Ok);
    }
    issuer.requests.recv().await.unwrap();
    assert!(issuer.requests.try_recv().is_err(), "the keys were fetched again");

    // A public key is no secret: a token signed with it as one is refused, and asks the issuer for nothing.
    let public = key.published["x"].as_str().unwrap();
    let header = Header { kid: Some("first".to_owned()), ..Header::default() };
    let confused = encode(&header, &claims("ann"), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    let confused = format!("Bearer {confused}");
    assert_eq!(code(&server, "ann", &[("authorization", &confused)]).await, Code::Unauthenticated);

    // The issuer changes its key.
    let next = IssuerKey::new("second");
    issuer.refuse(200, &json!({"keys": [next.published]}).to_string()).await;
    assert_eq!(code(&server, "ann", &[("authorization", &next.bearer("ann"))]).await, Code::Ok);
    assert_eq!(issuer.requests.recv().await.unwrap().head.lines().next(), Some("GET /v1/jwks.json HTTP/1.1"));

    // Unknown keys do not make the issuer a target, and an issuer that fails takes nothing away.
    issuer.refuse(500, "").await;
    for _ in 0..5 {
        let stranger = IssuerKey::new("stranger").bearer("ann");
        assert_ne!(code(&server, "ann", &[("authorization", &stranger)]).await, Code::Ok);
    }
    issuer.requests.recv().await.unwrap();
    assert!(issuer.requests.try_recv().is_err(), "three times in half a minute is enough");
    assert_eq!(code(&server, "ann", &[("authorization", &next.bearer("ann"))]).await, Code::Ok);
}

#[tokio::test]
async fn a_token_that_names_no_key_is_checked_by_each_of_its_kind() {
    let issuer = FakeProvider::start().await;
    let url = format!("{}/jwks.json", issuer.base_url);
    let server = TestServer::start(&[("AUTH", "jwt"), ("JWT_JWKS_URL", &url)]).await;
    let keys = [IssuerKey::new("first"), IssuerKey::new("second")];
    issuer.refuse(200, &json!({"keys": [keys[0].published, keys[1].published]}).to_string()).await;
    for key in &keys {
        let bearer = key.bearer_without_id(&claims("ann"));
        assert_eq!(code(&server, "ann", &[("authorization", &bearer)]).await, Code::Ok, "{}", key.id);
        let expired = key.bearer_without_id(&with(claims("ann"), "exp", json!(seconds_from_now(-600))));
        let refused = list(&server, "ann", &[("authorization", &expired)]).await.unwrap_err();
        assert!(refused.message().contains("expired"), "{refused:?}");
    }
    let stranger = IssuerKey::new("stranger").bearer_without_id(&claims("ann"));
    assert_eq!(code(&server, "ann", &[("authorization", &stranger)]).await, Code::Unauthenticated);
}
