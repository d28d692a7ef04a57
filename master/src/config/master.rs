//! `vivarium.toml`: the master's own configuration. Each field's comment is its manual.

use super::error::{self, ConfigError};
use super::repository_file::RepositoryFile;
use super::secrets::SecretConfig;
use super::server::ServerConfig;
use globset::{Glob, GlobSet, GlobSetBuilder};
use jiff::civil::Time;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use url::Url;

/// The whole file. Relative paths are taken from the file's folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder for the database, logs, mirrors and VM files.
    #[serde(default = "defaults::data_dir")]
    pub data_dir: PathBuf,
    /// Folder of platforms: `<platforms_dir>/<name>/platform.toml` with the image beside it.
    #[serde(default = "defaults::platforms_dir")]
    pub platforms_dir: PathBuf,
    /// Folder of agents for systems that this build has none for: files `<os>-<arch>`, and `SHA256SUMS`.
    /// Default: `../lib/vivarium/agents` from the program's folder, or `/usr/lib/vivarium/agents` where that is not there.
    #[serde(default)]
    pub agents_dir: Option<PathBuf>,
    #[serde(default)]
    pub server: ServerConfig,
    #[serde(default)]
    pub github: GithubConfig,
    #[serde(default)]
    pub hypervisor: HypervisorConfig,
    #[serde(default)]
    pub images: ImagesConfig,
    #[serde(default)]
    pub storage: StorageConfig,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub retention: RetentionConfig,
    /// Values for the environment of suites, by name.
    #[serde(default)]
    pub secrets: BTreeMap<String, SecretConfig>,
    #[serde(default, rename = "repository")]
    pub repositories: Vec<RepositoryConfig>,
}

/// GitHub, or GitHub Enterprise Server.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GithubConfig {
    /// Base of the REST API; for an Enterprise server `https://HOST/api/v3`. Default `https://api.github.com`.
    pub api_url: Url,
    /// File with a token that may write commit statuses (and read private repositories).
    pub token_file: Option<PathBuf>,
    /// Files with the webhook's secrets; all are accepted, so that one can be rotated.
    pub webhook_secret_files: Vec<PathBuf>,
    /// Be a GitHub App instead of the holder of a token.
    pub app: Option<GithubAppConfig>,
    /// What GitHub shows is compared with what the master knows at the start and this often, in seconds; 0: never.
    /// Default 300.
    pub reconcile_secs: u64,
    /// A commit that has no build and was last touched longer ago is not built for having been missed, in days.
    /// Default 14.
    pub reconcile_days: u32,
    /// The first pause after GitHub asked to send less without saying for how long, in seconds; doubled each time up
    /// to fifteen minutes. Default 60.
    pub limit_pause_secs: u64,
}

/// A GitHub App, which has rights and a limit of its own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GithubAppConfig {
    /// The *App ID* on the App's page.
    pub id: u64,
    /// File with a private key of the App, in PEM. It is read again when it changes.
    pub private_key_file: PathBuf,
    /// The one installation to act for. Default: that of each repository's owner.
    pub installation_id: Option<u64>,
}

/// Whether guests run in hardware virtualisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// KVM where the processor has it and the device can be opened, else TCG.
    Auto,
    Kvm,
    /// QEMU's own emulation: five to twenty times slower, works everywhere.
    Tcg,
}

/// The machine that runs the guests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HypervisorConfig {
    /// `qemu:///system`, `qemu:///session` or `qemu:///embed?root=DIR`.
    /// Default: `qemu:///system` for root, else `qemu:///session`.
    pub uri: Option<String>,
    /// `auto` (default), `kvm` or `tcg`.
    pub acceleration: Acceleration,
    /// Memory for guests in MiB. Default: the host's memory less a quarter.
    pub memory_mib: Option<u64>,
    /// Processors for guests. Default: twice the host's, since suites seldom keep one busy.
    pub vcpus: Option<u32>,
    /// Deadlines for booting and connecting are multiplied by this under TCG. Default 3.
    pub tcg_deadline_scale: u32,
    /// No job starts while a file system with overlays, logs, objects or the database has less free, in MiB.
    /// Jobs wait then, and go on once there is room. Default 2048.
    pub min_free_disk_mib: u64,
}

/// What images have to prove: `vivarium image test` writes a certificate beside an image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// Only images with a certificate take jobs: one without a failed check, of this very image and platform.toml.
    /// Machines reached by SSH have no image and need none. Default false.
    pub require_certificate: bool,
    /// The time of the day, by this machine's clock, at which each image is tested and its certificate made anew, one
    /// after the other, e.g. `03:00`. Default: never.
    pub nightly: Option<Time>,
    /// How long such a test watches the guest's clock, in seconds, beside its other checks. Default 60.
    pub drift_secs: u64,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        ImagesConfig {
            require_certificate: false,
            nightly: None,
            drift_secs: 60,
        }
    }
}

/// Where sealed logs and artefacts go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// A folder, or `s3://bucket/prefix`, `gs://…`, `az://…`. Default `<data_dir>/objects`.
    pub url: Option<String>,
    /// Settings of the store by the names of the `object_store` library, e.g. `aws_endpoint`, `aws_region`.
    pub options: BTreeMap<String, String>,
    /// File with more such settings, `name = "value"` in TOML, for those that are secret.
    pub secrets_file: Option<PathBuf>,
    /// Logs and artefacts of ended jobs that wait on this machine while the store takes none, in MiB. While there are
    /// more, no job starts; those that run go on. Default 10240.
    pub pending_mib: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        StorageConfig {
            url: None,
            options: BTreeMap::new(),
            secrets_file: None,
            pending_mib: 10240,
        }
    }
}

/// Bounds on time and size; platforms and suites may set some of their own.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The most time a step may ask for or take without asking, in seconds. Default 3600.
    pub step_timeout_secs: u64,
    /// All steps of a job together, in seconds. Default 7200.
    pub job_timeout_secs: u64,
    /// Silence of a running step, in seconds. Default 1200.
    pub no_output_timeout_secs: u64,
    /// Fresh VMs after an infrastructure error, before the job ends with it. Default 2.
    pub infrastructure_retries: u32,
    /// A platform of which so many boots failed in a row is put out of service: its jobs wait, and boots without a job,
    /// at growing intervals and when its files change, bring it back. 0: never. Default 3.
    pub platform_failures: u32,
    /// How long a job waits for a platform that is out of service before it ends with an infrastructure error, in
    /// seconds. Default 3600.
    pub platform_patience_secs: u64,
    /// A job's log in MiB; beyond it the middle is left out. Default 200.
    pub log_mib: u64,
    /// All artefacts of a job in MiB. Default 4096.
    pub artifacts_mib: u64,
    /// Artefacts of a job. Default 1000.
    pub artifact_files: u64,
    /// Output that may wait in a guest while the master is away, in MiB, before the suite's writes block. Default 64.
    pub spool_mib: u64,
    /// Between TERM and KILL when a step is ended, in seconds. Default 5.
    pub stop_grace_secs: u64,
    /// A guest that is silent for three times so many seconds is taken for dead, and the connection made anew. Default 5.
    pub heartbeat_secs: u64,
}

/// How long what is over is kept, in days; 0 keeps it for ever. Of each branch that publishes, the newest build and the
/// newest that passed stay whole.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionConfig {
    /// Logs, from the end of the job on. Default 90.
    pub keep_logs_days: u32,
    /// Artefacts, from the end of the job on. Default 90.
    pub keep_artifacts_days: u32,
    /// Builds and jobs with their outcomes, from the end of the build on; not shorter than their logs and artefacts.
    /// Default 365.
    pub keep_records_days: u32,
    /// Deliveries that were acted upon, from their arrival on; at least 7, as long as GitHub may deliver them again.
    /// Default 30.
    pub keep_deliveries_days: u32,
}

impl Default for RetentionConfig {
    fn default() -> Self {
        RetentionConfig {
            keep_logs_days: 90,
            keep_artifacts_days: 90,
            keep_records_days: 365,
            keep_deliveries_days: 30,
        }
    }
}

impl RetentionConfig {
    /// GitHub delivers again for three days, an Enterprise server for seven.
    const LEAST_DELIVERIES_DAYS: u32 = 7;

    fn check(self) -> Result<(), String> {
        let forever = |days: u32| match days {
            0 => u32::MAX,
            days => days,
        };
        for (name, days) in [
            ("keep_logs_days", self.keep_logs_days),
            ("keep_artifacts_days", self.keep_artifacts_days),
        ] {
            if forever(days) > forever(self.keep_records_days) {
                return Err(format!(
                    "keep_records_days is less than {name}: without its record nobody finds it"
                ));
            }
        }
        if forever(self.keep_deliveries_days) < Self::LEAST_DELIVERIES_DAYS {
            return Err(format!(
                "keep_deliveries_days is at least {}: so long a delivery may come a second time",
                Self::LEAST_DELIVERIES_DAYS
            ));
        }
        Ok(())
    }
}

/// What a new commit on a pull request does to the older commit's build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNewCommit {
    /// Ends the older one's machines, queued and running.
    #[default]
    Cancel,
    /// Tests every commit.
    Queue,
}

/// A repository that is watched.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// For GitHub `owner/name`; for others any name of letters, digits, `.`, `_`, `-` and `/`.
    pub name: String,
    /// What git fetches: a path or URL. Default for GitHub: `https://github.com/<name>.git`.
    pub url: Option<String>,
    /// Webhooks name it and statuses are reported. Default: true when no `url` is given.
    pub github: Option<bool>,
    /// Looks for new commits this often, in seconds. Default: 5 for a repository that is not on GitHub, else never.
    pub poll_secs: Option<u64>,
    /// Branches whose commits are tested, as globs. Default `["main", "master"]`.
    #[serde(default = "defaults::branches")]
    pub branches: Vec<String>,
    /// Branches whose artefacts are published, as globs. Default: the same as `branches`.
    pub publish: Option<Vec<String>>,
    /// `cancel` (default) or `queue`.
    #[serde(default)]
    pub on_new_commit: OnNewCommit,
    /// The suites for commits without a `.vivarium.toml`, in the same form as that file.
    pub suites: Option<RepositoryFile>,
    /// Uses `suites` even where a commit has a `.vivarium.toml`. Default false.
    #[serde(default)]
    pub ignore_repository_file: bool,
}

mod defaults {
    use std::path::PathBuf;

    pub(super) fn data_dir() -> PathBuf {
        "/var/lib/vivarium".into()
    }

    pub(super) fn platforms_dir() -> PathBuf {
        "/etc/vivarium/platforms".into()
    }

    pub(super) fn branches() -> Vec<String> {
        vec!["main".into(), "master".into()]
    }
}

impl Default for GithubConfig {
    fn default() -> Self {
        GithubConfig {
            #[expect(clippy::expect_used, reason = "a constant that a test parses")]
            api_url: Url::parse("https://api.github.com").expect("a constant"),
            token_file: None,
            webhook_secret_files: Vec::new(),
            app: None,
            reconcile_secs: 300,
            reconcile_days: 14,
            limit_pause_secs: 60,
        }
    }
}

impl Default for HypervisorConfig {
    fn default() -> Self {
        HypervisorConfig {
            uri: None,
            acceleration: Acceleration::Auto,
            memory_mib: None,
            vcpus: None,
            tcg_deadline_scale: 3,
            min_free_disk_mib: 2048,
        }
    }
}

impl StorageConfig {
    /// The folder that `url` names, if it is one.
    pub fn folder(&self) -> Option<PathBuf> {
        let url = self.url.as_deref()?;
        match Url::parse(url) {
            Ok(url) if url.scheme() == "file" => url.to_file_path().ok(),
            Ok(_) => None,
            Err(_) => Some(PathBuf::from(url)),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            step_timeout_secs: 3600,
            job_timeout_secs: 7200,
            no_output_timeout_secs: 1200,
            infrastructure_retries: 2,
            platform_failures: 3,
            platform_patience_secs: 3600,
            log_mib: 200,
            artifacts_mib: 4096,
            artifact_files: 1000,
            spool_mib: 64,
            stop_grace_secs: 5,
            heartbeat_secs: 5,
        }
    }
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let config: Config = error::read(path)?;
        config.checked(path)
    }

    /// Parses and checks text; `path` says where relative paths start and is named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let config: Config = error::parse(path, text)?;
        config.checked(path)
    }

    fn checked(mut self, path: &Path) -> Result<Config, ConfigError> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
        let paths = [&mut self.data_dir, &mut self.platforms_dir]
            .into_iter()
            .chain(self.agents_dir.as_mut())
            .chain(self.server.paths())
            .chain(self.github.token_file.as_mut())
            .chain(self.github.webhook_secret_files.iter_mut())
            .chain(
                self.github
                    .app
                    .as_mut()
                    .map(|app| &mut app.private_key_file),
            )
            .chain(self.storage.secrets_file.as_mut())
            .chain(
                self.secrets
                    .values_mut()
                    .filter_map(|secret| secret.file.as_mut()),
            );
        for path in paths {
            *path = folder.join(&*path);
        }
        for (name, secret) in &self.secrets {
            secret
                .check(name)
                .map_err(|what| ConfigError::meaning(path, what))?;
        }
        self.server.check(path)?;
        if self.limits.heartbeat_secs == 0 {
            return Err(ConfigError::meaning(
                path,
                "heartbeat_secs is a number of seconds from 1 on; leave it out to use the default"
                    .to_owned(),
            ));
        }
        self.retention
            .check()
            .map_err(|what| ConfigError::meaning(path, format!("[retention]: {what}")))?;
        let mut seen = BTreeSet::new();
        for repository in &self.repositories {
            let wrong = |what: String| ConfigError::meaning(path, what);
            let name = &repository.name;
            if !is_repository_name(name) {
                return Err(wrong(format!(
                    "repository `{name}`: a name has letters, digits, `.`, `_`, `-`, with `/` between its parts"
                )));
            }
            if !seen.insert(name.to_lowercase()) {
                return Err(wrong(format!("repository `{name}` is listed twice")));
            }
            for globs in [Some(&repository.branches), repository.publish.as_ref()]
                .into_iter()
                .flatten()
            {
                glob_set(globs).map_err(|e| wrong(format!("repository `{name}`: {e}")))?;
            }
            if repository.poll_secs == Some(0) {
                return Err(wrong(format!(
                    "repository `{name}`: poll_secs is a number of seconds from 1 on; leave it out to use the default"
                )));
            }
            if repository.ignore_repository_file && repository.suites.is_none() {
                return Err(wrong(format!(
                    "repository `{name}`: ignore_repository_file needs `suites` to use instead"
                )));
            }
            if let Some(suites) = &repository.suites {
                suites
                    .check()
                    .map_err(|e| wrong(format!("repository `{name}`: suites: {e}")))?;
            }
        }
        if self.github.token_file.is_some() && self.github.app.is_some() {
            return Err(ConfigError::meaning(
                path,
                "[github.app] takes the place of `token_file` under [github]: give only one of them"
                    .to_owned(),
            ));
        }
        if !self.github.has_credentials()
            && let Some(repository) = self.repositories.iter().find(|r| r.is_github())
        {
            return Err(ConfigError::meaning(
                path,
                format!(
                    "repository `{}` is on GitHub, so statuses need `token_file` under [github], or [github.app]; \
                     for a repository that is only fetched give its `url`",
                    repository.name
                ),
            ));
        }
        Ok(self)
    }

    /// The repository of that name; GitHub's names do not tell capital letters apart.
    pub fn repository(&self, name: &str) -> Option<&RepositoryConfig> {
        self.repositories
            .iter()
            .find(|repository| repository.name.eq_ignore_ascii_case(name))
    }
}

impl GithubConfig {
    /// Whether GitHub is talked to at all.
    pub fn has_credentials(&self) -> bool {
        self.token_file.is_some() || self.app.is_some()
    }
}

impl RepositoryConfig {
    pub fn is_github(&self) -> bool {
        self.github.unwrap_or(self.url.is_none())
    }

    /// What git fetches.
    pub fn fetch_url(&self) -> String {
        self.url
            .clone()
            .unwrap_or_else(|| format!("https://github.com/{}.git", self.name))
    }

    /// How often it is polled, if it is.
    pub fn poll_interval(&self) -> Option<std::time::Duration> {
        const DEFAULT_SECS: u64 = 5;
        self.poll_secs
            .or((!self.is_github()).then_some(DEFAULT_SECS))
            .map(std::time::Duration::from_secs)
    }

    pub fn tests_branch(&self, branch: &str) -> bool {
        glob_set(&self.branches).is_ok_and(|globs| globs.is_match(branch))
    }

    pub fn publishes_branch(&self, branch: &str) -> bool {
        let globs = self.publish.as_ref().unwrap_or(&self.branches);
        glob_set(globs).is_ok_and(|globs| globs.is_match(branch))
    }
}

fn is_repository_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && name.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        })
}

pub(crate) fn glob_set(globs: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        set.add(Glob::new(glob)?);
    }
    set.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("/etc/vivarium/vivarium.toml"), text)
    }

    #[test]
    fn an_empty_file_is_a_configuration() {
        let config = parse("").unwrap();
        assert_eq!(config.limits.infrastructure_retries, 2);
        assert_eq!(config.github.api_url.as_str(), "https://api.github.com/");
    }

    #[test]
    fn the_time_of_the_nightly_tests_is_hours_and_minutes() {
        let config = parse("[images]\nnightly = '03:00'").unwrap();
        assert_eq!(config.images.nightly, Some(Time::constant(3, 0, 0, 0)));
        let error = parse("[images]\nnightly = 'at night'").unwrap_err();
        assert!(error.to_string().contains(":2:"), "{error}");
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let config = parse("data_dir = 'data'").unwrap();
        assert_eq!(config.data_dir, Path::new("/etc/vivarium/data"));
    }

    #[test]
    fn a_path_alone_makes_a_polled_repository() {
        let config = parse("[[repository]]\nname = 'local'\nurl = '/srv/git/local.git'").unwrap();
        let repository = config.repository("LOCAL").unwrap();
        assert!(!repository.is_github());
        assert_eq!(repository.poll_interval().unwrap().as_secs(), 5);
        assert!(repository.tests_branch("main") && repository.publishes_branch("main"));
        assert!(!repository.tests_branch("topic"));
    }

    #[test]
    fn faults_are_told_in_one_sentence() {
        for (text, expected) in [
            (
                "data_dri = '/x'",
                "unknown key `data_dri`: did you mean `data_dir`?",
            ),
            (
                "[limits]\nlog_mb = 3",
                ":2:1: unknown key `log_mb`: did you mean `log_mib`?",
            ),
            (
                "[[repository]]\nname = '../x'\nurl = '/x'",
                "repository `../x`: a name has",
            ),
            ("[[repository]]\nname = 'a/b'", "needs"),
            (
                "[github]\ntoken_file = 't'\napp = { id = 1, private_key_file = 'k' }",
                "takes the place of `token_file`",
            ),
            (
                "[[repository]]\nname='a'\nurl='/x'\n[[repository]]\nname='A'\nurl='/y'",
                "repository `A` is listed twice",
            ),
            (
                "[retention]\nkeep_logs_days = 400",
                "[retention]: keep_records_days is less than keep_logs_days",
            ),
            (
                "[retention]\nkeep_artifacts_days = 0",
                "[retention]: keep_records_days is less than keep_artifacts_days",
            ),
            (
                "[retention]\nkeep_deliveries_days = 3",
                "[retention]: keep_deliveries_days is at least 7",
            ),
            (
                "[hypervisor]\nacceleration = 'kvn'",
                "unknown value `kvn`: did you mean `kvm`?",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            let expected = expected.replace("needs", "statuses need `token_file`");
            assert!(error.contains(&expected), "{text}: {error}");
        }
    }
}
