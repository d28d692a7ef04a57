//! What a step is run with: its environment, and the secrets in it.

use super::Work;
use super::chores::native;
use super::scripts::script;
use super::source::CHANGED_FILES;
use crate::config::may_have_secrets;
use crate::model::{Ending, OsFamily, Reason, Step};
use crate::pipeline::transcript;
use crate::result::log::Mask;
use secrecy::ExposeSecret;
use std::collections::{BTreeMap, BTreeSet};
use vivarium_protocol::{Pty, StepCommand};

/// The terminal of a step that asks for one: wide enough for what test runners print, and the same everywhere.
const TERMINAL: Pty = Pty {
    columns: 120,
    rows: 40,
};

impl Work<'_> {
    /// Reads the values that the steps ask for and arms the mask, before the guest says anything.
    pub(super) async fn read_secrets(&mut self, is_fresh: bool) -> Result<(), Ending> {
        let driver = &mut *self.driver;
        let steps = &driver.job.plan.steps;
        let names: BTreeSet<&String> = steps.iter().flat_map(|step| &step.secrets).collect();
        if names.is_empty() {
            return Ok(());
        }
        if !may_have_secrets(&driver.build) {
            if is_fresh {
                let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
                let why = "secrets are for commits of the repository itself, and this one may be somebody else's";
                let text = format!("not given to this job: {} ({why})", names.join(", "));
                let note = transcript::note(&text);
                transcript::put_last(&mut self.log, &driver.machinery.logs, &note).await?;
            }
            return Ok(());
        }
        let host_error = |error: &dyn std::fmt::Display| {
            Ending::new(
                Reason::HostError,
                format!("The job cannot have its secrets: {error}"),
            )
        };
        let config = &driver.machinery.config;
        self.secrets = config
            .read_secrets(&driver.build.new.repository, names)
            .map_err(|error| host_error(&error))?;
        let values = self.secrets.iter().map(|(_, value)| value.expose_secret());
        driver.mask = Mask::new(values).map_err(|error| host_error(&error))?;
        Ok(())
    }

    pub(super) fn command(&self, step: &Step) -> StepCommand {
        let build = &self.driver.build;
        let job = &self.driver.job;
        let mut env = BTreeMap::from([
            ("CI".to_owned(), "true".to_owned()),
            ("VIVARIUM".to_owned(), "true".to_owned()),
        ]);
        let mut set = |name: &str, value: &str| {
            env.insert(format!("VIVARIUM_{name}"), value.to_owned());
        };
        set("REPOSITORY", &build.new.repository);
        set("SHA", &self.tested_sha());
        set("HEAD_SHA", &build.new.head_sha);
        set("BASE_SHA", build.base_sha.as_deref().unwrap_or_default());
        set("REF", &build.new.reference);
        set("EVENT", build.new.trigger.as_str());
        set(
            "PULL_REQUEST",
            &build
                .new
                .pull_request
                .map(|n| n.to_string())
                .unwrap_or_default(),
        );
        set("PLATFORM", &job.platform);
        set("SUITE", &job.suite);
        set("BUILD", &build.id.to_string());
        set("JOB", &job.id.to_string());
        let changed = format!("{}/{CHANGED_FILES}", self.platform.state_dir);
        set(
            "CHANGED_FILES",
            &match self.platform.os {
                OsFamily::Windows => native(&changed),
                OsFamily::Linux
                | OsFamily::Freebsd
                | OsFamily::Netbsd
                | OsFamily::Openbsd
                | OsFamily::Dragonfly
                | OsFamily::Macos => changed,
            },
        );
        env.extend(step.env.clone());
        let secrets = self
            .secrets
            .iter()
            .filter(|(name, _)| step.secrets.contains(name));
        env.extend(secrets.map(|(name, value)| (name.clone(), value.expose_secret().to_owned())));
        StepCommand {
            shell: step.shell.clone(),
            script: script(&step.shell, &step.run),
            dir: self.work_dir(),
            env,
            spool_bytes: self.spool_bytes(),
            pty: step.pty.then_some(TERMINAL),
        }
    }
}
