//! What a master is started with, and the configuration file made of it.

use super::{Authority, Master, binary, free_port};
use crate::github::{App, GitHub};
use crate::machine;
use anyhow::{Context, Result};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A repository in the master's configuration.
#[derive(Debug, Clone)]
pub struct RepositoryEntry {
    table: Table,
}

impl RepositoryEntry {
    /// A repository on the fake GitHub.
    pub fn on_github(github: &GitHub, name: &str) -> RepositoryEntry {
        RepositoryEntry {
            table: Table::new(),
        }
        .set("name", name)
        .set("url", github.clone_url(name))
        .set("github", true)
        .set("branches", vec!["main"])
    }

    /// A repository that is polled every second.
    pub fn polled(name: &str, path: &Path) -> RepositoryEntry {
        RepositoryEntry {
            table: Table::new(),
        }
        .set("name", name)
        .set("url", path.to_string_lossy().into_owned())
        .set("poll_secs", 1)
        .set("branches", vec!["main"])
    }

    /// Sets any key of the entry.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> RepositoryEntry {
        self.table.insert(key.to_owned(), value.into());
        self
    }
}

/// What a master is started with.
#[derive(Debug, Default)]
pub struct MasterBuilder {
    config: Table,
    repositories: Vec<RepositoryEntry>,
    github: Option<(String, String)>,
    app_key: Option<String>,
    secrets: Vec<String>,
    data_dir: Option<PathBuf>,
    environment: Vec<(String, String)>,
    hypervisor: Option<String>,
    parent: Option<PathBuf>,
    authority: Option<Authority>,
}

impl MasterBuilder {
    /// Another libvirt than the one that all scenarios use.
    pub fn hypervisor(mut self, uri: &str) -> MasterBuilder {
        self.hypervisor = Some(uri.to_owned());
        self
    }

    /// Keeps all that is the master's below this folder, e.g. one in memory; by default below the system's for
    /// temporary files.
    pub fn below(mut self, folder: &Path) -> MasterBuilder {
        self.parent = Some(folder.to_owned());
        self
    }

    /// The folder of platforms.
    pub fn platforms(self, folder: &Path) -> MasterBuilder {
        self.set_top("platforms_dir", folder.to_string_lossy().into_owned())
    }

    /// The folder of agents for other systems.
    pub fn agents(self, folder: &Path) -> MasterBuilder {
        self.set_top("agents_dir", folder.to_string_lossy().into_owned())
    }

    /// The data folder, if it is not to be in the master's own.
    pub fn data_dir(mut self, folder: &Path) -> MasterBuilder {
        self.data_dir = Some(folder.to_owned());
        self
    }

    /// Where statuses go, and the token for it.
    pub fn github(mut self, github: &GitHub, token: &str) -> MasterBuilder {
        self.github = Some((github.api_url(), token.to_owned()));
        self
    }

    /// Where statuses go, and the App that sends them.
    pub fn github_app(mut self, github: &GitHub, app: &App) -> MasterBuilder {
        self.app_key = Some(app.private_key.clone());
        self.set("github", "api_url", github.api_url()).set(
            "github.app",
            "id",
            app.id.cast_signed(),
        )
    }

    /// A secret that webhooks may be signed with.
    pub fn webhook_secret(mut self, secret: &str) -> MasterBuilder {
        self.secrets.push(secret.to_owned());
        self
    }

    pub fn repository(mut self, entry: RepositoryEntry) -> MasterBuilder {
        self.repositories.push(entry);
        self
    }

    /// Sets a key of a table of the configuration, e.g. `("limits", "infrastructure_retries", 1)`; a dot in the
    /// table's name leads into a table of that table.
    pub fn set(mut self, table: &str, key: &str, value: impl Into<Value>) -> MasterBuilder {
        let mut inner = &mut self.config;
        for name in table.split('.') {
            let entry = inner
                .entry(name)
                .or_insert_with(|| Value::Table(Table::new()));
            let Some(table) = entry.as_table_mut() else {
                panic!("{name} of {table} is no table");
            };
            inner = table;
        }
        inner.insert(key.to_owned(), value.into());
        self
    }

    fn set_top(mut self, key: &str, value: impl Into<Value>) -> MasterBuilder {
        self.config.insert(key.to_owned(), value.into());
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> MasterBuilder {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Serves HTTPS with a certificate by this authority, which the command line believes too.
    pub fn https(mut self, authority: Authority) -> MasterBuilder {
        self.authority = Some(authority);
        self
    }

    /// Writes the configuration and starts the program; returns once it answers.
    pub async fn start(mut self) -> Result<Master> {
        let folder = tempfile::Builder::new()
            .prefix("vivarium-test-")
            .tempdir_in(self.parent.clone().unwrap_or_else(std::env::temp_dir))
            .context("cannot make a folder for the master")?;
        // QEMU runs as a user of its own and must be able to reach its disks.
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let port = free_port()?;
        if let Some(authority) = &self.authority {
            let files = authority.certify(folder.path())?;
            let text = |path: &Path| path.to_string_lossy().into_owned();
            self = self
                .set("server.tls", "certificate_file", text(&files.certificate))
                .set("server.tls", "key_file", text(&files.key))
                .set("server", "public_url", format!("https://127.0.0.1:{port}"))
                .environment("SSL_CERT_FILE", &text(&files.authority));
        }
        self.write_config(folder.path(), port)?;
        let mut master = Master {
            binary: binary()?,
            data_dir: self.data_dir_in(folder.path()),
            folder,
            port,
            hypervisor: self.hypervisor.unwrap_or_else(machine::hypervisor_uri),
            environment: self.environment,
            dies_at: None,
            authority: self.authority,
            child: None,
        };
        master.start().await?;
        Ok(master)
    }

    fn data_dir_in(&self, folder: &Path) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| folder.join("data"))
    }

    /// The one place that knows the configuration's format.
    fn write_config(&self, folder: &Path, port: u16) -> Result<()> {
        let text = |path: PathBuf| Value::from(path.to_string_lossy().into_owned());
        let mut config = self.config.clone();
        let data = self.data_dir_in(folder);
        std::fs::create_dir_all(folder.join("tmp"))?;
        std::fs::create_dir_all(&data)?;
        std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o755))?;
        let platforms = folder.join("platforms");
        std::fs::create_dir_all(&platforms)?;
        config.insert("data_dir".to_owned(), text(data));
        config
            .entry("platforms_dir")
            .or_insert_with(|| text(platforms));
        merge(
            &mut config,
            "server",
            [
                ("listen", format!("127.0.0.1:{port}").into()),
                ("public_url", format!("http://127.0.0.1:{port}").into()),
            ],
        );
        let mut secret_files = Vec::new();
        for (number, secret) in self.secrets.iter().enumerate() {
            let file = folder.join(format!("webhook-secret-{number}"));
            std::fs::write(&file, format!("{secret}\n"))?;
            secret_files.push(text(file));
        }
        merge(
            &mut config,
            "github",
            [
                ("webhook_secret_files", Value::Array(secret_files)),
                // What a test does not announce is not to be found, unless that is what it is about.
                ("reconcile_secs", 0.into()),
            ],
        );
        if let Some((api_url, token)) = &self.github {
            let file = folder.join("github-token");
            std::fs::write(&file, format!("{token}\n"))?;
            merge(
                &mut config,
                "github",
                [
                    ("api_url", api_url.clone().into()),
                    ("token_file", text(file)),
                ],
            );
        }
        let hypervisor = self
            .hypervisor
            .clone()
            .unwrap_or_else(machine::hypervisor_uri);
        merge(&mut config, "hypervisor", [("uri", hypervisor.into())]);
        if let Some(key) = &self.app_key {
            let file = folder.join("github-app.pem");
            std::fs::write(&file, key)?;
            let app = config
                .get_mut("github")
                .and_then(|table| table.get_mut("app"));
            if let Some(app) = app.and_then(Value::as_table_mut) {
                app.insert("private_key_file".to_owned(), text(file));
            }
        }
        merge(
            &mut config,
            "storage",
            [("url", text(folder.join("objects")))],
        );
        let repositories: Vec<Value> = self
            .repositories
            .iter()
            .map(|entry| Value::Table(entry.table.clone()))
            .collect();
        if !repositories.is_empty() {
            config.insert("repository".to_owned(), Value::Array(repositories));
        }
        std::fs::write(folder.join("vivarium.toml"), toml::to_string(&config)?)?;
        Ok(())
    }
}

/// Sets keys of a table unless the test has set them.
fn merge<const N: usize>(config: &mut Table, table: &str, values: [(&str, Value); N]) {
    let entry = config
        .entry(table)
        .or_insert_with(|| Value::Table(Table::new()));
    if let Some(table) = entry.as_table_mut() {
        for (key, value) in values {
            table.entry(key).or_insert(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_generated_configuration_is_one_the_master_reads() {
        let github = GitHub::start().await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let builder = Master::builder()
            .github(&github, "ghp_x")
            .webhook_secret("one")
            .webhook_secret("two")
            .set("limits", "infrastructure_retries", 1)
            .repository(
                RepositoryEntry::on_github(&github, "acme/widget").set("on_new_commit", "queue"),
            )
            .repository(
                RepositoryEntry::polled("local", Path::new("/srv/local.git"))
                    .set("publish", vec!["main"]),
            );
        builder.write_config(folder.path(), 8090).unwrap();
        let config = vivarium::config::Config::load(&folder.path().join("vivarium.toml")).unwrap();
        assert_eq!(config.limits.infrastructure_retries, 1);
        assert_eq!(config.github.webhook_secret_files.len(), 2);
        assert_eq!(config.github.api_url.as_str(), github.api_url());
        assert!(config.repository("acme/widget").unwrap().is_github());
        assert!(!config.repository("local").unwrap().is_github());
    }
}
