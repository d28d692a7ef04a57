//! The command line against a running master: what a person reads, what a script gets.

use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tests::command_line::{CommandLine, Said, ended};
use tests::git::Commit;
use tests::github::GitHub;
use tests::machine::{Platforms, SshServer};
use tests::master::{Master, RepositoryEntry, free_port};
use tests::repository::{FILE, LocalRepository, Suites};
use tests::world::DEADLINE;
use tokio::io::AsyncReadExt;

/// A master with one repository and one platform, a machine reached by SSH, on which nothing is built by itself.
struct Desk {
    master: Master,
    command_line: CommandLine,
    repository: LocalRepository,
    _platforms: Platforms,
    _server: SshServer,
}

impl Desk {
    async fn new(run: &str) -> Result<Desk> {
        let server = SshServer::start().await?;
        let platforms = Platforms::new()?;
        platforms.add_ssh("desk", &server)?;
        let suites = Suites::test_on(&["desk"]).step("only", run);
        let (repository, _) = LocalRepository::create(&suites).await?;
        let entry = RepositoryEntry::polled("local", repository.path())
            .set("branches", vec!["no-such-branch"]);
        let master = Master::builder()
            .platforms(platforms.folder())
            .repository(entry)
            .start()
            .await?;
        Ok(Desk {
            command_line: CommandLine::of(&master),
            master,
            repository,
            _platforms: platforms,
            _server: server,
        })
    }

    async fn run(&self, arguments: &[&str]) -> Result<Said> {
        self.command_line.run(arguments).await
    }

    /// Builds `main` and waits for its end.
    async fn build(&self) -> Result<Said> {
        self.run(&["build", "--repo", "local", "--ref", "main", "--wait"])
            .await
    }

    /// A command of a suite that says `waiting` and goes on once the test has made the file.
    fn until_released(folder: &Path) -> (String, PathBuf) {
        let file = folder.join("go-on");
        let name = file.display();
        (
            format!("echo waiting; until [ -e {name} ]; do sleep 0.1; done; echo released"),
            file,
        )
    }
}

#[track_caller]
fn good(said: &Said) {
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(said.err, "");
    assert!(
        !said.out.contains('\x1b'),
        "no terminal, no colours: {said:?}"
    );
}

/// An error is a sentence, and what to do about it where that is known; nothing else is said.
#[track_caller]
fn refused(said: &Said, sentence: &str) {
    assert_eq!(said.code, Some(1), "{said:?}");
    assert_eq!(said.out, "");
    assert!(said.err.starts_with("error: "), "{said:?}");
    assert!(said.err.contains(sentence), "no `{sentence}` in {said:?}");
}

fn json(said: &Said) -> Result<Value> {
    good(said);
    serde_json::from_str(&said.out).with_context(|| said.out.clone())
}

/// Scripts rely on these names; more may come.
#[track_caller]
fn has_names(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some(), "no `{name}` in {value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_by_hand_is_asked_for_watched_and_read() -> Result<()> {
    let desk = Desk::new("echo hello from the desk").await?;
    let none = desk.run(&["status"]).await?;
    good(&none);
    assert_eq!(none.out, "no build yet\n");

    let built = desk.build().await?;
    good(&built);
    let first = built.out.lines().next();
    assert_eq!(first, Some("build-1 success local: First commit"));
    assert!(built.out.contains("  job-1    test (desk)"), "{built:?}");

    let status = desk.run(&["status"]).await?;
    good(&status);
    let words: Vec<&str> = status.out.split_whitespace().collect();
    assert_eq!(words, ["build-1", "success", "local", "First", "commit"]);
    assert_eq!(desk.run(&["status", "build-1"]).await?.out, built.out);
    let other = desk.run(&["status", "--repo", "other"]).await?;
    assert_eq!(other.out, "no build yet\n");

    let log = desk.master.log(1, 0).await?;
    let logs = desk.run(&["logs", "job-1"]).await?;
    good(&logs);
    assert_eq!(logs.out.as_bytes(), log);
    assert!(logs.out.contains("\nhello from the desk\n"));
    assert_eq!(
        desk.run(&["logs", "1", "--from", "5"]).await?.out,
        logs.out[5..]
    );
    assert_eq!(desk.run(&["logs", "job-1", "-f"]).await?.out, logs.out);

    let again = desk.run(&["rerun", "job-1"]).await?;
    good(&again);
    assert_eq!(again.out, "job-1 runs again\n");
    let followed = desk.run(&["logs", "job-1", "--follow"]).await?;
    assert!(
        followed.out.ends_with("==> success: Passed\n"),
        "{followed:?}"
    );
    let job = desk.master.job(1).await?;
    assert_eq!(job.attempts.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_gets_json_and_an_exit_code() -> Result<()> {
    let desk = Desk::new("test -e good").await?;
    let failed = desk
        .run(&[
            "build", "--repo", "local", "--ref", "main", "--wait", "--json",
        ])
        .await?;
    assert_eq!((failed.code, failed.err.as_str()), (Some(1), ""));
    let failed: Value = serde_json::from_str(&failed.out)?;
    assert_eq!(failed["conclusion"], "failure");
    assert_eq!(failed["jobs"][0]["reason"], "step_failed");

    let good_commit = Commit::on("topic").from("main").file("good", "");
    let sha = desk.repository.commit(&good_commit).await?;
    let passed = desk
        .run(&[
            "build",
            "--repo",
            "local",
            "--ref",
            "topic",
            "--platform",
            "desk",
            "--wait",
            "--json",
        ])
        .await?;
    assert_eq!(json(&passed)?["head_sha"], sha.as_str());

    let build = json(&desk.run(&["status", "build-2", "--json"]).await?)?;
    has_names(
        &build,
        &[
            "author",
            "base_sha",
            "conclusion",
            "created_at",
            "event",
            "finished_at",
            "head_sha",
            "id",
            "jobs",
            "message",
            "number",
            "pull_request",
            "reason",
            "reference",
            "repository",
            "state",
            "tested_sha",
            "title",
        ],
    );
    has_names(
        &build["jobs"][0],
        &[
            "artifacts",
            "build",
            "conclusion",
            "finished_at",
            "id",
            "log_url",
            "message",
            "number",
            "phase",
            "platform",
            "queued_at",
            "reason",
            "repository",
            "started_at",
            "state",
            "suite",
            "tests",
        ],
    );
    let builds = json(&desk.run(&["status", "--json"]).await?)?;
    let ids: Vec<_> = builds
        .as_array()
        .into_iter()
        .flatten()
        .map(|b| &b["id"])
        .collect();
    assert_eq!(ids, ["build-2", "build-1"], "newest first");
    let rerun = json(&desk.run(&["rerun", "build-2", "--json"]).await?)?;
    assert_eq!(rerun, serde_json::json!({ "build": "build-2", "jobs": 1 }));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_followed_while_the_job_runs_and_through_a_restart_of_the_master() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (run, release) = Desk::until_released(folder.path());
    let mut desk = Desk::new(&run).await?;
    good(
        &desk
            .run(&["build", "--repo", "local", "--ref", "main"])
            .await?,
    );
    desk.master
        .wait_for_job(&desk.master.build(1).await?.head_sha, "desk", DEADLINE)
        .await?;
    let mut following = desk.command_line.start(&["logs", "-f", "job-1"])?;
    let mut out = following.stdout.take().context("no pipe")?;
    let mut seen = Vec::new();
    let waiting = async {
        while !String::from_utf8_lossy(&seen).contains("\nwaiting\n") {
            anyhow::ensure!(out.read_buf(&mut seen).await? > 0, "it ended too soon");
        }
        Ok(())
    };
    tokio::time::timeout(DEADLINE, waiting).await??;

    desk.master.kill()?;
    desk.master.start().await?;
    std::fs::write(release, "")?;
    tokio::time::timeout(DEADLINE, out.read_to_end(&mut seen)).await??;
    let end = ended(following).await?;
    assert_eq!((end.code, end.err.as_str()), (Some(0), ""));
    assert_eq!(seen, desk.master.log(1, 0).await?);
    assert!(String::from_utf8_lossy(&seen).contains("waiting\nreleased\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_cancelled_and_what_has_ended_is_not() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (run, _) = Desk::until_released(folder.path());
    let desk = Desk::new(&run).await?;
    for (number, cancelled) in [(1, "build-1"), (2, "job-2")] {
        good(
            &desk
                .run(&["build", "--repo", "local", "--ref", "main"])
                .await?,
        );
        let waits = desk
            .master
            .wait_for("a job that runs", DEADLINE, async |master| {
                Ok(master.build(number).await?.jobs.pop())
            });
        let job = waits.await?.number;
        desk.master
            .wait_for_output(job, b"\nwaiting\n", DEADLINE)
            .await?;
        let early = desk.run(&["rerun", cancelled]).await?;
        refused(
            &early,
            "nothing was taken up again: the jobs have not ended yet",
        );
        let said = desk.run(&["cancel", cancelled]).await?;
        good(&said);
        assert_eq!(said.out, format!("{cancelled} is cancelled\n"));
        // Returns at the end of the job.
        desk.run(&["logs", "-f", &job.to_string()]).await?;
        let build = desk.master.build(number).await?;
        assert_eq!(build.conclusion.as_deref(), Some("cancelled"));
        let late = desk.run(&["cancel", cancelled]).await?;
        refused(
            &late,
            &format!("nothing was cancelled: {cancelled} has ended already"),
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_named() -> Result<()> {
    let desk = Desk::new("true").await?;
    let build = |repository: &'static str, reference: &'static str| {
        ["build", "--repo", repository, "--ref", reference]
    };
    let unknown = desk.run(&build("nobody/nothing", "main")).await?;
    refused(&unknown, "repository `nobody/nothing` is not configured");
    let unknown = desk.run(&build("local", "no-such-branch")).await?;
    refused(&unknown, "no-such-branch");
    let platform = [
        &build("local", "main")[..],
        &["--platform", "plan9", "--wait"],
    ]
    .concat();
    let unknown = desk.run(&platform).await?;
    assert_eq!(unknown.code, Some(1), "{unknown:?}");
    assert!(
        unknown.out.contains("no suite runs on `plan9`"),
        "{unknown:?}"
    );

    for arguments in [
        &["logs", "job-99"][..],
        &["cancel", "job-99"],
        &["rerun", "job-99"],
    ] {
        refused(&desk.run(arguments).await?, "job-99 is not there");
    }
    refused(
        &desk.run(&["status", "build-99"]).await?,
        "build-99 is not there",
    );
    let other = desk.run(&["logs", "build-1"]).await?;
    refused(
        &other,
        "`build-1` is no job id: expected a number or `job-NUMBER`",
    );
    let other = desk.run(&["cancel", "../../healthz"]).await?;
    refused(
        &other,
        "`../../healthz` is neither a build (`build-12`) nor a job (`job-204`)",
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_the_token_changes_anything() -> Result<()> {
    let desk = Desk::new("true").await?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    let file = file.to_string_lossy();
    let build = [
        "build",
        "--repo",
        "local",
        "--ref",
        "main",
        "--token-file",
        &file,
    ];
    refused(
        &desk.run(&build).await?,
        "this needs a token: cannot read the token file",
    );
    std::fs::write(&*file, "short")?;
    refused(&desk.run(&build).await?, "holds fewer than 32 characters");
    std::fs::write(&*file, "guessed-guessed-guessed-guessed-guessed\n")?;
    let wrong = desk.run(&build).await?;
    refused(&wrong, "the token is wrong");
    assert!(wrong.err.contains("\nhint: give --token-file"), "{wrong:?}");
    assert!(desk.master.builds().await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_that_is_not_there_is_said_to_be_so() -> Result<()> {
    let nowhere = format!("http://127.0.0.1:{}", free_port()?);
    let command_line = CommandLine::default()
        .environment("VIVARIUM_URL", &nowhere)
        // A proxy is not asked for what is on this machine.
        .environment("HTTP_PROXY", "http://127.0.0.1:9");
    for arguments in [
        &["status"][..],
        &["status", "build-1", "--json"],
        &["logs", "-f", "job-1"],
    ] {
        let said = command_line.run(arguments).await?;
        refused(
            &said,
            &format!("no master answers at {nowhere}/: Connection refused"),
        );
        let last = said.err.lines().last();
        let hint = "hint: start one with `vivarium serve`, or give --url";
        assert_eq!(last, Some(hint));
    }
    let github = GitHub::start().await?;
    let said = command_line
        .run(&["status", "--url", &github.api_url()])
        .await?;
    refused(&said, "hint: is that a Vivarium master?");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn colours_are_for_terminals_and_for_those_who_insist() -> Result<()> {
    let desk = Desk::new("true").await?;
    good(&desk.build().await?);
    assert!(!desk.master.output().contains('\x1b'), "a log in a file");
    let insisting = desk.command_line.clone().environment("FORCE_COLOR", "1");
    let said = insisting.run(&["status"]).await?;
    assert!(said.out.contains("\x1b[32msuccess"), "{said:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_is_no_error() -> Result<()> {
    let desk = Desk::new("seq 1 100000").await?;
    good(&desk.build().await?);
    let mut logs = desk.command_line.start(&["logs", "job-1"])?;
    drop(logs.stdout.take());
    let said = ended(logs).await?;
    assert_eq!((said.code, said.err.as_str()), (Some(141), ""));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong_and_says_what_to_do() -> Result<()> {
    let desk = Desk::new("true").await?;
    let config = desk.master.config_file();
    let config = config.to_string_lossy();
    let well = desk.run(&["doctor", "--config", &config]).await?;
    good(&well);
    assert!(
        well.out.contains("good  platform: desk takes work\n"),
        "{well:?}"
    );
    let findings = json(&desk.run(&["doctor", "--json", "--config", &config]).await?)?;
    for what in [
        "git",
        "libvirt",
        "acceleration",
        "platform",
        "agent",
        "database",
        "storage",
    ] {
        let found = findings.as_array().into_iter().flatten();
        let found: Vec<_> = found.filter(|finding| finding["what"] == what).collect();
        assert!(!found.is_empty(), "nothing on {what}");
        assert!(found.iter().all(|finding| finding["verdict"] != "fault"));
    }

    let broken = desk._platforms.folder().join("broken");
    std::fs::create_dir(&broken)?;
    std::fs::write(
        broken.join("platform.toml"),
        "os = \"linux\"\nmemori_mib = 1\n",
    )?;
    let ill = desk.run(&["doctor", "--config", &config]).await?;
    assert_eq!(ill.code, Some(1), "{ill:?}");
    assert!(ill.out.contains("\nfault platform: broken: "), "{ill:?}");
    assert!(ill.out.contains("did you mean `memory_mib`"), "{ill:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_checked_before_they_are_used() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let command_line = CommandLine::default();
    let file = folder.path().join(FILE);
    let name = file.to_string_lossy();
    let suites = Suites::test_on(&["desk"]).step("only", "true").to_toml();
    std::fs::write(&file, &suites)?;
    let said = command_line.run(&["check-config", &name]).await?;
    good(&said);
    assert_eq!(said.out, format!("{name}: right\n"));
    std::fs::write(&file, suites + "\n[artefacts]\nfiles = []\n")?;
    let said = command_line.run(&["check-config", &name]).await?;
    refused(
        &said,
        ".vivarium.toml:8:2: unknown key `artefacts`: did you mean `artifacts`?",
    );

    let missing = folder.path().join("vivarium.toml");
    let said = command_line
        .run(&["check-config", &missing.to_string_lossy()])
        .await?;
    refused(&said, "cannot be read: No such file or directory");
    let said = command_line
        .run(&["serve", "--config", &missing.to_string_lossy()])
        .await?;
    refused(&said, "cannot be read: No such file or directory");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_complete_every_command() -> Result<()> {
    let command_line = CommandLine::default();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = command_line.run(&["completions", shell]).await?;
        good(&said);
        for command in [
            "serve",
            "demo",
            "doctor",
            "check-config",
            "build",
            "status",
            "logs",
            "cancel",
            "rerun",
        ] {
            assert!(
                said.out.contains(command),
                "{shell} does not know {command}"
            );
        }
    }
    // As bash uses it: the words after `vivarium st`.
    let script = command_line.run(&["completions", "bash"]).await?.out;
    let asked = "\nCOMP_WORDS=(vivarium st) COMP_CWORD=1; _vivarium vivarium st vivarium; echo \"${COMPREPLY[@]}\"";
    let bash = tokio::process::Command::new("bash")
        .args(["-c", &(script + asked)])
        .output()
        .await?;
    assert_eq!(
        String::from_utf8_lossy(&bash.stdout),
        "status\n",
        "{bash:?}"
    );
    Ok(())
}
