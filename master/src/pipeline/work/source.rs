//! The commit's files on their way into the guest.

use super::chores::{Chore, NO_GIT};
use super::interruption::Interruption;
use super::{Work, said};
use crate::model::{Ending, Phase, Reason};
use crate::pipeline::drive::asked_to_cancel;
use crate::session::SessionError;
use vivarium_protocol::Exit;

/// Where the guest finds the list of changed files, below the agent's folder.
pub(super) const CHANGED_FILES: &str = "changed-files";

impl Work<'_> {
    /// Puts the source into the guest; over a new connection from its beginning. A guest that shows signs of life and never
    /// takes it has as long as the job's steps may take.
    pub(super) async fn send_source(&mut self) -> Result<(), Ending> {
        let give_up = self.job_deadline(Phase::SendingSource);
        let secs = self.driver.job.plan.timeouts.job_secs;
        let mut cancelled = self.driver.cancelled.clone();
        loop {
            let sent = tokio::select! {
                biased;
                ending = asked_to_cancel(&mut cancelled) => return Err(ending),
                sent = self.try_to_send_source() => sent,
                () = tokio::time::sleep_until(give_up) => {
                    let message = format!("The guest has not taken the source in {secs} s");
                    return Err(Ending::new(Reason::SourceError, message));
                }
            };
            match sent {
                Ok(()) => return Ok(()),
                Err(Interruption::Ended(ending)) => return Err(ending),
                Err(Interruption::ConnectionLost(why)) => self.reconnect(why, give_up).await?,
            }
        }
    }

    async fn try_to_send_source(&mut self) -> Result<(), Interruption> {
        let driver = &*self.driver;
        let config = &driver.machinery.config;
        let source =
            |error: &dyn std::fmt::Display| Ending::new(Reason::SourceError, error.to_string());
        let repository = config
            .repository(&driver.build.new.repository)
            .ok_or_else(|| source(&"the repository is not configured any more"))?;
        let broken = |error: SessionError| Interruption::of(&error, Reason::SourceError);
        let sources = &driver.machinery.sources;
        let sha = self.tested_sha();
        let dir = self.work_dir();
        let changed = driver.build.changed_files.clone().unwrap_or_default();
        let path = format!("{}/{CHANGED_FILES}", self.platform.state_dir);
        if driver.job.plan.history {
            let mut bundle = sources
                .bundle(repository, &sha, "vivarium")
                .await
                .map_err(|e| source(&e))?;
            let there = format!("{}/source.bundle", self.platform.state_dir);
            self.agent
                .write(&there, &mut bundle, false)
                .await
                .map_err(broken)?;
            bundle.finish().await.map_err(|e| source(&e))?;
            self.unbundle(&there, &dir).await?;
        } else {
            let mut archive = sources
                .archive(repository, &sha)
                .await
                .map_err(|e| source(&e))?;
            self.agent
                .unpack(&dir, &mut archive)
                .await
                .map_err(broken)?;
            archive.finish().await.map_err(|e| source(&e))?;
        }
        self.agent
            .write(&path, changed.as_bytes(), false)
            .await
            .map_err(broken)?;
        Ok(())
    }

    /// Makes a clone of the bundle in the guest, with its own git.
    async fn unbundle(&mut self, bundle: &str, dir: &str) -> Result<(), Interruption> {
        match self.run_aside(Chore::Unbundle { bundle, dir }).await? {
            Exit::Code { code: 0 } => Ok(()),
            Exit::Code { code: NO_GIT } => Err(Ending::new(
                Reason::RepositoryFile,
                format!(
                    "`history = true` needs git in the guest, and {} has none",
                    self.platform.name
                ),
            )
            .into()),
            exit => Err(Ending::new(
                Reason::SourceError,
                format!("The guest's git cannot clone the history ({})", said(exit)),
            )
            .into()),
        }
    }
}
