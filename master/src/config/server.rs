//! `[server]`: where the master listens, who reaches it, and what each may take.

use super::error::ConfigError;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use url::Url;

/// Where the master listens, and how others reach it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address and port; port 0 takes a free one. Default `127.0.0.1:8090`.
    pub listen: SocketAddr,
    /// The address in links that GitHub shows, e.g. `https://ci.example.org`. Default: `http://` (`https://` with `tls`)
    /// and the address listened on.
    pub public_url: Option<Url>,
    /// Everybody who reaches the master may read builds, logs, artefacts and metrics. Default true; with false, reading
    /// needs a token or a login. Acts need one in either case.
    pub public: bool,
    /// File with the token `local`, which the command line on this machine uses and which may do everything.
    /// Default: `<data_dir>/api-token`, made on the first start.
    pub api_token_file: Option<PathBuf>,
    /// Addresses and networks of proxies, whose `X-Forwarded-For` is believed: limits for an address then count for the
    /// client's. Default none.
    pub trusted_proxies: Vec<AddressRange>,
    /// Serve HTTPS instead of HTTP.
    pub tls: Option<TlsConfig>,
    pub limits: ServerLimits,
}

/// Certificate and key. Both files are read again when they change.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificate with those between it and its authority, in PEM.
    pub certificate_file: PathBuf,
    /// The certificate's private key, in PEM.
    pub key_file: PathBuf,
}

/// What all, and what one address may take. An address that is this machine's own or a proxy's is nobody's: only the
/// limits for all hold there.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerLimits {
    /// Connections at the same time; further ones wait. Default 512.
    pub connections: u32,
    /// Of these, one address's; further ones are closed. Default 64.
    pub connections_per_address: u32,
    /// Live logs and downloads at the same time; further ones are refused with 503. Default 256.
    pub streams: u32,
    /// Of these, one address's. Default 32.
    pub streams_per_address: u32,
    /// Requests a second of one address without a token or a login, ten times as many at once. Default 20.
    pub requests_per_second: u32,
}

/// One address or a network, as `10.0.0.1` or `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct AddressRange(IpNet);

impl AddressRange {
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }
}

impl TryFrom<String> for AddressRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let network = address.or_else(|_| text.parse::<IpNet>());
        network.map(AddressRange).map_err(|_| {
            format!("`{text}` is no address: expected one like `10.0.0.1` or `10.0.0.0/8`")
        })
    }
}

/// Where the command line looks for a master, too.
const DEFAULT_LISTEN: ([u8; 4], u16) = ([127, 0, 0, 1], 8090);

impl Default for ServerConfig {
    fn default() -> Self {
        ServerConfig {
            listen: SocketAddr::from(DEFAULT_LISTEN),
            public_url: None,
            public: true,
            api_token_file: None,
            trusted_proxies: Vec::new(),
            tls: None,
            limits: ServerLimits::default(),
        }
    }
}

impl Default for ServerLimits {
    fn default() -> Self {
        ServerLimits {
            connections: 512,
            connections_per_address: 64,
            streams: 256,
            streams_per_address: 32,
            requests_per_second: 20,
        }
    }
}

impl ServerConfig {
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let tls = self
            .tls
            .iter_mut()
            .flat_map(|tls| [&mut tls.certificate_file, &mut tls.key_file]);
        self.api_token_file.iter_mut().chain(tls)
    }

    pub(super) fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let limits = &self.limits;
        for (name, value) in [
            ("connections", limits.connections),
            ("connections_per_address", limits.connections_per_address),
            ("streams", limits.streams),
            ("streams_per_address", limits.streams_per_address),
            ("requests_per_second", limits.requests_per_second),
        ] {
            if value == 0 {
                let what = format!("[server.limits] {name} is a number from 1 on");
                return Err(ConfigError::meaning(path, what));
            }
        }
        Ok(())
    }
}
