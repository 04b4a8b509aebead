//! The error of starting or running the local server.

use std::{io, net::SocketAddr};

#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages describe the variants")]
pub enum ServerError {
    #[error("cannot listen on {address}: {source}; set GRPC_PORT to a free port, or stop the program that uses it")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot read the file that {variable} names: {source}")]
    TlsFile { variable: &'static str, source: io::Error },
    #[error("cannot build the reflection service: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("TLS_CERT_FILE and TLS_KEY_FILE do not hold a certificate and its key: {0}")]
    Tls(String),
    #[error("cannot read the descriptor of the services: {0}")]
    Descriptor(#[from] prost::DecodeError),
}
