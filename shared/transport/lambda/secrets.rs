//! Resolves environment variables that refer to secrets, once at the start.
//!
//! - `ssm:NAME`: a parameter of the SSM Parameter Store, fetched ten per request;
//! - `secretsmanager:ID` or `secretsmanager:ID#FIELD`: a secret of Secrets Manager, or a field of one that is JSON.
//!
//! Errors and logs name variables, never secrets or their references.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use futures_util::future::{try_join, try_join_all};
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Retries matter: functions that scale out together hit the rate limit of the store together.
const MAX_ATTEMPTS: u32 = 3;
/// Doubled for each further retry, with jitter.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The limit of `GetParameters`.
const MAX_PARAMETERS: usize = 10;

#[derive(Debug, thiserror::Error)]
#[error("cannot read the secret that {variables} refers to: {problem}")]
pub(super) struct SecretError {
    variables: String,
    problem: String,
}

#[derive(Debug, PartialEq)]
enum SecretReference<'a> {
    Parameter(&'a str),
    Secret { id: &'a str, field: Option<&'a str> },
}

impl<'a> SecretReference<'a> {
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
}

pub(super) async fn resolve_env() -> Result<HashMap<String, String>, SecretError> {
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (mut parameters, mut secrets) = (Vec::new(), Vec::new());
    for (variable, value) in &variables {
        match SecretReference::parse(value) {
            Some(SecretReference::Parameter(name)) => parameters.push((variable.as_str(), name)),
            Some(SecretReference::Secret { id, field }) => secrets.push((variable.as_str(), id, field)),
            None => {}
        }
    }
    if parameters.is_empty() && secrets.is_empty() {
        return Ok(HashMap::new());
    }
    let first_variable =
        parameters.first().map(|(variable, _)| *variable).or(secrets.first().map(|(variable, ..)| *variable));
    let client =
        SecretClient::from_env().map_err(|problem| secret_error(first_variable.unwrap_or_default(), problem))?;
    let parameters = parameters.chunks(MAX_PARAMETERS).map(|some| client.parameters(some));
    let secrets = secrets.iter().map(|(variable, id, field)| client.secret(variable, id, *field));
    let (parameters, secrets) = try_join(try_join_all(parameters), try_join_all(secrets)).await?;
    let resolved: HashMap<_, _> = parameters.into_iter().flatten().chain(secrets).collect();
    // A blank variable counts as not set, which is what nobody meant who refers to a secret: without its key, for example, a
    // function would start in demo mode.
    match resolved.iter().find(|(_, value)| value.trim().is_empty()) {
        Some((variable, _)) => Err(secret_error(variable, "it is blank")),
        None => Ok(resolved),
    }
}

fn secret_error(variables: &str, problem: impl Into<String>) -> SecretError {
    SecretError { variables: variables.to_owned(), problem: problem.into() }
}

struct SecretStore {
    name: &'static str,
    endpoint_variable: &'static str,
    target: &'static str,
}

const SSM: SecretStore =
    SecretStore { name: "ssm", endpoint_variable: "AWS_ENDPOINT_URL_SSM", target: "AmazonSSM.GetParameters" };
const SECRETS_MANAGER: SecretStore = SecretStore {
    name: "secretsmanager",
    endpoint_variable: "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    target: "secretsmanager.GetSecretValue",
};

struct RequestFailure {
    problem: String,
    is_retryable: bool,
}

/// Reads the stores of the function's region with the function's own credentials.
struct SecretClient {
    client: reqwest::Client,
    region: String,
    credentials: Credentials,
}

impl SecretClient {
    fn from_env() -> Result<Self, String> {
        let required = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
        let credentials = Credentials::new(
            required("AWS_ACCESS_KEY_ID")?,
            required("AWS_SECRET_ACCESS_KEY")?,
            std::env::var("AWS_SESSION_TOKEN").ok(),
            None,
            "environment",
        );
        let client = crate::provider::http_client(REQUEST_TIMEOUT).map_err(|error| error.to_string())?;
        Ok(Self { client, region: required("AWS_REGION")?, credentials })
    }

    async fn parameters(&self, references: &[(&str, &str)]) -> Result<Vec<(String, String)>, SecretError> {
        let variables: Vec<_> = references.iter().map(|(variable, _)| *variable).collect();
        // Duplicates are not allowed in one request.
        let names: BTreeSet<_> = references.iter().map(|(_, name)| *name).collect();
        let response = self.request(&SSM, &json!({"Names": names, "WithDecryption": true})).await;
        let response = response.map_err(|problem| secret_error(&variables.join(", "), problem))?;
        let found = references.iter().map(|(variable, name)| {
            let value =
                find_parameter(&response, name).ok_or_else(|| secret_error(variable, "ssm has no such parameter"))?;
            Ok(((*variable).to_owned(), value))
        });
        found.collect()
    }

    async fn secret(&self, variable: &str, id: &str, field: Option<&str>) -> Result<(String, String), SecretError> {
        let response = self.request(&SECRETS_MANAGER, &json!({"SecretId": id})).await;
        let response = response.map_err(|problem| secret_error(variable, problem))?;
        let secret = find_secret(&response, field);
        let secret =
            secret.ok_or_else(|| secret_error(variable, "secretsmanager has no such secret, or it is not text"))?;
        Ok((variable.to_owned(), secret))
    }

    async fn request(&self, store: &SecretStore, body: &Value) -> Result<Value, String> {
        let body = body.to_string();
        let mut attempt = 1;
        loop {
            match self.request_once(store, &body).await {
                Err(failure) if failure.is_retryable && attempt < MAX_ATTEMPTS => {
                    sleep(jittered(FIRST_RETRY_DELAY * 2_u32.pow(attempt - 1))).await;
                    attempt += 1;
                }
                result => return result.map_err(|failure| failure.problem),
            }
        }
    }

    async fn request_once(&self, store: &SecretStore, body: &str) -> Result<Value, RequestFailure> {
        let SecretStore { name, endpoint_variable, target } = store;
        let region = &self.region;
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let endpoint = std::env::var(endpoint_variable).or_else(|_| std::env::var("AWS_ENDPOINT_URL"));
        let url = endpoint.unwrap_or_else(|_| format!("https://{name}.{region}.{suffix}"));
        let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", *target)];
        let mut request = self.client.post(&url).timeout(REQUEST_TIMEOUT);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let signature = self.sign(name, &url, &headers, body.as_bytes());
        for (name, value) in signature.map_err(|problem| RequestFailure { problem, is_retryable: false })? {
            request = request.header(name, value);
        }
        let describe = |error: reqwest::Error| crate::error::with_causes(&error.without_url());
        let response = request.body(body.to_owned()).send().await;
        let response = response.map_err(|error| RequestFailure { problem: describe(error), is_retryable: true })?;
        let status = response.status();
        let body: Value = response.json().await.unwrap_or_default();
        if status.is_success() && body.is_object() {
            return Ok(body);
        }
        let kind = body["__type"].as_str().unwrap_or_default();
        Err(RequestFailure {
            problem: format!("{name} answered with status {status} {kind}"),
            is_retryable: !status.is_client_error() || status.as_u16() == 429 || kind.contains("Throttl"),
        })
    }

    fn sign(
        &self,
        service: &str,
        url: &str,
        headers: &[(&'static str, &'static str)],
        body: &[u8],
    ) -> Result<Vec<(String, String)>, String> {
        let sign_error = |error: &dyn std::fmt::Display| format!("cannot sign the request: {error}");
        let identity = self.credentials.clone().into();
        let parameters = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(service)
            .time(SystemTime::now())
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| sign_error(&error))?
            .into();
        let request = SignableRequest::new("POST", url, headers.iter().copied(), SignableBody::Bytes(body))
            .map_err(|error| sign_error(&error))?;
        let (instructions, _) = sign(request, &parameters).map_err(|error| sign_error(&error))?.into_parts();
        Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// 0.5 to 1.5 times the delay, so that functions that started together do not retry together.
fn jittered(delay: Duration) -> Duration {
    let [random, ..] = Uuid::new_v4().into_bytes();
    delay.mul_f64(0.5 + f64::from(random) / 255.0)
}

/// By name or ARN, with the version or label if the reference has one.
fn find_parameter(response: &Value, name: &str) -> Option<String> {
    let parameter = response["Parameters"].as_array()?.iter().find(|parameter| {
        let text = |field: &str| parameter[field].as_str().unwrap_or_default();
        [text("Name"), text("ARN")].iter().any(|known| format!("{known}{}", text("Selector")) == name)
    })?;
    parameter["Value"].as_str().map(str::to_owned)
}

fn find_secret(response: &Value, field: Option<&str>) -> Option<String> {
    let text = response["SecretString"].as_str()?;
    let Some(field) = field else { return Some(text.to_owned()) };
    let fields: Value = serde_json::from_str(text).ok()?;
    match &fields[field] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_distinguished_from_values() {
        assert_eq!(SecretReference::parse("ssm:/agent/key"), Some(SecretReference::Parameter("/agent/key")));
        assert_eq!(
            SecretReference::parse("secretsmanager:arn:aws:x:secret:db#url"),
            Some(SecretReference::Secret { id: "arn:aws:x:secret:db", field: Some("url") })
        );
        for value in ["", "sk-123", "postgres://ssm:x@host/db"] {
            assert_eq!(SecretReference::parse(value), None, "{value}");
        }
    }

    #[test]
    fn secret_is_the_text_or_a_field_of_it() {
        let response = json!({"SecretString": "{\"url\": \"postgres://x\", \"port\": 5432}"});
        assert_eq!(find_secret(&response, Some("url")).as_deref(), Some("postgres://x"));
        assert_eq!(find_secret(&response, Some("port")).as_deref(), Some("5432"));
        assert_eq!(find_secret(&response, Some("none")), None);
        assert!(find_secret(&response, None).unwrap().starts_with('{'));
    }

    #[test]
    fn parameter_is_found_by_name_version_and_arn() {
        let response = json!({"Parameters": [
            {"Name": "/a", "ARN": "arn:aws:ssm:x:1:parameter/a", "Value": "1"},
            {"Name": "/b", "Selector": ":3", "Value": "2"},
        ], "InvalidParameters": ["/c"]});
        let found = |name| find_parameter(&response, name);
        assert_eq!(found("/a").as_deref(), Some("1"));
        assert_eq!(found("arn:aws:ssm:x:1:parameter/a").as_deref(), Some("1"));
        assert_eq!(found("/b:3").as_deref(), Some("2"));
        assert_eq!((found("/b"), found("/c")), (None, None));
    }
}
