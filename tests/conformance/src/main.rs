//! The server under test of the Connect conformance suite: our local server with the suite's service.
//!
//!     conformance-server [--bare | --lambda]
//!
//! Reads a `ServerCompatRequest` from stdin, writes a `ServerCompatResponse` with its address to stdout, and serves until
//! SIGTERM. `--lambda` serves by Lambda events. `--bare` serves with tonic and tonic-web alone: failures there are upstream
//! bugs.

#![forbid(unsafe_code)]

use std::{
    error::Error,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use agent_service::{
    config::{ServerConfig, TlsFiles},
    transport::{RpcPaths, lambda::Adapter, server::Listener},
};
use conformance_server::{
    METHODS, bare_service, front,
    proto::{ServerCompatRequest, ServerCompatResponse, TlsCreds},
    service,
};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::Routes,
    transport::{Identity, Server, ServerTlsConfig, server::TcpIncoming},
};
use tonic_web::GrpcWebLayer;

type ServeResult = Result<(), Box<dyn Error>>;

#[tokio::main]
async fn main() -> ServeResult {
    let mode = std::env::args().nth(1);
    // Installed before the address is announced, so that no signal is missed.
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let stopping = async {
        terminate.recv().await;
        stop.cancel();
        // A failed test may have left a stream open.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    };
    let request = read_request()?;
    let serving = async {
        match mode.as_deref() {
            None => serve(request, stop.clone()).await,
            Some("--bare") => serve_bare(request, stop.clone()).await,
            Some("--lambda") => serve_as_function(request).await,
            Some(other) => Err(format!("unknown argument {other}").into()),
        }
    };
    tokio::select! {
        result = serving => result,
        result = stopping => result,
    }
}

/// Serves as the local server does.
async fn serve(request: ServerCompatRequest, stop: CancellationToken) -> ServeResult {
    let folder = tempfile::tempdir()?;
    let tls = match &request.server_creds {
        Some(TlsCreds { cert, key }) => {
            let files = TlsFiles { certificate: folder.path().join("cert.pem"), key: folder.path().join("key.pem") };
            std::fs::write(&files.certificate, cert)?;
            std::fs::write(&files.key, key)?;
            Some(files)
        }
        None => None,
    };
    let config = ServerConfig {
        host: Ipv4Addr::LOCALHOST.into(),
        port: 0,
        tls,
        reflection: false,
        web_page: false,
        health: false,
        shutdown_grace: Duration::ZERO,
        authenticates_callers: true,
        allowed_origins: Vec::new(),
        cors_headers: Vec::new(),
        http1_keepalive: Duration::from_secs(75),
        status_interval: None,
        stall_timeout: Duration::from_secs(300),
    };
    let listener = Listener::bind(&config).await?;
    answer(&request, listener.address())?;
    let service = service(message_limit(&request)?);
    let paths = RpcPaths::of_service(service_name(&service), METHODS);
    listener.serve(Routes::new(service), paths, stop).await;
    Ok(())
}

fn service_name<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

/// Serves as a function of AWS Lambda does.
async fn serve_as_function(request: ServerCompatRequest) -> ServeResult {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let adapter = Adapter::new(service(message_limit(&request)?), METHODS);
    answer(&request, socket.local_addr()?)?;
    Ok(front::serve(adapter, socket).await?)
}

/// Serves with tonic and tonic-web alone.
async fn serve_bare(request: ServerCompatRequest, stop: CancellationToken) -> ServeResult {
    let mut server = Server::builder().accept_http1(true);
    if let Some(TlsCreds { cert, key }) = &request.server_creds {
        server = server.tls_config(ServerTlsConfig::new().identity(Identity::from_pem(cert, key)))?;
    }
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    answer(&request, socket.local_addr()?)?;
    let routes = Routes::new(bare_service(message_limit(&request)?));
    server
        .layer(GrpcWebLayer::new())
        .add_routes(routes)
        .serve_with_incoming_shutdown(TcpIncoming::from(socket), stop.cancelled_owned())
        .await?;
    Ok(())
}

/// The request size limit in bytes.
fn message_limit(request: &ServerCompatRequest) -> Result<usize, Box<dyn Error>> {
    Ok(match request.message_receive_limit {
        0 => usize::MAX,
        limit => limit.try_into()?,
    })
}

/// Messages are prefixed with their size as a big-endian u32.
fn read_request() -> Result<ServerCompatRequest, Box<dyn Error>> {
    let mut input = std::io::stdin().lock();
    let mut size = [0; 4];
    input.read_exact(&mut size)?;
    let mut message = vec![0; u32::from_be_bytes(size).try_into()?];
    input.read_exact(&mut message)?;
    Ok(ServerCompatRequest::decode(&message[..])?)
}

fn answer(request: &ServerCompatRequest, address: SocketAddr) -> ServeResult {
    let pem_cert = request.server_creds.clone().unwrap_or_default().cert;
    let response = ServerCompatResponse { host: address.ip().to_string(), port: address.port().into(), pem_cert };
    let message = response.encode_to_vec();
    let mut output = std::io::stdout().lock();
    output.write_all(&u32::try_from(message.len())?.to_be_bytes())?;
    output.write_all(&message)?;
    Ok(output.flush()?)
}
