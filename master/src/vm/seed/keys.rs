//! The keys of one VM: ours, which its seed lets in, and the guest's, which its seed brings.

use super::super::VmError;
use super::super::folder::VmFolder;
use crate::model::{HostKey, Login, Platform};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::ssh_key::{self, LineEnding};
use secrecy::{ExposeSecret, SecretString};
use std::path::Path;

/// What a seed says of keys.
pub(super) struct GuestKeys {
    /// The public half of the key that we log in with.
    pub(super) user_public: String,
    /// The guest's own, unless the image has one.
    pub(super) host: Option<KeyPair>,
}

pub(super) struct KeyPair {
    pub(super) private: SecretString,
    pub(super) public: String,
}

impl GuestKeys {
    /// Makes what the platform leaves to us. Our private key is kept in the VM's folder, so that a master that is
    /// started anew gets in again; the guest's goes into its seed alone.
    pub(super) fn make(platform: &Platform, folder: &VmFolder) -> Result<GuestKeys, VmError> {
        let unusable = |path: &Path, why: &dyn std::fmt::Display| {
            VmError::image(
                &platform.name,
                format!("the key {} cannot be used: {why}", path.display()),
            )
        };
        let user_public = match &platform.ssh.login {
            Login::Key(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| unusable(path, &error))?;
                let key = russh::keys::decode_secret_key(&text, None);
                let key = key.map_err(|error| unusable(path, &error))?;
                key.public_key()
                    .to_openssh()
                    .map_err(|error| unusable(path, &error))?
            }
            // The platform's check refuses a password beside a seed.
            Login::Password(_) | Login::Seeded => {
                let pair = new_pair("vivarium")?;
                VmFolder::write_secret(&folder.ssh_key(), pair.private.expose_secret().as_bytes())?;
                pair.public
            }
        };
        let host = match &platform.ssh.host_key {
            HostKey::Pinned(_) => None,
            HostKey::Seeded => {
                let pair = new_pair("build")?;
                VmFolder::write_secret(&folder.ssh_host_key(), pair.public.as_bytes())?;
                Some(pair)
            }
        };
        Ok(GuestKeys { user_public, host })
    }
}

fn new_pair(comment: &str) -> Result<KeyPair, VmError> {
    let make = || {
        let pair = Ed25519Keypair::from_seed(&rand::random());
        let key = PrivateKey::new(KeypairData::Ed25519(pair), comment)?;
        Ok::<_, ssh_key::Error>(KeyPair {
            private: SecretString::from(key.to_openssh(LineEnding::LF)?.as_str()),
            public: key.public_key().to_openssh()?,
        })
    };
    make().map_err(|error| VmError::host("make an SSH key", error))
}
