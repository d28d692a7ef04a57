//! The key files: what proves that it is us, and the host keys that the guest may show.

use super::{Credential, Endpoint, SessionError};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use secrecy::SecretString;
use std::sync::Arc;

/// What logs us in.
pub(super) enum Proof {
    Key(Arc<PrivateKey>),
    Password(SecretString),
}

/// The keys of both sides, read from their files.
pub(super) struct Keys {
    pub(super) client: Proof,
    pub(super) pinned: Vec<PublicKey>,
}

impl Keys {
    pub(super) async fn read(endpoint: &Endpoint) -> Result<Self, SessionError> {
        let client = Proof::read(&endpoint.credential).await?;
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
        Ok(Self { client, pinned })
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

impl Proof {
    async fn read(credential: &Credential) -> Result<Proof, SessionError> {
        let (Credential::Key(path) | Credential::Password(path)) = credential;
        let text = tokio::fs::read_to_string(path)
            .await
            .map_err(|error| SessionError::key_file(path, error))?;
        match credential {
            Credential::Key(_) => russh::keys::decode_secret_key(&text, None)
                .map(|key| Proof::Key(Arc::new(key)))
                .map_err(|error| SessionError::key_file(path, error)),
            Credential::Password(_) => {
                let line = text.strip_suffix('\n').unwrap_or(&text);
                let line = line.strip_suffix('\r').unwrap_or(line);
                if line.is_empty() {
                    return Err(SessionError::key_file(path, "it holds no password"));
                }
                Ok(Proof::Password(SecretString::from(line)))
            }
        }
    }
}

/// A key as people compare it: kind and fingerprint.
pub(super) fn describe(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256))
}
