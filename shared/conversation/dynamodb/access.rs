//! Region, credentials and endpoint of the requests.

use std::time::Duration;

use aws_sdk_dynamodb::config::{BehaviorVersion, Builder, Credentials, Region, SharedHttpClient};

use super::http::SdkHttpClient;

pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The search for credentials may ask services of AWS.
#[cfg(feature = "aws-config")]
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum DynamoSetupError {
    #[error("{0} is not set: conversations in DynamoDB need it")]
    Missing(&'static str),
    #[error(
        "conversations in DynamoDB need a region: set AWS_REGION, or `region` in the profile (AWS_PROFILE) of ~/.aws/config"
    )]
    NoRegion,
    #[error(
        "conversations in DynamoDB need AWS credentials, and neither the environment nor a profile, a container or an \
         instance has any: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )]
    NoCredentials,
    /// Names profiles and files.
    #[error("the AWS credentials cannot be loaded: {0}")]
    Credentials(String),
    #[error("the HTTP client for DynamoDB cannot be built: {0}")]
    Client(#[from] reqwest::Error),
}

#[derive(Debug, Clone)]
pub struct DynamoAccess {
    pub(super) config: Builder,
}

impl DynamoAccess {
    /// As a Lambda function finds them in its environment: `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_SESSION_TOKEN` and `AWS_ENDPOINT_URL_DYNAMODB`.
    pub fn from_env() -> Result<Self, DynamoSetupError> {
        Self::read(&|name| std::env::var(name).ok())
    }

    pub fn read(source: &dyn Fn(&str) -> Option<String>) -> Result<Self, DynamoSetupError> {
        let set = |name: &str| source(name).filter(|value| !value.is_empty());
        let required = |name: &'static str| set(name).ok_or(DynamoSetupError::Missing(name));
        let credentials = Credentials::new(
            required("AWS_ACCESS_KEY_ID")?,
            required("AWS_SECRET_ACCESS_KEY")?,
            set("AWS_SESSION_TOKEN"),
            None,
            "environment",
        );
        let region = set("AWS_REGION").map_or_else(|| required("AWS_DEFAULT_REGION"), Ok);
        let region = region.map_err(|_| DynamoSetupError::Missing("AWS_REGION"))?;
        let endpoint = set("AWS_ENDPOINT_URL_DYNAMODB").or_else(|| set("AWS_ENDPOINT_URL"));
        Ok(Self::new(http_client()?, credentials, region, endpoint))
    }

    pub(super) fn new(
        http: SharedHttpClient,
        credentials: Credentials,
        region: String,
        endpoint: Option<String>,
    ) -> Self {
        let mut config = Builder::new()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .credentials_provider(credentials)
            .region(Region::new(region));
        config.set_endpoint_url(endpoint);
        Self { config }
    }

    /// By the default chain of the AWS SDKs: environment, profile (with SSO, roles and processes), web identity,
    /// container, instance. Credentials are refreshed before they expire.
    ///
    /// # Errors
    /// There is no region, or there are no credentials that could be loaded later.
    #[cfg(feature = "aws-config")]
    pub async fn from_default_chain() -> Result<Self, DynamoSetupError> {
        use aws_credential_types::provider::{ProvideCredentials as _, error::CredentialsError};

        let loader = aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(http_client()?);
        let shared = Box::pin(loader.load()).await;
        if shared.region().is_none() {
            return Err(DynamoSetupError::NoRegion);
        }
        let provider = shared.credentials_provider().ok_or(DynamoSetupError::NoCredentials)?;
        match tokio::time::timeout(CREDENTIALS_TIMEOUT, Box::pin(provider.provide_credentials())).await {
            Ok(Err(CredentialsError::CredentialsNotLoaded(_))) => return Err(DynamoSetupError::NoCredentials),
            Ok(Err(error @ CredentialsError::InvalidConfiguration(_))) => {
                return Err(DynamoSetupError::Credentials(crate::error::with_causes(&error)));
            }
            // Their service may be down, or the SSO login expired: each request tries again.
            Ok(Err(error)) => {
                tracing::warn!(error = crate::error::with_causes(&error), "the AWS credentials cannot be loaded yet");
            }
            Err(_) => tracing::warn!("the AWS credentials cannot be loaded yet: timed out"),
            Ok(Ok(_)) => {}
        }
        Ok(Self { config: Builder::from(&shared) })
    }
}

fn http_client() -> Result<SharedHttpClient, reqwest::Error> {
    Ok(SharedHttpClient::new(SdkHttpClient(crate::provider::http_client(CONNECT_TIMEOUT)?)))
}
