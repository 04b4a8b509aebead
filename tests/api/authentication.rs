//! Authentication: JWTs by shared secret or JWKS, and the internal API key.

use std::time::{SystemTime, UNIX_EPOCH};

use agent_service::proto::agent_v1 as pb;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tonic::{Code, Request, Status};

use crate::{
    fake_provider::FakeProvider,
    harness::{TestServer, ask, memory_query},
};

const SECRET: &str = "a secret that the gateway shares";

fn seconds_from_now(seconds: i64) -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap() + seconds
}

fn claims(subject: &str) -> Value {
    json!({"sub": subject, "exp": seconds_from_now(600), "iss": "gateway", "aud": ["agent", "other"]})
}

fn with_claim(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

fn sign_hs256(claims: &Value) -> String {
    encode(&Header::default(), claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
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
        ("INTERNAL_API_KEY", "internal"),
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
    let jwt = [("AUTH", "jwt"), ("JWT_SECRET", SECRET), ("INTERNAL_API_KEY", "internal")];
    for (variables, credential) in [
        (&[][..], None),
        (&[("AUTH", "gateway")], None),
        (&jwt, Some(("authorization", bearer.as_str()))),
        (&jwt, Some(("x-internal-api-key", "internal"))),
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
        [("authorization", ann.as_str(), bob.as_str()), ("x-internal-api-key", "internal", "guessed")]
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
    let other_secret = encode(&Header::default(), &valid, &EncodingKey::from_secret(b"another secret")).unwrap();
    let other_hash = encode(&Header::new(Algorithm::HS512), &valid, &EncodingKey::from_secret(SECRET.as_bytes()));
    let [_, payload, _] =
        <[String; 3]>::try_from(sign_hs256(&valid).split('.').map(str::to_owned).collect::<Vec<_>>()).unwrap();
    // {"alg":"none","typ":"JWT"}
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
    let mut without_subject = valid.clone();
    without_subject.as_object_mut().unwrap().remove("sub");
    let mut without_expiry = valid.clone();
    without_expiry.as_object_mut().unwrap().remove("exp");
    for (case, token) in [
        ("expired", sign_hs256(&with_claim(valid.clone(), "exp", json!(seconds_from_now(-60))))),
        ("not yet", sign_hs256(&with_claim(valid.clone(), "nbf", json!(seconds_from_now(600))))),
        ("issuer", sign_hs256(&with_claim(valid.clone(), "iss", json!("stranger")))),
        ("audience", sign_hs256(&with_claim(valid.clone(), "aud", json!("stranger")))),
        ("no subject", sign_hs256(&without_subject)),
        ("no expiry", sign_hs256(&without_expiry)),
        ("an invalid subject", sign_hs256(&with_claim(valid.clone(), "sub", json!("a/b")))),
        ("secret", other_secret),
        ("hash", other_hash.unwrap()),
        ("unsigned", unsigned),
        ("garbage", "a.b.c".into()),
        ("not UTF-8", "schlüssel".into()),
    ] {
        let bearer = format!("Bearer {token}");
        let rejected = list_memories(&server, "ann", &[("authorization", &bearer)]).await.unwrap_err();
        assert_eq!(rejected.code(), Code::Unauthenticated, "{case}");
        assert!(!rejected.message().contains("needs a token"), "the token was not read: {case}");
    }
    let slow_clock = sign_hs256(&with_claim(valid, "exp", json!(seconds_from_now(-5))));
    assert_eq!(status_code(&server, "ann", &[("authorization", &format!("bearer {slow_clock}"))]).await, Code::Ok);
}

#[tokio::test]
async fn internal_api_key_acts_for_any_user_in_every_mode() {
    let jwt = start_with_secret().await;
    let open = TestServer::start(&[("INTERNAL_API_KEY", "internal")]).await;
    for server in [&jwt, &open] {
        for metadata in [("x-internal-api-key", "internal"), ("authorization", "Bearer internal")] {
            assert_eq!(status_code(server, "anyone", &[metadata]).await, Code::Ok, "{metadata:?}");
            assert_eq!(status_code(server, "", &[metadata, ("user-id", "anyone")]).await, Code::Ok);
            assert_eq!(
                status_code(server, "", &[metadata]).await,
                Code::InvalidArgument,
                "user-id is required with the internal key"
            );
        }
        for wrong in ["wrong", "interna", "internals", "INTERNAL"] {
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

    fn bearer_without_id(&self, claims: &Value) -> String {
        format!("Bearer {}", encode(&Header::new(Algorithm::ES256), claims, &self.signing).unwrap())
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
    let header = Header { kid: Some("first".to_owned()), ..Header::default() };
    let confused = encode(&header, &claims("ann"), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    let confused = format!("Bearer {confused}");
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
        let expired = key.bearer_without_id(&with_claim(claims("ann"), "exp", json!(seconds_from_now(-600))));
        let rejected = list_memories(&server, "ann", &[("authorization", &expired)]).await.unwrap_err();
        assert!(rejected.message().contains("expired"), "{rejected:?}");
    }
    let unknown = IssuerKey::new("stranger").bearer_without_id(&claims("ann"));
    assert_eq!(status_code(&server, "ann", &[("authorization", &unknown)]).await, Code::Unauthenticated);
}
