//! The service's HTTP client for the AWS SDK: one HTTP and one TLS implementation in a process.

use std::time::Duration;

use aws_sdk_dynamodb::config::{HttpClient, RuntimeComponents};
use aws_smithy_runtime_api::{
    client::{
        http::{HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector},
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
    },
    http::HttpError,
};
use aws_smithy_types::body::SdkBody;
use tokio::time::timeout;

/// The SDK bounds the time of an attempt; the client bounds that of connecting.
#[derive(Debug, Clone)]
pub(super) struct SdkHttpClient(pub(super) reqwest::Client);

#[derive(Debug)]
struct SdkConnector {
    client: reqwest::Client,
    /// Until the head of the response. Set for the metadata service of an instance, which other machines do not have.
    response_timeout: Option<Duration>,
}

impl HttpClient for SdkHttpClient {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let connect_timeout = settings.connect_timeout().unwrap_or_default();
        let response_timeout = settings.read_timeout().map(|timeout| connect_timeout + timeout);
        SharedHttpConnector::new(SdkConnector { client: self.0.clone(), response_timeout })
    }
}

impl HttpConnector for SdkConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (client, response_timeout) = (self.client.clone(), self.response_timeout);
        HttpConnectorFuture::new(async move { send(&client, request, response_timeout).await })
    }
}

async fn send(
    client: &reqwest::Client,
    request: HttpRequest,
    response_timeout: Option<Duration>,
) -> Result<HttpResponse, ConnectorError> {
    let malformed = |error: HttpError| ConnectorError::user(error.into());
    let request = request.try_into_http1x().map_err(malformed)?;
    let request = request.map(|body| body.bytes().map(<[u8]>::to_vec).unwrap_or_default());
    let request = reqwest::Request::try_from(request).map_err(|error| ConnectorError::user(error.into()))?;
    let response = client.execute(request);
    let response = match response_timeout {
        Some(limit) => timeout(limit, response).await.map_err(|elapsed| ConnectorError::timeout(elapsed.into()))?,
        None => response.await,
    };
    let response = response.map_err(connector_error)?;
    let mut whole = http::Response::builder().status(response.status());
    if let Some(headers) = whole.headers_mut() {
        *headers = response.headers().clone();
    }
    let body = response.bytes().await.map_err(connector_error)?;
    let whole = whole.body(SdkBody::from(body)).map_err(|error| ConnectorError::user(error.into()))?;
    HttpResponse::try_from(whole).map_err(malformed)
}

fn connector_error(error: reqwest::Error) -> ConnectorError {
    let error = error.without_url();
    if error.is_timeout() { ConnectorError::timeout(error.into()) } else { ConnectorError::io(error.into()) }
}
