//! The certificate and its key, read again when their files change: a new one serves the next connection.

use crate::config::{Reread, TlsConfig, Watched};
use anyhow::Context;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use tokio_rustls::TlsAcceptor;

/// Makes TLS connections by the files as they are.
#[derive(Debug)]
pub struct Tls {
    certificate: Watched<String>,
    key: Watched<SecretString>,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads both files.
    pub fn open(config: &TlsConfig) -> anyhow::Result<Tls> {
        let certificate = Watched::new(&config.certificate_file);
        let key = Watched::new(&config.key_file);
        let current = RwLock::new(read(&certificate, &key)?);
        Ok(Tls {
            certificate,
            key,
            current,
        })
    }

    /// For the next connection. Files that changed and are no good are told of once; the last good ones go on serving.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        if self.certificate.has_changed() || self.key.has_changed() {
            match read(&self.certificate, &self.key) {
                Ok(config) => {
                    tracing::info!(file = %self.certificate.path().display(), "the certificate was read again");
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                }
                Err(error) => tracing::error!(
                    error = format!("{error:#}"),
                    "the changed certificate does not serve; the last good one goes on"
                ),
            }
        }
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        TlsAcceptor::from(current.clone())
    }
}

fn read(
    certificate: &Watched<String>,
    key: &Watched<SecretString>,
) -> anyhow::Result<Arc<ServerConfig>> {
    // Both before any fault: what was read does not look changed at the next connection.
    let chain = certificate.get(Reread::IfChanged, |text| text);
    let private = key.get(Reread::IfChanged, |text| text.map(SecretString::from));
    let chain = chain.with_context(|| format!("cannot read {}", certificate.path().display()))?;
    let private = private.with_context(|| format!("cannot read {}", key.path().display()))?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<_, _>>()
        .with_context(|| in_file("the certificate", certificate.path()))?;
    anyhow::ensure!(
        !chain.is_empty(),
        "{} holds no certificate in PEM",
        certificate.path().display()
    );
    let private = PrivateKeyDer::from_pem_slice(private.expose_secret().as_bytes())
        .with_context(|| in_file("the private key", key.path()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("TLS cannot be set up")?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .with_context(|| {
            format!(
                "the key {} does not serve with the certificate {}",
                key.path().display(),
                certificate.path().display()
            )
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn in_file(what: &str, path: &Path) -> String {
    format!("{what} in {} is no PEM", path.display())
}
