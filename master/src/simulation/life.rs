//! One life of the master: the real pipeline and reporter over the simulated outside, in a runtime of its own.
//!
//! Killing a process ends all of its tasks wherever they wait and leaves what was written: so does dropping a runtime.

use super::agent::Cables;
use super::database::Database;
use super::github::GitHub;
use super::hypervisor::Host;
use super::objects::Bucket;
use super::outside::Outside;
use super::plan::REPOSITORY;
use super::repository::Repository;
use super::turns::{FileThread, take_a_turn};
use super::world::World;
use crate::config::{Config, Platforms};
use crate::pipeline::backlog::SharedBacklog;
use crate::pipeline::intake::Intake;
use crate::pipeline::ledger::Ledger;
use crate::pipeline::pause::Pauses;
use crate::pipeline::signals::Signals;
use crate::pipeline::{Machinery, Pipeline};
use crate::report::{Pace, Reporter, reporter};
use crate::result::artifacts::Artifacts;
use crate::result::log::Logs;
use crate::result::objects::Objects;
use crate::vm::Machines;
use object_store::memory::InMemory;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How a life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Killed,
    Settled,
    /// Something is still waited for when all waits are over.
    Stuck,
}

/// What outlives the master, beside the world.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) database: Arc<Database>,
    pub(super) objects: Arc<InMemory>,
    pub(super) platforms: Arc<Path>,
}

pub(super) fn live(world: &Arc<World>, disk: &Disk, number: usize, must_be_swept: bool) -> Outcome {
    let nudge = Arc::new(Notify::new());
    let files = Arc::new(FileThread::default());
    let (named, begun, ended) = (files.clone(), files.clone(), files.clone());
    let (database, working, nudged) = (disk.database.clone(), files.clone(), nudge.clone());
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .thread_keep_alive(Duration::ZERO)
        .thread_name_fn(move || {
            named.is_made();
            "files".to_owned()
        })
        .on_thread_start(move || begun.begins())
        .on_thread_stop(move || ended.ends())
        // What other threads have done is looked at when there is nothing else to do, so that the order is always one.
        .global_queue_interval(u32::MAX)
        .event_interval(u32::MAX)
        .on_thread_park(move || {
            if take_a_turn(&Handle::current(), &database, &working) {
                nudged.notify_one();
            }
        })
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(async {
        world.begin_life(number);
        let master = tokio::spawn(run(Arc::clone(world), disk.clone(), must_be_swept));
        tokio::pin!(master);
        let outcome = loop {
            tokio::select! {
                biased;
                () = world.death.notified() => {
                    // What was handed to the threads for files is done, as after a system call.
                    tokio::task::spawn_blocking(|| ()).await.expect("no panic");
                    break Outcome::Killed;
                }
                outcome = &mut master => break outcome.expect("the master does not panic"),
                () = nudge.notified() => {}
            }
        };
        // While there is a clock to tell when.
        world.end_life();
        outcome
    });
    files.let_go();
    drop(runtime);
    disk.database.wait_until_closed();
    outcome
}

/// What [`crate::cli`] puts together for `serve`, and whoever speaks to it.
async fn run(world: Arc<World>, disk: Disk, must_be_swept: bool) -> Outcome {
    let (store, pool) = disk.database.open(&world).await;
    let config = Arc::new(configuration(&world, &disk.platforms));
    let bucket = Bucket::new(Arc::clone(&world), Arc::clone(&disk.objects));
    let objects = Objects::over(Arc::new(bucket), "simulation");
    let logs = Logs::open(
        world.folder.join("logs"),
        config.limits.log_mib << 20,
        store.clone(),
        objects.clone(),
    )
    .expect("a folder for logs");
    let artifacts = Artifacts::open(world.folder.join("artifacts"), store.clone(), objects)
        .expect("a folder for artefacts");
    let backlog = SharedBacklog::default();
    let vms = world.folder.join("vms");
    let machines = Machines::over(vms, Box::new(Host(Arc::clone(&world))));
    let signals = Signals::default();
    let public_url = "https://ci.example.org".parse().expect("a URL");
    let ledger = Ledger::new(
        store.clone(),
        signals.clone(),
        Arc::clone(&config),
        public_url,
        world.clock(),
    );
    let sources = Arc::new(Repository(Arc::clone(&world)));
    let intake = Intake {
        ledger: ledger.clone(),
        sources: sources.clone(),
        config: Arc::clone(&config),
    };
    let machinery = Arc::new(Machinery {
        config: Arc::clone(&config),
        platforms: Platforms::load(disk.platforms.to_path_buf()),
        machines,
        transport: Arc::new(Cables(Arc::clone(&world))),
        sources,
        logs: logs.clone(),
        artifacts,
    });
    let reporter = Reporter::new(
        store.clone(),
        Arc::new(GitHub(Arc::clone(&world))),
        signals.outbox.clone(),
        Pace::default(),
        world.clock(),
    );
    let pipeline = Pipeline {
        intake: intake.clone(),
        ledger: ledger.clone(),
        signals: signals.clone(),
        machinery,
        capacity: world.plan.capacity,
        pauses: Pauses::of(&config, store.clone(), backlog.clone()),
        backlog,
        github: None,
        certification: None,
    };
    tokio::spawn(pipeline.run());
    let pulse = signals.pulses.watch("reports", reporter::ROUND);
    tokio::spawn(reporter.run(CancellationToken::new(), pulse));
    let outside = Outside {
        world,
        pool,
        store,
        intake,
        ledger,
        signals,
        logs,
        readers: BTreeSet::new(),
    };
    outside.run(must_be_swept).await
}

fn configuration(world: &World, platforms: &Path) -> Config {
    let text = format!(
        "data_dir = '{}'\nplatforms_dir = '{}'\n\
         [github]\ntoken_file = '/nowhere'\n\
         [hypervisor]\ntcg_deadline_scale = 1\nmin_free_disk_mib = 0\n\
         [limits]\nstep_timeout_secs = 12\njob_timeout_secs = 20\nno_output_timeout_secs = 9\nheartbeat_secs = 2\n\
         infrastructure_retries = {}\nstop_grace_secs = 1\n\
         [[repository]]\nname = '{REPOSITORY}'\nbranches = ['main']\non_new_commit = '{}'\n{}",
        world.folder.display(),
        platforms.display(),
        world.plan.retries,
        world.plan.on_new_commit,
        match world.plan.local.is_empty() {
            true => "",
            false => "[[repository]]\nname = 'local'\nurl = '/nowhere'\npoll_secs = 2\n",
        },
    );
    Config::parse(Path::new("/simulation.toml"), &text).expect("a configuration")
}
