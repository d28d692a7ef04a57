//! `drain` and `resume`: let what runs end, start nothing new, and take jobs again.

use super::Remote;
use super::client::Client;
use super::show::job_line;
use super::terminal::{print, print_json};
use crate::model::AfterDrain;
use crate::web::DrainView;
use std::process::ExitCode;
use std::time::Duration;

/// How often a drain that is waited for is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

pub(super) async fn drain(
    remote: &Remote,
    then: AfterDrain,
    waits: bool,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(remote)?;
    let mut view = client.begin_drain(then).await?;
    if !remote.json {
        print(&format!("no more jobs start; {}\n", counts(&view)))?;
        print_running(&view)?;
    }
    if waits {
        view = match wait(&client, remote, then, view).await? {
            Waited::Nothing(view) => view,
            Waited::Resumed => {
                anyhow::bail!("somebody told the master to resume: it is not drained");
            }
            Waited::Stopped => {
                match remote.json {
                    true => print_json(&serde_json::json!({ "stopped": true }))?,
                    false => print("the master has stopped\n")?,
                }
                return Ok(ExitCode::SUCCESS);
            }
        };
    }
    match (remote.json, then) {
        (true, _) => print_json(&view)?,
        (false, _) if !view.running.is_empty() => {}
        (false, AfterDrain::Stay) => {
            print("drained: the queue waits until `vivarium resume`, also after a restart\n")?;
        }
        (false, AfterDrain::Stop) => print("drained: the master stops\n")?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn resume(remote: &Remote) -> anyhow::Result<ExitCode> {
    let view = Client::new(remote)?.resume().await?;
    match remote.json {
        true => print_json(&view)?,
        false => print(&format!("jobs start again; {}\n", counts(&view)))?,
    }
    Ok(ExitCode::SUCCESS)
}

enum Waited {
    /// Nothing runs any more.
    Nothing(DrainView),
    Resumed,
    Stopped,
}

/// Waits until nothing runs, or the master has stopped where it is to; shows each job that ends.
async fn wait(
    client: &Client,
    remote: &Remote,
    then: AfterDrain,
    mut view: DrainView,
) -> anyhow::Result<Waited> {
    loop {
        if view.running.is_empty() && then == AfterDrain::Stay {
            return Ok(Waited::Nothing(view));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = match client.drain().await {
            Ok(now) => now,
            Err(_) if then == AfterDrain::Stop => return Ok(Waited::Stopped),
            Err(error) => return Err(error),
        };
        if now.since.is_none() {
            // Where it is to stop, the wish is taken back just before the end.
            match then {
                AfterDrain::Stop if now.running.is_empty() => {}
                AfterDrain::Stop | AfterDrain::Stay => return Ok(Waited::Resumed),
            }
        }
        if !remote.json && now.running.len() < view.running.len() {
            print(&format!("{}\n", counts(&now)))?;
            print_running(&now)?;
        }
        view = now;
    }
}

fn counts(view: &DrainView) -> String {
    let running = match view.running.len() {
        0 => "nothing runs".to_owned(),
        1 => "1 job runs".to_owned(),
        more => format!("{more} jobs run"),
    };
    match view.queued {
        0 => running,
        1 => format!("{running}, 1 waits"),
        more => format!("{running}, {more} wait"),
    }
}

fn print_running(view: &DrainView) -> anyhow::Result<()> {
    for job in &view.running {
        print(&format!("  {}\n", job_line(job)))?;
    }
    Ok(())
}
