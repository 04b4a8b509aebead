//! Secrets by reference: a variable whose value names where its secret is kept gets it from there, once, at the start.
//!
//! - `ssm:NAME`: a parameter of the SSM Parameter Store; ten of them are one request;
//! - `secretsmanager:ID` or `secretsmanager:ID#FIELD`: a secret of the Secrets Manager, or a field of one that is JSON.

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

/// Longest that one try is waited for.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How often a store is asked that is busy or out of order. Many functions start together when many users come.
const TRIES: u32 = 3;
/// About how long is waited before the second try, and twice that before the third.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Most parameters that one request may name.
const PARAMETERS: usize = 10;

/// Why secrets can not be had. It holds the names of variables, and neither a secret nor its reference.
#[derive(Debug, thiserror::Error)]
#[error("the secret that {variables} names can not be had: {problem}")]
pub(super) struct SecretError {
    variables: String,
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
}

/// The secrets that variables of the environment name, by the variables' names.
///
/// # Errors
/// A secret can not be had.
pub(super) async fn from_env() -> Result<HashMap<String, String>, SecretError> {
    let set: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (mut parameters, mut secrets) = (Vec::new(), Vec::new());
    for (variable, value) in &set {
        match Reference::parse(value) {
            Some(Reference::Parameter(name)) => parameters.push((variable.as_str(), name)),
            Some(Reference::Secret { id, field }) => secrets.push((variable.as_str(), id, field)),
            None => {}
        }
    }
    if parameters.is_empty() && secrets.is_empty() {
        return Ok(HashMap::new());
    }
    let first = parameters.first().map(|(variable, _)| *variable).or(secrets.first().map(|(variable, ..)| *variable));
    let stores = Stores::from_env().map_err(|problem| failed(first.unwrap_or_default(), problem))?;
    let parameters = parameters.chunks(PARAMETERS).map(|some| stores.parameters(some));
    let secrets = secrets.iter().map(|(variable, id, field)| stores.secret(variable, id, *field));
    let (parameters, secrets) = try_join(try_join_all(parameters), try_join_all(secrets)).await?;
    Ok(parameters.into_iter().flatten().chain(secrets).collect())
}

fn failed(variables: &str, problem: impl Into<String>) -> SecretError {
    SecretError { variables: variables.to_owned(), problem: problem.into() }
}

/// A service of AWS that keeps secrets, and its call that reads them.
struct Store {
    name: &'static str,
    /// The variable that names another endpoint.
    endpoint: &'static str,
    target: &'static str,
}

const SSM: Store = Store { name: "ssm", endpoint: "AWS_ENDPOINT_URL_SSM", target: "AmazonSSM.GetParameters" };
const SECRETS_MANAGER: Store = Store {
    name: "secretsmanager",
    endpoint: "AWS_ENDPOINT_URL_SECRETS_MANAGER",
    target: "secretsmanager.GetSecretValue",
};

/// Why one try brought nothing.
struct Refused {
    problem: String,
    may_pass: bool,
}

/// The stores of the function's region, which it reads by its own credentials.
struct Stores {
    client: reqwest::Client,
    region: String,
    credentials: Credentials,
}

impl Stores {
    fn from_env() -> Result<Self, String> {
        let needed = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
        let credentials = Credentials::new(
            needed("AWS_ACCESS_KEY_ID")?,
            needed("AWS_SECRET_ACCESS_KEY")?,
            std::env::var("AWS_SESSION_TOKEN").ok(),
            None,
            "environment",
        );
        let client = crate::provider::http_client(TIMEOUT).map_err(|error| error.to_string())?;
        Ok(Self { client, region: needed("AWS_REGION")?, credentials })
    }

    /// The parameters that variables name, by the variables.
    async fn parameters(&self, named: &[(&str, &str)]) -> Result<Vec<(String, String)>, SecretError> {
        let variables: Vec<_> = named.iter().map(|(variable, _)| *variable).collect();
        // The same may be named twice, but not in one request.
        let names: BTreeSet<_> = named.iter().map(|(_, name)| *name).collect();
        let answer = self.ask(&SSM, &json!({"Names": names, "WithDecryption": true})).await;
        let answer = answer.map_err(|problem| failed(&variables.join(", "), problem))?;
        let found = named.iter().map(|(variable, name)| {
            let value =
                parameter_of(&answer, name).ok_or_else(|| failed(variable, "ssm has no parameter of that name"))?;
            Ok(((*variable).to_owned(), value))
        });
        found.collect()
    }

    /// The secret that a variable names, or a field of it, by the variable.
    async fn secret(&self, variable: &str, id: &str, field: Option<&str>) -> Result<(String, String), SecretError> {
        let answer = self.ask(&SECRETS_MANAGER, &json!({"SecretId": id})).await;
        let answer = answer.map_err(|problem| failed(variable, problem))?;
        let secret = secret_of(&answer, field);
        let secret = secret.ok_or_else(|| failed(variable, "secretsmanager has no text of that name"))?;
        Ok((variable.to_owned(), secret))
    }

    /// Asks a store, some times if need be.
    async fn ask(&self, store: &Store, body: &Value) -> Result<Value, String> {
        let body = body.to_string();
        let mut tries = 1;
        loop {
            match self.ask_once(store, &body).await {
                Err(refused) if refused.may_pass && tries < TRIES => {
                    sleep(jittered(FIRST_WAIT * 2_u32.pow(tries - 1))).await;
                    tries += 1;
                }
                answered => return answered.map_err(|refused| refused.problem),
            }
        }
    }

    async fn ask_once(&self, store: &Store, body: &str) -> Result<Value, Refused> {
        let Store { name, endpoint, target } = store;
        let region = &self.region;
        let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let other = std::env::var(endpoint).or_else(|_| std::env::var("AWS_ENDPOINT_URL"));
        let url = other.unwrap_or_else(|_| format!("https://{name}.{region}.{suffix}"));
        let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", *target)];
        let mut request = self.client.post(&url).timeout(TIMEOUT);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let signed = signature(&self.credentials, region, name, &url, &headers, body.as_bytes());
        for (name, value) in signed.map_err(|problem| Refused { problem, may_pass: false })? {
            request = request.header(name, value);
        }
        let broken = |error: reqwest::Error| crate::error::with_causes(&error.without_url());
        let response = request.body(body.to_owned()).send().await;
        let response = response.map_err(|error| Refused { problem: broken(error), may_pass: true })?;
        let status = response.status();
        let answer: Value = response.json().await.unwrap_or_default();
        if status.is_success() && answer.is_object() {
            return Ok(answer);
        }
        let kind = answer["__type"].as_str().unwrap_or_default();
        Err(Refused {
            problem: format!("{name} answered with status {status} {kind}"),
            may_pass: !status.is_client_error() || status.as_u16() == 429 || kind.contains("Throttl"),
        })
    }
}

/// Half to one and a half of a time, so that functions which started together do not ask together again.
fn jittered(wait: Duration) -> Duration {
    let [random, ..] = Uuid::new_v4().into_bytes();
    wait.mul_f64(0.5 + f64::from(random) / 255.0)
}

/// A parameter in an answer, by its name, with its version or label if it has one, or by its ARN.
fn parameter_of(answer: &Value, name: &str) -> Option<String> {
    let parameter = answer["Parameters"].as_array()?.iter().find(|parameter| {
        let text = |field: &str| parameter[field].as_str().unwrap_or_default();
        [text("Name"), text("ARN")].iter().any(|known| format!("{known}{}", text("Selector")) == name)
    })?;
    parameter["Value"].as_str().map(str::to_owned)
}

/// The secret in an answer, or a field of one that is JSON.
fn secret_of(answer: &Value, field: Option<&str>) -> Option<String> {
    let text = answer["SecretString"].as_str()?;
    let Some(field) = field else { return Some(text.to_owned()) };
    let fields: Value = serde_json::from_str(text).ok()?;
    match &fields[field] {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
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
        assert_eq!(secret_of(&answer, Some("url")).as_deref(), Some("postgres://x"));
        assert_eq!(secret_of(&answer, Some("port")).as_deref(), Some("5432"));
        assert_eq!(secret_of(&answer, Some("none")), None);
        assert!(secret_of(&answer, None).unwrap().starts_with('{'));
    }

    #[test]
    fn a_parameter_is_found_by_its_name_its_version_and_its_arn() {
        let answer = json!({"Parameters": [
            {"Name": "/a", "ARN": "arn:aws:ssm:x:1:parameter/a", "Value": "1"},
            {"Name": "/b", "Selector": ":3", "Value": "2"},
        ], "InvalidParameters": ["/c"]});
        let found = |name| parameter_of(&answer, name);
        assert_eq!(found("/a").as_deref(), Some("1"));
        assert_eq!(found("arn:aws:ssm:x:1:parameter/a").as_deref(), Some("1"));
        assert_eq!(found("/b:3").as_deref(), Some("2"));
        assert_eq!((found("/b"), found("/c")), (None, None));
    }
}
