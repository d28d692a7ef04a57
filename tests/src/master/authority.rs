//! A certificate authority of our own.

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::path::{Path, PathBuf};

/// Gives certificates for this machine.
#[derive(Debug)]
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Where it wrote a certificate, its key, and its own certificate.
#[derive(Debug)]
pub struct CertifiedFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub authority: PathBuf,
}

impl Authority {
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "Vivarium's tests");
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority {
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes a certificate for 127.0.0.1 and its key.
    pub fn certify(&self, folder: &Path) -> Result<CertifiedFiles> {
        let params = CertificateParams::new(["127.0.0.1".to_owned()])?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let files = CertifiedFiles {
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
            authority: folder.join("authority.pem"),
        };
        std::fs::write(&files.certificate, certificate.pem())?;
        std::fs::write(&files.key, key.serialize_pem())?;
        std::fs::write(&files.authority, &self.certificate)?;
        Ok(files)
    }

    /// For clients to believe in.
    pub fn for_clients(&self) -> Result<reqwest::Certificate> {
        Ok(reqwest::Certificate::from_pem(self.certificate.as_bytes())?)
    }
}
