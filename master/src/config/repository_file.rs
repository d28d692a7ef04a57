//! `.vivarium.toml`: what a repository asks for, and how it becomes jobs on platforms that exist.

use super::error::{self, ConfigError};
use super::master::{Limits, glob_set};
use super::platform::Shell;
use super::platforms::RefusedPlatform;
use crate::model::{JobPlan, NewJob, Platform, Step, Timeouts};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// The file's name, at the top of the tree.
pub const REPOSITORY_FILE: &str = ".vivarium.toml";

/// Most jobs one commit may ask for: a file is a stranger's.
const MAX_JOBS: usize = 200;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryFile {
    #[serde(rename = "suite")]
    suites: BTreeMap<String, Suite>,
    /// What is built and kept after a merge.
    artifacts: Option<Artifacts>,
}

/// A named list of commands with the platforms they run on.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    /// Names of platforms, their tags, or globs over names.
    platforms: Vec<String>,
    #[serde(default, rename = "step")]
    steps: Vec<StepTable>,
    /// The shell of steps that name none. Default: the platform's.
    shell: Option<Shell>,
    /// All steps together, in seconds.
    timeout_secs: Option<u64>,
    /// The most silence, in seconds.
    no_output_timeout_secs: Option<u64>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    /// Secrets of the master's configuration that all steps get in their environment; never for a fork's commit.
    #[serde(default)]
    secrets: Vec<String>,
    /// JUnit XML files, as globs below the work directory.
    #[serde(default)]
    reports: Vec<String>,
    /// Send the history as a Git bundle; the guest needs git then.
    #[serde(default)]
    history: bool,
    /// What differs on some platforms, by name, tag or glob; later ones in the file's order of names win.
    #[serde(default)]
    on: BTreeMap<String, Override>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepTable {
    /// Default: the command's first line.
    name: Option<String>,
    run: String,
    shell: Option<Shell>,
    timeout_secs: Option<u64>,
    /// Run it on a terminal, for programs that print otherwise there (colours, a line at a time). Default: pipes.
    #[serde(default)]
    pty: bool,
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// What a suite does otherwise on some platforms; what is not given stays.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Override {
    #[serde(rename = "step")]
    steps: Option<Vec<StepTable>>,
    shell: Option<Shell>,
    timeout_secs: Option<u64>,
    no_output_timeout_secs: Option<u64>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    reports: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Artifacts {
    /// The suite whose machines build; needed only where there are several suites.
    suite: Option<String>,
    /// Commands that build, run after the suite exited 0.
    #[serde(default, rename = "step")]
    steps: Vec<StepTable>,
    /// Secrets that these steps get beside the suite's.
    #[serde(default)]
    secrets: Vec<String>,
    /// Files to keep, as globs below the work directory.
    files: Vec<String>,
}

impl RepositoryFile {
    /// Parses and checks the text; the message has the line.
    pub fn parse(text: &str) -> Result<RepositoryFile, ConfigError> {
        let path = Path::new(REPOSITORY_FILE);
        let file: RepositoryFile = error::parse(path, text)?;
        file.check()
            .map_err(|message| ConfigError::meaning(path, message))?;
        Ok(file)
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.suites.is_empty() {
            return Err("there is no suite: add [suite.test] with `platforms` and steps".into());
        }
        for (name, suite) in &self.suites {
            let wrong = |what: String| format!("suite `{name}`: {what}");
            if !is_suite_name(name) {
                return Err(wrong(
                    "a name has letters, digits, `.`, `_`, `-`, at most 64".into(),
                ));
            }
            if suite.platforms.is_empty() {
                return Err(wrong("`platforms` is empty".into()));
            }
            if suite.steps.is_empty() {
                return Err(wrong(format!("it has no step: add [[suite.{name}.step]]")));
            }
            let overridden = suite.on.values().filter_map(|o| o.steps.as_ref()).flatten();
            for step in suite.steps.iter().chain(overridden) {
                step.check().map_err(wrong)?;
            }
            for globs in [&suite.platforms, &suite.reports] {
                glob_set(globs).map_err(|e| wrong(e.to_string()))?;
            }
            let conditions: Vec<String> = suite.on.keys().cloned().collect();
            glob_set(&conditions).map_err(|e| wrong(e.to_string()))?;
        }
        if let Some(artifacts) = &self.artifacts {
            let wrong = |what: String| format!("artifacts: {what}");
            for step in &artifacts.steps {
                step.check().map_err(wrong)?;
            }
            glob_set(&artifacts.files).map_err(|e| wrong(e.to_string()))?;
            match &artifacts.suite {
                None if self.suites.len() > 1 => {
                    return Err(wrong(
                        "there are several suites: say which `suite` builds".into(),
                    ));
                }
                Some(suite) if !self.suites.contains_key(suite) => {
                    return Err(wrong(format!("there is no suite `{suite}`")));
                }
                None | Some(_) => {}
            }
        }
        Ok(())
    }

    fn builds_artifacts(&self, suite: &str) -> Option<&Artifacts> {
        self.artifacts
            .as_ref()
            .filter(|artifacts| artifacts.suite.as_ref().is_none_or(|name| name == suite))
    }
}

impl StepTable {
    fn check(&self) -> Result<(), String> {
        if self.run.trim().is_empty() {
            return Err("a step's `run` is empty".into());
        }
        if self.timeout_secs == Some(0) {
            return Err("a step's timeout_secs is 0".into());
        }
        if let Some(name) = self.env.keys().find(|name| !is_env_name(name)) {
            return Err(format!("`{name}` cannot name an environment variable"));
        }
        if let Some(shell) = &self.shell {
            shell.clone().into_command()?;
        }
        Ok(())
    }

    fn resolve(
        &self,
        shell: &[String],
        env: &BTreeMap<String, String>,
        secrets: &[String],
        limits: &Limits,
    ) -> Step {
        let first_line = || self.run.trim().lines().next().unwrap_or_default();
        let mut step_env = env.clone();
        step_env.extend(self.env.clone());
        Step {
            name: self
                .name
                .clone()
                .unwrap_or_else(|| first_line().chars().take(60).collect()),
            run: self.run.clone(),
            shell: self
                .shell
                .clone()
                .and_then(|shell| shell.into_command().ok())
                .unwrap_or_else(|| shell.to_vec()),
            timeout_secs: self
                .timeout_secs
                .unwrap_or(limits.step_timeout_secs)
                .min(limits.step_timeout_secs),
            pty: self.pty,
            env: step_env,
            secrets: secrets.to_vec(),
            only_to_publish: false,
        }
    }
}

/// Turns the file into jobs: each suite on each platform that its list names.
///
/// `only` restricts the platforms (a person's choice); empty means all. The error is a sentence for the commit's author.
pub fn resolve_jobs(
    file: &RepositoryFile,
    platforms: &[Arc<Platform>],
    refused: &[RefusedPlatform],
    only: &[String],
    publish: bool,
    limits: &Limits,
) -> Result<Vec<NewJob>, String> {
    let mut jobs = Vec::new();
    for (suite_name, suite) in &file.suites {
        for wanted in &suite.platforms {
            let known = platforms
                .iter()
                .map(|platform| platform.name.as_str())
                .chain(refused.iter().map(|refused| refused.name.as_str()));
            let is_met = platforms.iter().any(|p| matches(wanted, &p.name, &p.tags))
                || refused
                    .iter()
                    .any(|refused| matches(wanted, &refused.name, refused.tags()));
            if !is_met {
                let hint = error::nearest(wanted, known)
                    .map(|near| format!(": did you mean `{near}`?"))
                    .unwrap_or_default();
                return Err(format!(
                    "suite `{suite_name}` asks for `{wanted}`, which is no platform, tag or glob that fits one here{hint}"
                ));
            }
        }
        let is_wanted = |name: &str, tags: &[String]| {
            suite.platforms.iter().any(|w| matches(w, name, tags))
                && (only.is_empty() || only.iter().any(|w| matches(w, name, tags)))
        };
        for platform in platforms.iter().filter(|p| is_wanted(&p.name, &p.tags)) {
            jobs.push(NewJob {
                suite: suite_name.clone(),
                platform: platform.name.clone(),
                plan: plan(file, suite_name, suite, platform, publish, limits)?,
            });
        }
        // A platform that is out of service still gets its job, which then says so on the commit.
        for refused in refused
            .iter()
            .filter(|refused| is_wanted(&refused.name, refused.tags()))
        {
            jobs.push(NewJob {
                suite: suite_name.clone(),
                platform: refused.name.clone(),
                plan: JobPlan {
                    steps: Vec::new(),
                    timeouts: timeouts(suite, &[], limits),
                    artifacts: Vec::new(),
                    reports: Vec::new(),
                    history: false,
                    known_issue: refused
                        .platform
                        .as_ref()
                        .and_then(|platform| platform.known_issue.clone()),
                },
            });
        }
    }
    if jobs.is_empty() {
        let asked: Vec<String> = only.iter().map(|wanted| format!("`{wanted}`")).collect();
        return Err(format!("no suite runs on {}", asked.join(", ")));
    }
    if jobs.len() > MAX_JOBS {
        return Err(format!(
            "the commit asks for {} jobs, at most {MAX_JOBS} are allowed",
            jobs.len()
        ));
    }
    Ok(jobs)
}

fn plan(
    file: &RepositoryFile,
    suite_name: &str,
    suite: &Suite,
    platform: &Platform,
    publish: bool,
    limits: &Limits,
) -> Result<JobPlan, String> {
    let overrides: Vec<&Override> = suite
        .on
        .iter()
        .filter(|(condition, _)| matches(condition, &platform.name, &platform.tags))
        .map(|(_, table)| table)
        .collect();
    let last = |pick: fn(&Override) -> Option<&Shell>| overrides.iter().rev().find_map(|o| pick(o));
    let shell = match last(|o| o.shell.as_ref()).or(suite.shell.as_ref()) {
        Some(shell) => shell.clone().into_command()?,
        None => platform.shell.clone(),
    };
    let mut env = platform.env.clone();
    env.extend(suite.env.clone());
    for table in &overrides {
        env.extend(table.env.clone());
    }
    let steps = overrides
        .iter()
        .rev()
        .find_map(|table| table.steps.as_ref())
        .unwrap_or(&suite.steps);
    let mut resolved: Vec<Step> = steps
        .iter()
        .map(|step| step.resolve(&shell, &env, &suite.secrets, limits))
        .collect();
    let artifacts = file.builds_artifacts(suite_name).filter(|_| publish);
    let mut to_publish = suite.secrets.clone();
    to_publish.extend(
        artifacts
            .iter()
            .flat_map(|artifacts| artifacts.secrets.clone()),
    );
    for step in artifacts.into_iter().flat_map(|artifacts| &artifacts.steps) {
        resolved.push(Step {
            only_to_publish: true,
            ..step.resolve(&shell, &env, &to_publish, limits)
        });
    }
    let scale = u64::from(platform.timeout_scale);
    for step in &mut resolved {
        step.timeout_secs = step.timeout_secs.saturating_mul(scale);
    }
    let timeouts = timeouts(suite, &overrides, limits);
    Ok(JobPlan {
        steps: resolved,
        timeouts: Timeouts {
            job_secs: timeouts.job_secs.saturating_mul(scale),
            no_output_secs: timeouts.no_output_secs.saturating_mul(scale),
        },
        artifacts: artifacts.map(|a| a.files.clone()).unwrap_or_default(),
        reports: overrides
            .iter()
            .rev()
            .find_map(|table| table.reports.clone())
            .unwrap_or_else(|| suite.reports.clone()),
        history: suite.history,
        known_issue: platform.known_issue.clone(),
    })
}

fn timeouts(suite: &Suite, overrides: &[&Override], limits: &Limits) -> Timeouts {
    let last = |pick: fn(&Override) -> Option<u64>| overrides.iter().rev().find_map(|o| pick(o));
    Timeouts {
        job_secs: last(|o| o.timeout_secs)
            .or(suite.timeout_secs)
            .unwrap_or(limits.job_timeout_secs)
            .min(limits.job_timeout_secs),
        no_output_secs: last(|o| o.no_output_timeout_secs)
            .or(suite.no_output_timeout_secs)
            .unwrap_or(limits.no_output_timeout_secs),
    }
}

/// Whether a word of a `platforms` list means this platform: its name, one of its tags, or a glob over the name.
fn matches(wanted: &str, name: &str, tags: &[String]) -> bool {
    wanted == name
        || tags.iter().any(|tag| tag == wanted)
        || globset::Glob::new(wanted).is_ok_and(|glob| glob.compile_matcher().is_match(name))
}

fn is_suite_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn is_env_name(name: &str) -> bool {
    !name.is_empty() && !name.bytes().any(|b| b == b'=' || b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse_platform;

    fn platform(name: &str, tags: &str) -> Arc<Platform> {
        let text = format!(
            "tags = {tags}\n[disk]\npath = 'd'\n[ssh]\nuser = 'build'\nkey = 'k'\nhost_key = 'h'\n"
        );
        Arc::new(parse_platform(&Path::new("/p").join(name), &text).unwrap())
    }

    fn resolve(text: &str, publish: bool) -> Result<Vec<NewJob>, String> {
        let platforms = [
            platform("debian-12", "['linux']"),
            platform("freebsd-14", "['bsd']"),
            platform("tiny-linux", "['linux']"),
        ];
        let file = RepositoryFile::parse(text).map_err(|e| e.to_string())?;
        let refused = [RefusedPlatform {
            name: "windows-11".into(),
            why: "it is broken".into(),
            platform: None,
        }];
        resolve_jobs(
            &file,
            &platforms,
            &refused,
            &[],
            publish,
            &Limits::default(),
        )
    }

    const FILE: &str = "
[suite.test]
platforms = ['linux', 'freebsd-*']
env = { A = '1' }
[[suite.test.step]]
run = 'make check'
[suite.test.on.bsd]
env = { A = '2' }
shell = 'bash'
[artifacts]
files = ['dist/*']
[[artifacts.step]]
run = 'make dist'
";

    #[test]
    fn tags_and_globs_choose_platforms_and_overrides_win() {
        let jobs = resolve(FILE, false).unwrap();
        let names: Vec<&str> = jobs.iter().map(|job| job.platform.as_str()).collect();
        assert_eq!(names, ["debian-12", "freebsd-14", "tiny-linux"]);
        assert_eq!(jobs[0].plan.steps[0].env["A"], "1");
        assert_eq!(jobs[1].plan.steps[0].env["A"], "2");
        assert_eq!(jobs[1].plan.steps[0].shell[0], "bash");
        assert!(jobs.iter().all(|job| job.plan.artifacts.is_empty()));
    }

    #[test]
    fn a_slow_platform_has_more_time_and_a_known_issue_goes_with_the_job() {
        let head = "timeout_scale = 4\nknown_issue = 'hangs in vfork'\n[disk]\npath = 'd'\n";
        let ssh = "[ssh]\nkey = 'k'\nhost_key = 'h'\n";
        let slow = parse_platform(Path::new("/p/netbsd-10"), &format!("{head}{ssh}")).unwrap();
        let file = "[suite.t]\nplatforms = ['*']\ntimeout_secs = 100\nno_output_timeout_secs = 20\n\
                    [[suite.t.step]]\nrun = 'x'\ntimeout_secs = 50\n";
        let file = RepositoryFile::parse(file).unwrap();
        let platforms = [Arc::new(slow), platform("debian-12", "[]")];
        let jobs = resolve_jobs(&file, &platforms, &[], &[], false, &Limits::default()).unwrap();
        let times = |job: &NewJob| {
            let timeouts = job.plan.timeouts;
            let step = job.plan.steps[0].timeout_secs;
            (step, timeouts.job_secs, timeouts.no_output_secs)
        };
        assert_eq!(times(&jobs[0]), (200, 400, 80));
        assert_eq!(jobs[0].plan.known_issue.as_deref(), Some("hangs in vfork"));
        assert_eq!(times(&jobs[1]), (50, 100, 20));
        assert_eq!(jobs[1].plan.known_issue, None);
    }

    #[test]
    fn only_a_publishing_build_has_build_steps_and_artefacts() {
        let jobs = resolve(FILE, true).unwrap();
        assert_eq!(jobs[0].plan.steps.len(), 2);
        assert!(jobs[0].plan.steps[1].only_to_publish);
        assert_eq!(jobs[0].plan.artifacts, ["dist/*"]);
    }

    #[test]
    fn a_platform_out_of_service_still_gets_its_job() {
        let jobs = resolve(
            "[suite.t]\nplatforms = ['windows-11']\n[[suite.t.step]]\nrun = 'x'\n",
            false,
        )
        .unwrap();
        assert_eq!(jobs[0].platform, "windows-11");
    }

    #[test]
    fn faults_are_told_with_their_line_or_name() {
        for (text, expected) in [
            (
                "[suite.test]\nplatfroms = ['x']\n",
                ".vivarium.toml:2:1: unknown key `platfroms`: did you mean `platforms`?",
            ),
            ("[suite.test]\nplatforms = ['x'\n", ".vivarium.toml:2:17: "),
            ("[suite]\n", "there is no suite"),
            (
                "[suite.t]\nplatforms = ['debian-11']\n[[suite.t.step]]\nrun = 'x'\n",
                "asks for `debian-11`, which is no platform, tag or glob that fits one here: did you mean `debian-12`?",
            ),
            ("[suite.t]\nplatforms = ['linux']\n", "it has no step"),
            (
                "[suite.t]\nplatforms = ['linux']\n[[suite.t.step]]\nrun = ' '\n",
                "a step's `run` is empty",
            ),
        ] {
            let error = resolve(text, false).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
