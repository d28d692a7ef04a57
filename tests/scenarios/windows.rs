//! A Windows machine: its SSH server and its agent are real programs of Windows, and Wine runs them.

use anyhow::{Context, Result};
use tests::find;
use tests::github::{MergeMethod, StatusState};
use tests::machine::{Platforms, WindowsMachine};
use tests::repository::Suites;
use tests::world::{AGGREGATE, DEADLINE, REPOSITORY, World, context};

async fn world(machine: &WindowsMachine, suites: &Suites) -> Result<World> {
    let platforms = Platforms::new()?;
    platforms.add_windows("win", machine)?;
    let agents = machine.agents();
    World::with_platforms(platforms, suites, |master, entry| {
        master.agents(&agents).repository(entry)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_windows_machine_runs_suites_in_cmd_and_keeps_what_they_build() -> Result<()> {
    let machine = WindowsMachine::start().await?;
    let tool = machine.tool();
    let suites = Suites::test_on(&["win"])
        .step("source", "type greeting.txt & type \"with space\\deep.txt\"")
        .step("line", "if \"%VIVARIUM_PLATFORM%\"==\"win\" (echo \"hello\" from %VIVARIUM_PLATFORM%) else exit 3")
        .step("lines", &format!("set X=1\nif exist \"%VIVARIUM_CHANGED_FILES%\" echo changed files\n{tool} complain on the other stream\necho X is %X%\n"))
        .artifacts(
            "build",
            &format!("mkdir dist\\deep & {tool} zeros 300000 >dist\\program.exe & echo notes>\"dist\\deep\\read me.txt\""),
            &["dist/**"],
        );
    let world = world(&machine, &suites).await?;
    let (number, head) = world
        .propose("topic", |commit| {
            commit
                .file("greeting.txt", "from the source\r\n")
                .file("with space/deep.txt", "deep\n")
        })
        .await?;
    let status = world.settled(&head, AGGREGATE).await?;
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let log = world.master.log(build.jobs[0].number, 0).await?;
    let said = String::from_utf8_lossy(&log).into_owned();
    assert_eq!(
        status.state,
        StatusState::Success,
        "{said}\n{}",
        machine.output()
    );
    for line in [
        &b"from the source\r\ndeep\n"[..],
        b"\"hello\" from win\r\n",
        b"changed files\r\non the other stream\nX is 1\r\n",
    ] {
        assert!(find(&log, line).is_some(), "{said}");
    }

    let merge = world
        .github
        .merge_pull_request(REPOSITORY, number, MergeMethod::MergeCommit)
        .await?;
    let status = world.settled(&merge, AGGREGATE).await?;
    assert_eq!(status.state, StatusState::Success, "{}", machine.output());
    let build = world
        .master
        .wait_for_finished_build(&merge, DEADLINE)
        .await?;
    let job = build.jobs.first().context("the merge had no job")?;
    let mut kept: Vec<_> = job
        .artifacts
        .iter()
        .map(|a| (a.path.as_str(), a.size))
        .collect();
    kept.sort_unstable();
    assert_eq!(
        kept,
        [("dist/deep/read me.txt", 7), ("dist/program.exe", 300_000)]
    );
    // The machine is left as it was found.
    assert_eq!(std::fs::read_dir(machine.path("home/work"))?.count(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_code_of_a_windows_step_is_told_as_it_was() -> Result<()> {
    let machine = WindowsMachine::start().await?;
    let suites = Suites::test_on(&["win"]).step("fails", "echo before & exit 70000");
    let world = world(&machine, &suites).await?;
    let head = world.propose_any().await?;
    let status = world.settled(&head, &context("win")).await?;
    assert_eq!(status.state, StatusState::Failure, "{}", machine.output());
    let build = world
        .master
        .wait_for_finished_build(&head, DEADLINE)
        .await?;
    let log = world.master.log(build.jobs[0].number, 0).await?;
    assert!(
        find(&log, b"70000").is_some(),
        "{}",
        String::from_utf8_lossy(&log)
    );
    Ok(())
}
