//! The HTTP client to providers.

use std::{sync::Once, time::Duration};

/// A client that keeps its connections open between calls and never follows a redirect, which could carry a key away.
///
/// # Errors
/// TLS can not be set up.
pub(crate) fn http_client(connect_timeout: Duration) -> Result<reqwest::Client, reqwest::Error> {
    install_tls_provider();
    reqwest::Client::builder()
        .connect_timeout(connect_timeout)
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
