//! The certificate of the server, which can be replaced while it runs.

use std::{
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ServerConfig as RustlsConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use super::error::ServerError;
use crate::config::TlsFiles;

/// In the order of preference. Without `http/1.1`, a client that speaks nothing else is refused in the handshake.
const ALPN_PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Connections keep the certificate that they began with.
pub(super) struct TlsCertificate {
    files: TlsFiles,
    current: RwLock<Arc<RustlsConfig>>,
}

impl TlsCertificate {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, ServerError> {
        Ok(Self { current: RwLock::new(read(files)?), files: files.clone() })
    }

    pub(super) fn current(&self) -> Arc<RustlsConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again. After an error the old certificate stays.
    pub(super) fn reload(&self) -> Result<(), ServerError> {
        let new = read(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

fn read(files: &TlsFiles) -> Result<Arc<RustlsConfig>, ServerError> {
    let bytes = |variable, path: &Path| std::fs::read(path).map_err(|source| ServerError::TlsFile { variable, source });
    let (certificate, key) = (bytes("TLS_CERT_FILE", &files.certificate)?, bytes("TLS_KEY_FILE", &files.key)?);
    let invalid = |error: &dyn std::fmt::Display| ServerError::Tls(error.to_string());
    let chain = CertificateDer::pem_slice_iter(&certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| invalid(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| invalid(&error))?;
    let config = RustlsConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key));
    let mut config = config.map_err(|error| invalid(&error))?;
    config.alpn_protocols = ALPN_PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(Arc::new(config))
}
