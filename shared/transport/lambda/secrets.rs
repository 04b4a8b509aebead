//! Secrets by reference: a variable whose value names where its secret is kept gets it from there, once, at the start.
//!
//! - `ssm:NAME`: a parameter of the SSM Parameter Store;
//! - `secretsmanager:ID` or `secretsmanager:ID#FIELD`: a secret of the Secrets Manager, or a field of one that is JSON.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

/// Longest that one secret is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a secret can not be had. It holds the variable's name, and neither the secret nor its reference.
#[derive(Debug, thiserror::Error)]
#[error("the secret that {variable} names can not be had: {problem}")]
pub(super) struct SecretError {
    variable: String,
    problem: String,
}

/// Where a secret is kept.
#[derive(Debug, PartialEq)]
enum Reference<'a> {
    Parameter(&'a str),
    Secret { id: &'a str, field: Option<&'a str> },
}

impl<'a> Reference<'a> {
    fn parse(value: &'a str) -> Option<Self> {
        if let Some(name) = value.strip_prefix("ssm:") {
            return Some(Self::Parameter(name));
        }
        let id = value.strip_prefix("secretsmanager:")?;
        Some(match id.split_once('#') {
            Some((id, field)) => Self::Secret { id, field: Some(field) },
            None => Self::Secret { id, field: None },
        })
    }

    /// The service that keeps it, as its endpoint, in its variable of an endpoint, and the call that reads it.
    fn call(&self) -> (&'static str, &'static str, &'static str, Value) {
        match self {
            Self::Parameter(name) => {
                ("ssm", "AWS_ENDPOINT_URL_SSM", "AmazonSSM.GetParameter", json!({"Name": name, "WithDecryption": true}))
            }
            Self::Secret { id, .. } => (
                "secretsmanager",
                "AWS_ENDPOINT_URL_SECRETS_MANAGER",
                "secretsmanager.GetSecretValue",
                json!({"SecretId": id}),
            ),
        }
    }

    /// The secret in the answer to that call.
    fn read(&self, answer: &Value) -> Option<String> {
        match self {
            Self::Parameter(_) => answer["Parameter"]["Value"].as_str().map(str::to_owned),
            Self::Secret { field: None, .. } => answer["SecretString"].as_str().map(str::to_owned),
            Self::Secret { field: Some(field), .. } => {
                let fields: Value = serde_json::from_str(answer["SecretString"].as_str()?).ok()?;
                match &fields[*field] {
                    Value::String(text) => Some(text.clone()),
                    Value::Number(number) => Some(number.to_string()),
                    _ => None,
                }
            }
        }
    }
}

/// The secrets that variables of the environment name, by the variables' names.
///
/// # Errors
/// A secret can not be had.
pub(super) async fn from_env() -> Result<HashMap<String, String>, SecretError> {
    let named =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let named: Vec<_> = named.filter(|(_, value)| Reference::parse(value).is_some()).collect();
    if named.is_empty() {
        return Ok(HashMap::new());
    }
    let env = |name: &str| std::env::var(name).ok();
    let client = crate::http_client(TIMEOUT).map_err(|error| failed("AWS_REGION", error.to_string()))?;
    let fetched = named.iter().map(async |(variable, value)| {
        let secret = fetch(&client, &env, value).await.map_err(|problem| failed(variable, problem))?;
        Ok((variable.clone(), secret))
    });
    try_join_all(fetched).await.map(|secrets| secrets.into_iter().collect())
}

fn failed(variable: &str, problem: String) -> SecretError {
    SecretError { variable: variable.to_owned(), problem }
}

/// Reads one secret, signed by the function's own credentials (Signature Version 4).
async fn fetch(client: &reqwest::Client, env: &dyn Fn(&str) -> Option<String>, value: &str) -> Result<String, String> {
    let reference = Reference::parse(value).ok_or("it is no reference")?;
    let (service, endpoint, target, body) = reference.call();
    let needed = |name: &str| env(name).ok_or_else(|| format!("{name} is not set"));
    let region = needed("AWS_REGION")?;
    let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let url = env(endpoint)
        .or_else(|| env("AWS_ENDPOINT_URL"))
        .unwrap_or_else(|| format!("https://{service}.{region}.{suffix}"));
    let credentials = Credentials::new(
        needed("AWS_ACCESS_KEY_ID")?,
        needed("AWS_SECRET_ACCESS_KEY")?,
        env("AWS_SESSION_TOKEN"),
        None,
        "environment",
    );
    let body = body.to_string();
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target)];
    let mut request = client.post(&url).timeout(TIMEOUT);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    for (name, value) in signature(&credentials, &region, service, &url, &headers, body.as_bytes())? {
        request = request.header(name, value);
    }
    let response = request.body(body).send().await.map_err(|error| crate::error::with_causes(&error.without_url()))?;
    let status = response.status();
    let answer: Value = response.json().await.map_err(|_| format!("{service} answered with status {status}"))?;
    if !status.is_success() {
        let kind = answer["__type"].as_str().unwrap_or_default();
        return Err(format!("{service} answered with status {status} {kind}"));
    }
    reference.read(&answer).ok_or_else(|| format!("{service} has no text of that name"))
}

/// The headers that sign a request.
fn signature(
    credentials: &Credentials,
    region: &str,
    service: &str,
    url: &str,
    headers: &[(&'static str, &'static str)],
    body: &[u8],
) -> Result<Vec<(String, String)>, String> {
    let unsigned = |error: &dyn std::fmt::Display| format!("the request can not be signed: {error}");
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(SystemTime::now())
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| unsigned(&error))?
        .into();
    let request = SignableRequest::new("POST", url, headers.iter().copied(), SignableBody::Bytes(body))
        .map_err(|error| unsigned(&error))?;
    let (instructions, _) = sign(request, &parameters).map_err(|error| unsigned(&error))?.into_parts();
    Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_values() {
        assert_eq!(Reference::parse("ssm:/agent/key"), Some(Reference::Parameter("/agent/key")));
        assert_eq!(
            Reference::parse("secretsmanager:arn:aws:x:secret:db#url"),
            Some(Reference::Secret { id: "arn:aws:x:secret:db", field: Some("url") })
        );
        for value in ["", "sk-123", "postgres://ssm:x@host/db"] {
            assert_eq!(Reference::parse(value), None, "{value}");
        }
    }

    #[test]
    fn a_secret_is_the_text_or_a_field_of_it() {
        let answer = json!({"SecretString": "{\"url\": \"postgres://x\", \"port\": 5432}"});
        let read = |value: &str| Reference::parse(value).unwrap().read(&answer);
        assert_eq!(read("secretsmanager:db#url").as_deref(), Some("postgres://x"));
        assert_eq!(read("secretsmanager:db#port").as_deref(), Some("5432"));
        assert_eq!(read("secretsmanager:db#none"), None);
        assert!(read("secretsmanager:db").unwrap().starts_with('{'));
        assert_eq!(Reference::Parameter("x").read(&json!({"Parameter": {"Value": "v"}})).as_deref(), Some("v"));
    }
}
