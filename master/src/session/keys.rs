//! The key files: our private key, and the host keys that the guest may show.

use super::{Endpoint, SessionError};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use std::sync::Arc;

/// The keys of both sides, read from their files.
pub(super) struct Keys {
    pub(super) client: Arc<PrivateKey>,
    pub(super) pinned: Vec<PublicKey>,
}

impl Keys {
    pub(super) async fn read(endpoint: &Endpoint) -> Result<Self, SessionError> {
        let secret = tokio::fs::read_to_string(&endpoint.key)
            .await
            .map_err(|error| SessionError::key_file(&endpoint.key, error))?;
        let client = russh::keys::decode_secret_key(&secret, None)
            .map_err(|error| SessionError::key_file(&endpoint.key, error))?;
        let public = tokio::fs::read_to_string(&endpoint.host_key)
            .await
            .map_err(|error| SessionError::key_file(&endpoint.host_key, error))?;
        let mut pinned = Vec::new();
        for line in public.lines().map(str::trim) {
            if !line.is_empty() && !line.starts_with('#') {
                let key = PublicKey::from_openssh(line);
                pinned
                    .push(key.map_err(|error| SessionError::key_file(&endpoint.host_key, error))?);
            }
        }
        if pinned.is_empty() {
            return Err(SessionError::key_file(
                &endpoint.host_key,
                "it holds no public key",
            ));
        }
        Ok(Self {
            client: Arc::new(client),
            pinned,
        })
    }

    /// The signatures to ask for: those that a pinned key can make, so that a server with several keys shows that one.
    pub(super) fn host_key_algorithms(&self) -> Vec<Algorithm> {
        let mut algorithms = Vec::new();
        for key in &self.pinned {
            let of_key = match key.algorithm() {
                Algorithm::Rsa { .. } => vec![
                    Algorithm::Rsa {
                        hash: Some(HashAlg::Sha512),
                    },
                    Algorithm::Rsa {
                        hash: Some(HashAlg::Sha256),
                    },
                ],
                Algorithm::Ecdsa { curve } => vec![Algorithm::Ecdsa { curve }],
                other => vec![other],
            };
            for algorithm in of_key {
                if !algorithms.contains(&algorithm) {
                    algorithms.push(algorithm);
                }
            }
        }
        algorithms
    }
}

/// A key as people compare it: kind and fingerprint.
pub(super) fn describe(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}
