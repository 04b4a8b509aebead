//! The connection to a running server, and its errors as messages for users.

use std::{error::Error, io::ErrorKind, time::Duration};

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::options::Connection;

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

pub type AuthenticatedChannel = InterceptedService<Channel, BearerToken>;

#[derive(Clone)]
pub struct BearerToken(Option<MetadataValue<Ascii>>);

impl Interceptor for BearerToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

pub async fn connect(connection: &Connection) -> Result<AuthenticatedChannel, Box<dyn Error>> {
    let bearer = |token: &String| {
        let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
        value.map_err(|_| "AGENT_TOKEN is not a valid token: it contains characters that a header cannot hold")
    };
    let bearer = BearerToken(connection.token.as_ref().map(bearer).transpose()?);

    let addr = &connection.addr;
    let invalid = || format!("--addr {addr:?} is not a valid URL; expected, for example, http://127.0.0.1:50051");
    let mut endpoint = Endpoint::from_shared(addr.clone()).map_err(|_| invalid())?;
    if !matches!(endpoint.uri().scheme_str(), Some("http" | "https")) {
        return Err(invalid().into());
    }
    if endpoint.uri().scheme_str() == Some("https") {
        let tls = match &connection.ca_file {
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| format!("--ca-file cannot be read: {error}"))?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => {
                return Err("an https:// address needs --ca-file with the certificate authority of the server".into());
            }
        };
        endpoint = endpoint.tls_config(tls)?;
    }
    // Detects a server that vanished without closing the connection.
    endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE_INTERVAL);
    let unreachable = |error: tonic::transport::Error| {
        let cause = root_cause(&error);
        let refused = cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused);
        let hint = if refused {
            "Start a server in another terminal with `cargo run`, or set --addr to the address of another one."
        } else {
            "Check --addr and, if the server uses TLS, --ca-file."
        };
        format!("no server answers at {addr} ({cause}).\n{hint}")
    };
    Ok(InterceptedService::new(endpoint.connect().await.map_err(unreachable)?, bearer))
}

pub fn root_cause<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

pub fn describe_status(status: Status) -> String {
    match status.code() {
        Code::Unknown if status.source().is_some() => {
            format!("the connection broke ({}); if the server uses TLS, write https:// in --addr", root_cause(&status))
        }
        Code::Unavailable => format!("the server is not ready: {}", status.message()),
        code => format!("{} ({code:?})", status.message()),
    }
}
