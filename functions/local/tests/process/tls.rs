//! TLS of server and client.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::{
    external_database::DatabaseProxy,
    process::{Sandbox, Signal, within_timeout},
    server::Server,
};

struct CertificateFiles {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl CertificateFiles {
    fn make(sandbox: &Sandbox) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let server = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let write = |name: &str, pem: String| {
            let path = sandbox.path().join(name);
            fs::write(&path, pem).unwrap();
            path
        };
        Self {
            authority: write("ca.pem", authority_pem),
            certificate: write("cert.pem", server.pem()),
            key: write("key.pem", key.serialize_pem()),
        }
    }

    async fn serve(&self, sandbox: &Sandbox) -> Server {
        let proxy = DatabaseProxy::new();
        let mut command = sandbox.command(&[], &[("DATABASE_URL", &proxy.unreachable_url())]);
        command.env("TLS_CERT_FILE", &self.certificate).env("TLS_KEY_FILE", &self.key);
        Server::start(command).await
    }
}

#[tokio::test]
async fn client_connects_only_to_trusted_certificate_authority() {
    let (sandbox, other_sandbox) = (Sandbox::new(), Sandbox::new());
    let files = CertificateFiles::make(&sandbox);
    let server = files.serve(&sandbox).await;
    assert!(server.url.starts_with("https://127.0.0.1:"), "{}", server.url);
    let address = format!("https://localhost:{}", server.port());
    let ask = async |authority: &PathBuf| {
        let authority = authority.to_str().unwrap();
        sandbox.run(&["chat", "hello", "--no-memory", "--addr", &address, "--ca-file", authority], &[]).await
    };
    let output = ask(&files.authority).await;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(output.stdout.contains("demo mode"), "{output:?}");

    let rejected = ask(&CertificateFiles::make(&other_sandbox).authority).await;
    assert_eq!(rejected.code, Some(1), "{rejected:?}");
    assert!(rejected.stderr.contains("certificate"), "{rejected:?}");

    let unreadable = ask(&sandbox.path().join("absent.pem")).await;
    assert_eq!(unreadable.code, Some(1), "{unreadable:?}");
    assert!(unreadable.stderr.contains("--ca-file cannot be read"), "{unreadable:?}");

    let plain = sandbox.run(&["chat", "hello", "--addr", &address.replace("https", "http")], &[]).await;
    assert_eq!(plain.code, Some(1), "{plain:?}");
    server.process.stop().await;
}

impl CertificateFiles {
    /// Whether a handshake succeeds with a client that trusts this authority only.
    async fn is_presented_by(&self, server: &Server) -> bool {
        let authority = Certificate::from_pem(fs::read(&self.authority).unwrap());
        let tls = ClientTlsConfig::new().ca_certificate(authority).domain_name("localhost");
        let endpoint = Endpoint::from_shared(server.url.clone()).unwrap().tls_config(tls).unwrap();
        within_timeout("a handshake", endpoint.connect()).await.is_ok()
    }

    fn replace_with(&self, other: &Self) {
        fs::copy(&other.certificate, &self.certificate).unwrap();
        fs::copy(&other.key, &self.key).unwrap();
    }
}

#[tokio::test]
async fn sighup_reloads_the_certificate_and_keeps_the_old_one_if_the_new_is_invalid() {
    let (sandbox, other_sandbox) = (Sandbox::new(), Sandbox::new());
    let (files, renewed) = (CertificateFiles::make(&sandbox), CertificateFiles::make(&other_sandbox));
    let server = files.serve(&sandbox).await;
    assert!(files.is_presented_by(&server).await && !renewed.is_presented_by(&server).await);

    files.replace_with(&renewed);
    assert!(files.is_presented_by(&server).await, "nothing changes before the signal");
    server.process.signal(Signal::HUP);
    server.process.stderr.line("TLS certificate reloaded").await;
    assert!(renewed.is_presented_by(&server).await && !files.is_presented_by(&server).await);

    let invalid: [&dyn Fn(); 4] = [
        &|| fs::write(&files.certificate, "no certificate").unwrap(),
        &|| fs::write(&files.key, "no key").unwrap(),
        &|| fs::write(&files.key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap(),
        &|| fs::remove_file(&files.certificate).unwrap(),
    ];
    for (errors, invalidate) in (1..).zip(invalid) {
        invalidate();
        server.process.signal(Signal::HUP);
        server.process.stderr.lines_with("TLS certificate not reloaded", errors).await;
        assert!(renewed.is_presented_by(&server).await, "after error {errors}");
        files.replace_with(&renewed);
    }
    assert!(server.process.stderr.so_far().contains("TLS_CERT_FILE"), "the error names the file's variable");
    server.process.stop().await;
}

#[tokio::test]
async fn unreadable_certificate_or_key_is_named() {
    let sandbox = Sandbox::new();
    let files = CertificateFiles::make(&sandbox);
    let (certificate, key) = (files.certificate.to_str().unwrap(), files.key.to_str().unwrap());
    let absent = sandbox.path().join("absent.pem");
    let absent = absent.to_str().unwrap();
    for (certificate, key, name) in [(absent, key, "TLS_CERT_FILE"), (certificate, absent, "TLS_KEY_FILE")] {
        let output = sandbox.run(&[], &[("TLS_CERT_FILE", certificate), ("TLS_KEY_FILE", key)]).await;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.stderr.contains(&format!("{name}: cannot be read")), "{}", output.stderr);
    }
    let output = sandbox.run(&[], &[("TLS_CERT_FILE", key), ("TLS_KEY_FILE", certificate)]).await;
    assert_eq!(output.code, Some(2), "{output:?}");
}
