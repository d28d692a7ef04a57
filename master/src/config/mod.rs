//! The three TOML files, read at the edge into types that cannot be wrong.
//!
//! | file | type | where |
//! |---|---|---|
//! | `vivarium.toml` | [`Config`] | the master's own |
//! | `<platforms_dir>/<name>/platform.toml` | [`crate::model::Platform`] | beside each image |
//! | `.vivarium.toml` | [`RepositoryFile`] | in each repository |
//!
//! Unknown keys are refused with the key, the line and the nearest known key; see [`ConfigError`].

mod error;
mod master;
mod platform;
mod platforms;
mod repository_file;
mod secrets;
mod server;
mod watched;

pub use error::ConfigError;
pub use master::{
    Acceleration, Config, GithubAppConfig, GithubConfig, HypervisorConfig, ImagesConfig, Limits,
    OnNewCommit, RepositoryConfig, RetentionConfig, StorageConfig,
};
pub use platform::{is_platform_name, parse_platform, platform_manual, platform_schema};
pub use platforms::{Listed, Platforms, RefusedPlatform, Standing, Unchecked};
pub use repository_file::{REPOSITORY_FILE, RepositoryFile, resolve_jobs};
pub use secrets::{SecretConfig, SecretError, may_have_secrets};
pub use server::{AddressRange, ServerConfig, ServerLimits, TlsConfig};
pub(crate) use watched::{Reread, Watched};
