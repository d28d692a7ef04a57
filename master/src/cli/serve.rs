//! `vivarium serve`: opens what the configuration names, joins the stages, serves until it is told to stop.
//!
//! ```text
//!  lock ─► open everything ─► run ─┬─ SIGTERM, Ctrl-C ───────────────┐
//!                                  ├─ drained, and asked to stop ────┼─► hand over: guests go on
//!                                  └─ a loop broke off: exit code 1 ─┘
//! ```

pub(super) mod lock;
mod systemd;

use super::image::bench;
use crate::certify::Register;
use crate::clock::Clock;
use crate::config::{Config, Platforms};
use crate::event::webhook::{Secrets, Webhooks};
use crate::github::GitHub;
use crate::model::AfterDrain;
use crate::pipeline::backlog::SharedBacklog;
use crate::pipeline::certification::Certification;
use crate::pipeline::intake::Intake;
use crate::pipeline::ledger::Ledger;
use crate::pipeline::pause::Pauses;
use crate::pipeline::signals::Signals;
use crate::pipeline::{Machinery, Pipeline};
use crate::placement::Capacity;
use crate::report::{Pace, Reporter, reporter};
use crate::result::artifacts::Artifacts;
use crate::result::log::Logs;
use crate::result::objects::Objects;
use crate::session::{Agents, Ssh};
use crate::source::Sources;
use crate::store::{Store, StoreError};
use crate::vm::{Acceleration, Machines, VmConfig, VmError};
use crate::web::{self, Access, App, Bounds, Server, Tls};
use anyhow::Context;
use lock::DataLock;
use nix::sys::stat::{Mode, umask};
use sd_notify::NotifyState;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use url::Url;

/// When the master stops, statuses under way are given this long,
const LAST_STATUSES: Duration = Duration::from_millis(2500);
/// and statements under way this long. Together they stay below the five seconds within which a stop hands over.
const LAST_STATEMENTS: Duration = Duration::from_millis(1500);
/// How often a drained master that is to stop looks whether something still runs.
const DRAIN_INTERVAL: Duration = Duration::from_millis(500);

/// A libvirtd that is restarted beside the master is there again after seconds.
const LIBVIRT_PATIENCE: Duration = Duration::from_secs(30);

/// Runs until SIGTERM or Ctrl-C. Guests go on; the next start takes them up.
pub(super) async fn serve(path: &Path) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        // In a file or the journal, the codes of colours would stand between the words.
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .init();
    crate::crash::arm();
    let config = Config::load(path)?;
    let master = Master::open(config).await?;
    eprintln!("vivarium listens on {}", master.url);
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("stopping; running guests go on and are taken up at the next start");
    };
    master.run(stop).await
}

/// A hold on a master's guests, for whoever runs it in the same process.
#[derive(Debug, Clone)]
pub(super) struct Guests {
    pub(super) ledger: Ledger,
    pub(super) machines: Machines,
}

/// A master with everything opened, not yet running.
pub(super) struct Master {
    server: Server,
    /// Where it listens, as a link.
    pub(super) url: Url,
    pipeline: Pipeline,
    reporter: Option<Reporter>,
    app: App,
    webhooks: Webhooks,
    store: Store,
    signals: Signals,
    _lock: DataLock,
}

impl Master {
    pub(super) async fn open(config: Config) -> anyhow::Result<Master> {
        let config = Arc::new(config);
        let data = &config.data_dir;
        make_data_folder(data)
            .with_context(|| format!("cannot make the data folder {}", data.display()))?;
        let lock = DataLock::take(data).await?;
        let listener = TcpListener::bind(config.server.listen)
            .await
            .with_context(|| format!("cannot listen on {}\nhint: another program may have the port; set `listen` under [server]", config.server.listen))?;
        let address = listener
            .local_addr()
            .context("cannot tell the own address")?;
        let tls = config.server.tls.as_ref().map(Tls::open).transpose()?;
        let scheme = tls.as_ref().map_or("http", |_| "https");
        let url =
            Url::parse(&format!("{scheme}://{address}")).context("the own address is no URL")?;
        let server = Server::new(listener, &config.server, tls);
        let bounds = Bounds::new(&config.server);
        let lock = lock.listens_on(&url)?;
        let public_url = config
            .server
            .public_url
            .clone()
            .unwrap_or_else(|| url.clone());
        let store = Store::open(&data.join("vivarium.sqlite")).await?;
        end_drain_that_is_over(&store).await?;
        let backlog = SharedBacklog::default();
        let pauses = Pauses::of(&config, store.clone(), backlog.clone());
        let objects = open_objects(&config)?;
        let logs = Logs::open(
            data.join("logs"),
            config.limits.log_mib << 20,
            store.clone(),
            objects.clone(),
        )?;
        let artifacts = Artifacts::open(data.join("artifacts"), store.clone(), objects)
            .context("cannot use the folder for artefacts")?;
        let machines = open_machines(vm_config(&config)?).await?;
        tracing::info!(accelerator = ?machines.accelerator(), why = machines.accelerator_why(), "guests");
        let capacity = capacity(&config, &machines).await?;
        let token_file = config
            .server
            .api_token_file
            .clone()
            .unwrap_or_else(|| data.join("api-token"));
        let signals = Signals::default();
        let secrets = Secrets::read(&config.github.webhook_secret_files)?;
        let webhooks = Webhooks::new(store.clone(), secrets, signals.deliveries.clone());
        let github = match config.github.has_credentials() {
            true => Some(Arc::new(GitHub::new(&config.github)?)),
            false => None,
        };
        let mirrors = data.join("mirrors");
        let sources = Arc::new(match &github {
            Some(github) => Sources::new(mirrors, github.clone()),
            None => Sources::new(mirrors, None),
        });
        let platforms = Platforms::to_inspect(&config);
        tracing::info!(
            ready = platforms.ready().len(),
            refused = platforms.refused().len(),
            "platforms"
        );
        let agents = open_agents(&config);
        let register = Register::default();
        let certification = Certification {
            bench: bench(&config, agents.clone()),
            register: register.clone(),
            platforms: platforms.clone(),
            nightly: config.images.nightly,
            drift: Duration::from_secs(config.images.drift_secs),
        };
        let clock = Clock::system();
        let access = Access::open(
            &config.server,
            &token_file,
            &public_url,
            store.clone(),
            clock.clone(),
        )
        .await?;
        let ledger = Ledger::new(
            store.clone(),
            signals.clone(),
            config.clone(),
            public_url,
            clock.clone(),
        );
        let intake = Intake {
            ledger: ledger.clone(),
            sources: sources.clone(),
            config: config.clone(),
        };
        let pace = Pace {
            first_pause: Duration::from_secs(config.github.limit_pause_secs),
            ..Pace::default()
        };
        let outbox = signals.outbox.clone();
        let reporter = github
            .clone()
            .map(|github| Reporter::new(store.clone(), github, outbox, pace, clock));
        let machinery = Arc::new(Machinery {
            config,
            platforms: platforms.clone(),
            machines,
            transport: Arc::new(Ssh { agents }),
            sources,
            logs: logs.clone(),
            artifacts: artifacts.clone(),
        });
        Ok(Master {
            server,
            url,
            reporter,
            webhooks,
            app: App {
                ledger: ledger.clone(),
                intake: intake.clone(),
                logs,
                artifacts,
                platforms,
                certificates: register,
                access,
                bounds,
                pauses: pauses.clone(),
                pulses: signals.pulses.clone(),
            },
            pipeline: Pipeline {
                intake,
                ledger,
                signals: signals.clone(),
                machinery,
                capacity,
                pauses,
                backlog,
                github,
                certification: Some(certification),
            },
            store,
            signals,
            _lock: lock,
        })
    }

    pub(super) fn guests(&self) -> Guests {
        Guests {
            ledger: self.pipeline.ledger.clone(),
            machines: self.pipeline.machinery.machines.clone(),
        }
    }

    /// Serves until `stop` resolves, or a drain that ends with a stop is through, or a loop breaks off.
    pub(super) async fn run(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let stopping = CancellationToken::new();
        let pulses = self.signals.pulses.clone();
        let machines = self.pipeline.machinery.machines.clone();
        let mut pipeline = tokio::spawn(self.pipeline.run());
        let reporter = self.reporter.map(|reporter| {
            let pulse = pulses.watch("reports", reporter::ROUND);
            tokio::spawn(reporter.run(stopping.clone(), pulse))
        });
        let routes = web::routes(self.app, self.webhooks);
        let server = tokio::spawn(self.server.run(routes, stopping.clone()));
        let watchdog = tokio::spawn(systemd::feed_watchdog(pulses));
        systemd::tell(&[NotifyState::Ready]);
        let why = tokio::select! {
            () = stop => Why::Asked,
            () = drained_to_stop(&self.store) => Why::Drained,
            broken = &mut pipeline => Why::Broken(broken.unwrap_or_else(anyhow::Error::new)),
        };
        systemd::tell(&[NotifyState::Stopping]);
        watchdog.abort();
        stopping.cancel();
        pipeline.abort();
        let farewell = async {
            if let Some(reporter) = reporter
                && let Err(error) = reporter.await
            {
                tracing::warn!(%error, "the reporter broke off");
            }
        };
        let last_statuses = tokio::time::timeout(LAST_STATUSES, farewell);
        let last_canaries = tokio::time::timeout(LAST_STATUSES, machines.end_canaries());
        let (sent, ended) = tokio::join!(last_statuses, last_canaries);
        if sent.is_err() {
            tracing::info!("statuses that are not sent yet are sent at the next start");
        }
        if ended.is_err() {
            tracing::info!("canaries are swept at the next start");
        }
        // Live logs never end by themselves.
        server.abort();
        if matches!(why, Why::Drained) {
            // Only now: nothing can be placed any more.
            self.store.end_drain().await?;
        }
        let closed = tokio::time::timeout(LAST_STATEMENTS, self.store.close()).await;
        if closed.is_err() {
            tracing::warn!("the database was still in use");
        }
        match why {
            Why::Asked | Why::Drained => Ok(()),
            Why::Broken(error) => Err(error.context("the master ends, to be started anew")),
        }
    }
}

/// Why a master stops.
enum Why {
    Asked,
    Drained,
    Broken(anyhow::Error),
}

/// A drain that was to end with a stop is over once a master without jobs is started.
async fn end_drain_that_is_over(store: &Store) -> anyhow::Result<()> {
    let drain = store.drain().await?;
    let stops = drain.is_some_and(|drain| drain.then == AfterDrain::Stop);
    if stops && store.live_attempts().await?.is_empty() {
        store.end_drain().await?;
        tracing::info!("the drain before this start is over: jobs are placed again");
    }
    Ok(())
}

/// Resolves when the master was drained to stop, and nothing runs any more.
async fn drained_to_stop(store: &Store) {
    loop {
        tokio::time::sleep(DRAIN_INTERVAL).await;
        match is_drained_to_stop(store).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!("drained; stopping");
                return;
            }
            Err(error) => tracing::warn!(%error, "cannot see whether the master is drained"),
        }
    }
}

async fn is_drained_to_stop(store: &Store) -> Result<bool, StoreError> {
    let drain = store.drain().await?;
    let stops = drain.is_some_and(|drain| drain.then == AfterDrain::Stop);
    Ok(stops && store.live_attempts().await?.is_empty())
}

/// The agents of this build and those beside it; what is wrong with one of those is said, and the master does without it.
pub(super) fn open_agents(config: &Config) -> Agents {
    let (agents, beside) = Agents::open(config.agents_dir.as_deref());
    for why in beside.refused {
        tracing::warn!("{why}");
    }
    agents
}

/// Waits for a libvirtd that is not up yet, as after a restart of the host.
async fn open_machines(config: VmConfig) -> Result<Machines, VmError> {
    let give_up = Instant::now() + LIBVIRT_PATIENCE;
    loop {
        match Machines::open(config.clone()).await {
            Err(error @ VmError::Away { .. }) if Instant::now() < give_up => {
                tracing::warn!(%error, "libvirt is waited for");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            result => return result,
        }
    }
}

/// Makes the folder if it is not there. What is written from then on is for the master's user alone, so that a guest that
/// broke out into QEMU's user finds no other project's source or log. Folders can be passed through and not listed: the
/// libvirt inside this process (`qemu:///embed`) makes its own, and QEMU's user goes through them to what is its.
fn make_data_folder(data: &Path) -> std::io::Result<()> {
    const PASSED_THROUGH: u32 = 0o711;
    let read_or_write = Mode::S_IRGRP | Mode::S_IWGRP | Mode::S_IROTH | Mode::S_IWOTH;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(PASSED_THROUGH)
        .create(data)?;
    umask(read_or_write);
    Ok(())
}

/// How the configuration wants libvirt, with this master's own mark.
pub(super) fn vm_config(config: &Config) -> anyhow::Result<VmConfig> {
    let (uri, acceleration) = hypervisor(config);
    Ok(VmConfig {
        uri,
        dir: config.data_dir.join("vms"),
        acceleration,
        installation: installation(&config.data_dir)?,
    })
}

/// The libvirt that the configuration means.
pub(super) fn hypervisor(config: &Config) -> (String, Acceleration) {
    let default = match nix::unistd::Uid::effective().is_root() {
        true => "qemu:///system",
        false => "qemu:///session",
    };
    let uri = config.hypervisor.uri.clone();
    let acceleration = match config.hypervisor.acceleration {
        crate::config::Acceleration::Auto => Acceleration::Auto,
        crate::config::Acceleration::Kvm => Acceleration::Kvm,
        crate::config::Acceleration::Tcg => Acceleration::Tcg,
    };
    (uri.unwrap_or_else(|| default.to_owned()), acceleration)
}

/// This master's mark on what it makes in libvirt; made once and kept in the data folder.
fn installation(data: &Path) -> anyhow::Result<String> {
    let path = data.join("installation");
    if !path.exists() {
        let mark = hex::encode(rand::random::<[u8; 16]>());
        std::fs::write(&path, &mark).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let mark = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(mark.trim().to_owned())
}

pub(super) fn open_objects(config: &Config) -> anyhow::Result<Objects> {
    let mut options = config.storage.options.clone();
    if let Some(path) = &config.storage.secrets_file {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the storage secrets {}", path.display()))?;
        // The parser's own message would show the line, and with it a secret.
        let secrets: BTreeMap<String, String> = toml::from_str(&text).map_err(|_| {
            anyhow::anyhow!(
                "{} is not lines of the form name = \"value\"",
                path.display()
            )
        })?;
        options.extend(secrets);
    }
    let url = config
        .storage
        .url
        .clone()
        .unwrap_or_else(|| config.data_dir.join("objects").display().to_string());
    Ok(Objects::open(&url, &options)?)
}

async fn capacity(config: &Config, machines: &Machines) -> anyhow::Result<Capacity> {
    let host = machines.capacity().await?;
    Ok(Capacity {
        memory_mib: config
            .hypervisor
            .memory_mib
            .unwrap_or(host.memory_mib / 4 * 3),
        vcpus: config.hypervisor.vcpus.unwrap_or(host.vcpus * 2),
    })
}
