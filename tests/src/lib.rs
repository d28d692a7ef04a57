//! The harness: the real thing in small, for the scenarios beside it.
//!
//! * [`github`]: a GitHub with state, strict, whose faults are settings.
//! * [`git`] and [`repository`]: real repositories with a `.vivarium.toml`.
//! * [`master`]: the real `vivarium serve` with a data folder of its own.
//! * [`command_line`]: the same program as a person or a script calls it.
//! * [`object_server`]: a store that speaks S3, and can be switched off.
//! * [`file_server`]: a web server with one file, which can break off.
//! * [`machine`]: images, platforms and what must be gone afterwards.
//! * [`world`]: all of it together.

pub mod command_line;
pub mod file_server;
pub mod git;
pub mod github;
pub mod machine;
pub mod master;
pub mod object_server;
pub mod repository;
pub mod world;

use sha2::{Digest, Sha256};

/// A client for loopback addresses: no proxy, no redirects, no connection kept for the next request.
pub fn http_client() -> reqwest::Client {
    http_client_builder()
        .build()
        .unwrap_or_else(|error| panic!("cannot make an HTTP client: {error}"))
}

/// What [`http_client`] is made of.
pub fn http_client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .pool_max_idle_per_host(0)
}

/// Where `needle` begins in `bytes`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
