//! Signs tokens with ring: with any header, also one that no library would make.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::hmac;
use serde_json::{Value, json};

pub fn hs256_header() -> Value {
    json!({"alg": "HS256", "typ": "JWT"})
}

pub fn sign(header: &Value, claims: &Value, signature: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string()));
    let message = format!("{header}.{claims}");
    let signature = URL_SAFE_NO_PAD.encode(signature(message.as_bytes()));
    format!("{message}.{signature}")
}

pub fn hmac(algorithm: hmac::Algorithm, secret: &[u8]) -> impl FnOnce(&[u8]) -> Vec<u8> {
    move |message| hmac::sign(&hmac::Key::new(algorithm, secret), message).as_ref().to_vec()
}

pub fn sign_hs256(claims: &Value, secret: &str) -> String {
    sign(&hs256_header(), claims, hmac(hmac::HMAC_SHA256, secret.as_bytes()))
}
