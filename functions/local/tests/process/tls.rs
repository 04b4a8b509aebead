//! A server with a certificate.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use crate::{
    database::Gate,
    server::{Home, Server},
};

/// Files of a certificate authority and of a server that it vouches for.
struct Files {
    authority: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn make(home: &Home) -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority_key = KeyPair::generate().unwrap();
        let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let server = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        let write = |name: &str, pem: String| {
            let path = home.path().join(name);
            fs::write(&path, pem).unwrap();
            path
        };
        Self {
            authority: write("ca.pem", authority_pem),
            certificate: write("cert.pem", server.pem()),
            key: write("key.pem", key.serialize_pem()),
        }
    }

    async fn serve(&self, home: &Home) -> Server {
        let gate = Gate::new();
        let mut command = home.command(&[], &[("DATABASE_URL", &gate.dead_url())]);
        command.env("TLS_CERT_FILE", &self.certificate).env("TLS_KEY_FILE", &self.key);
        Server::start(command).await
    }
}

#[tokio::test]
async fn the_client_talks_to_a_server_with_tls_whose_authority_it_knows_and_to_no_other() {
    let (home, stranger) = (Home::new(), Home::new());
    let files = Files::make(&home);
    let server = files.serve(&home).await;
    assert!(server.url.starts_with("https://127.0.0.1:"), "{}", server.url);
    let address = format!("https://localhost:{}", server.port());
    let ask = async |authority: &PathBuf| {
        let authority = authority.to_str().unwrap();
        home.run(&["chat", "hello", "--no-memory", "--addr", &address, "--ca-file", authority], &[]).await
    };
    let asked = ask(&files.authority).await;
    assert_eq!(asked.code, Some(0), "{asked:?}");
    assert!(asked.stdout.contains("demo mode"), "{asked:?}");

    let refused = ask(&Files::make(&stranger).authority).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("certificate"), "{refused:?}");

    let unreadable = ask(&home.path().join("absent.pem")).await;
    assert_eq!(unreadable.code, Some(1), "{unreadable:?}");
    assert!(unreadable.stderr.contains("--ca-file can not be read"), "{unreadable:?}");

    let plain = home.run(&["chat", "hello", "--addr", &address.replace("https", "http")], &[]).await;
    assert_eq!(plain.code, Some(1), "{plain:?}");
    server.process.stop().await;
}

#[tokio::test]
async fn a_certificate_or_key_that_can_not_be_read_is_named() {
    let home = Home::new();
    let files = Files::make(&home);
    let (certificate, key) = (files.certificate.to_str().unwrap(), files.key.to_str().unwrap());
    let absent = home.path().join("absent.pem");
    let absent = absent.to_str().unwrap();
    for (certificate, key, name) in [(absent, key, "TLS_CERT_FILE"), (certificate, absent, "TLS_KEY_FILE")] {
        let ended = home.run(&[], &[("TLS_CERT_FILE", certificate), ("TLS_KEY_FILE", key)]).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.stderr.contains(&format!("{name}: can not be read")), "{}", ended.stderr);
    }
    // A file that holds something else, such as the two of them swapped.
    let ended = home.run(&[], &[("TLS_CERT_FILE", key), ("TLS_KEY_FILE", certificate)]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
}
