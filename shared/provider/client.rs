//! The HTTP client for providers.

use std::{
    sync::{Once, OnceLock},
    time::Duration,
};

use rustls::ClientConfig;
use rustls_platform_verifier::ConfigVerifierExt as _;

/// Below the usual 60 seconds of load balancers, because a call on a connection that closes at that moment fails; long enough
/// that most users' next turn needs no handshake.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Time that sent bytes may stay unacknowledged. A frozen function or a sleeping laptop wakes with dead connections, whose age
/// it may not know, because its clock may have stopped too. This detects them well before the first-token timeout, so that the
/// call can be retried.
#[cfg(target_os = "linux")]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 keep-alive: silence after which a PING is sent while a response is awaited.
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Wait for the PING's acknowledgement, which comes from the HTTP/2 layer: the model itself may think for longer.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Never follows a redirect, which could leak a key.
pub(crate) fn http_client(connect_timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    install_tls_provider();
    let client = reqwest::Client::builder();
    // Else each client would load the trust store, which takes longer than everything else at the start of a function.
    let client = match tls_config() {
        Ok(config) => client.tls_backend_preconfigured(config.clone()),
        // The builder fails for the same reason, and says so.
        Err(_) => client,
    };
    #[cfg(target_os = "linux")]
    let client = client.tcp_user_timeout(TCP_USER_TIMEOUT);
    // No PING on idle connections: it would be traffic without a user, and a frozen function sends none.
    client
        .connect_timeout(connect_timeout)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(false)
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .user_agent(concat!("agent-service/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Of all clients: one trust store and one cache of sessions in a process.
fn tls_config() -> Result<&'static ClientConfig, rustls::Error> {
    static CONFIG: OnceLock<ClientConfig> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config);
    }
    let mut config = ClientConfig::with_platform_verifier()?;
    // The client offers these itself only for a configuration of its own.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(CONFIG.get_or_init(|| config))
}

fn install_tls_provider() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error means that the process has a provider already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        sync::Arc,
    };

    use super::*;

    #[test]
    fn clients_share_one_tls_configuration() {
        install_tls_provider();
        assert!(std::ptr::eq(tls_config().unwrap(), tls_config().unwrap()));
    }

    /// Returns the protocol that a server which prefers `offered` negotiates with the client.
    async fn negotiate(offered: &[&[u8]]) -> Option<Vec<u8>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let client = http_client(Duration::from_secs(5)).unwrap();
        let server = rustls::ServerConfig::builder().with_no_client_auth();
        let mut server = server.with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
        server.alpn_protocols = offered.iter().map(|name| name.to_vec()).collect();
        let accepted = tokio::task::spawn_blocking(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut connection = rustls::ServerConnection::new(Arc::new(server)).unwrap();
            // The client refuses the certificate after the server has chosen.
            while connection.alpn_protocol().is_none() && connection.wants_read() {
                if connection.read_tls(&mut socket).unwrap() == 0 || connection.process_new_packets().is_err() {
                    break;
                }
            }
            let chosen = connection.alpn_protocol().map(<[u8]>::to_vec);
            let _sent = connection.write_tls(&mut socket).and_then(|_| socket.flush());
            let _closed = socket.read(&mut [0; 64]);
            chosen
        });
        assert!(client.get(url).send().await.is_err(), "a certificate that nobody signed was accepted");
        accepted.await.unwrap()
    }

    #[tokio::test]
    async fn client_verifies_certificates_and_offers_both_versions_of_http() {
        assert_eq!(negotiate(&[b"h2", b"http/1.1"]).await.as_deref(), Some(&b"h2"[..]));
        assert_eq!(negotiate(&[b"http/1.1"]).await.as_deref(), Some(&b"http/1.1"[..]));
    }
}
