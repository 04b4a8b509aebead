//! The HTTP client to providers.

use std::{sync::Once, time::Duration};

/// How long a connection without a call is kept. Load balancers close theirs after 60 seconds as a rule, and a call that meets
/// that moment fails; shorter, and most users' next turn would begin with a handshake.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// How long what was sent may stay unconfirmed by the other end's kernel. A function that was frozen, or a laptop that slept,
/// wakes with connections that others have forgotten without a word, and whose age it need not know: its clock may have stood
/// still as well. This finds them well before the wait for a first token is over, so that the call can be made again.
#[cfg(target_os = "linux")]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// HTTP/2 asks for a sign of life where an answer is awaited and nothing came for so long …
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// … and for so long it waits for that sign. It is the protocol's own answer, so that a model may think for longer.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// A client that keeps its connections open between calls and never follows a redirect, which could carry a key away.
///
/// # Errors
/// TLS can not be set up.
pub(crate) fn http_client(connect_timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    install_tls_provider();
    let client = reqwest::Client::builder();
    #[cfg(target_os = "linux")]
    let client = client.tcp_user_timeout(TCP_USER_TIMEOUT);
    // Idle connections are asked for nothing: it would be traffic without a user, and none in a frozen function.
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

/// Chooses the cryptography of TLS once for the process.
fn install_tls_provider() {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        // An error means that the program around us has chosen already, which is as good.
        let _chosen = rustls::crypto::ring::default_provider().install_default();
    });
}
