//! The connection to a running server, and what its refusals say to a person.

use std::{error::Error, io::ErrorKind, time::Duration};

use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

use crate::options::Connection;

const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// A connection whose calls say on whose behalf they are made.
pub type Connected = InterceptedService<Channel, Bearer>;

/// Puts a token into every call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// Connects to the server, or says why that can not be.
pub async fn connect(connection: &Connection) -> Result<Connected, Box<dyn Error>> {
    let bearer = |token: &String| {
        let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
        value.map_err(|_| "AGENT_TOKEN is no token: it holds characters that no header may")
    };
    let bearer = Bearer(connection.token.as_ref().map(bearer).transpose()?);

    let addr = &connection.addr;
    let wrong = || format!("--addr {addr:?} is no address; it is written like http://127.0.0.1:50051");
    let mut endpoint = Endpoint::from_shared(addr.clone()).map_err(|_| wrong())?;
    if !matches!(endpoint.uri().scheme_str(), Some("http" | "https")) {
        return Err(wrong().into());
    }
    if endpoint.uri().scheme_str() == Some("https") {
        let tls = match &connection.ca_file {
            Some(path) => {
                let pem = std::fs::read(path).map_err(|error| format!("--ca-file can not be read: {error}"))?;
                ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
            }
            None => return Err("an https address needs --ca-file with the certificate authority of the server".into()),
        };
        endpoint = endpoint.tls_config(tls)?;
    }
    // A server that vanished without a word is missed within a minute.
    endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE_INTERVAL);
    let no_server = |error: tonic::transport::Error| {
        let cause = innermost(&error);
        let refused = cause.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == ErrorKind::ConnectionRefused);
        let advice = if refused {
            "Start one in another terminal with `cargo run`, or name another address with --addr."
        } else {
            "Check --addr, and --ca-file where the server uses TLS."
        };
        format!("no server answers at {addr} ({cause}).\n{advice}")
    };
    Ok(InterceptedService::new(endpoint.connect().await.map_err(no_server)?, bearer))
}

/// The cause of an error that has no cause itself.
pub fn innermost<'e>(mut error: &'e (dyn Error + 'static)) -> &'e (dyn Error + 'static) {
    while let Some(cause) = error.source() {
        error = cause;
    }
    error
}

/// What a status says to a person.
pub fn refusal(status: Status) -> String {
    match status.code() {
        Code::Unknown if status.source().is_some() => {
            format!("the connection broke ({}); if the server uses TLS, write https:// in --addr", innermost(&status))
        }
        Code::Unavailable => format!("the server is not ready: {}", status.message()),
        code => format!("{} ({code:?})", status.message()),
    }
}
