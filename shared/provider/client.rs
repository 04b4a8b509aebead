//! The HTTP client for providers.

use std::{sync::Once, time::Duration};

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

fn install_tls_provider() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error means that the process has a provider already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
    });
}
