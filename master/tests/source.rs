//! The mirrors against real repositories: what is fetched, merged, read and sent is what was committed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;
use vivarium::config::{Config, RepositoryConfig, RepositoryFile};
use vivarium::source::{Credentials, Merge, SourceError, Sources};

const UNKNOWN: &str = "1234567890123456789012345678901234567890";

/// A repository with a work tree that commits are made in, and a master's folder of mirrors.
struct Story {
    dir: TempDir,
    sources: Sources,
    repository: RepositoryConfig,
}

impl Story {
    fn new() -> Story {
        let dir = TempDir::new().unwrap();
        let upstream = dir.path().join("up stream");
        std::fs::create_dir(&upstream).unwrap();
        let story = Story {
            sources: Sources::new(dir.path().join("mirrors"), None),
            repository: repository("owner/name", &upstream.display().to_string()),
            dir,
        };
        story.git(["init", "-q", "-b", "main"]);
        story
    }

    fn with_commit() -> (Story, String) {
        let story = Story::new();
        let sha = story.commit("README", "hello\n");
        (story, sha)
    }

    fn upstream(&self) -> PathBuf {
        self.dir.path().join("up stream")
    }

    fn mirror(&self) -> PathBuf {
        self.dir.path().join("mirrors/owner+name.git")
    }

    fn git<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> String {
        git(&self.upstream(), args)
    }

    fn write(&self, path: impl AsRef<Path>, content: &str) {
        let path = self.upstream().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Commits everything there is.
    fn commit_all(&self, title: &str) -> String {
        self.git(["add", "-A"]);
        self.git(["commit", "-q", "--allow-empty", "-m", title]);
        self.git(["rev-parse", "HEAD"])
    }

    fn commit(&self, path: &str, content: &str) -> String {
        self.write(path, content);
        let start: String = content.trim().chars().take(20).collect();
        self.commit_all(&format!("{path}: {start}"))
    }

    fn checkout(&self, branch: &str, from: &str) {
        self.git(["checkout", "-q", "-B", branch, from]);
    }

    async fn fetch(&self, wanted: &[&str]) -> Result<(), SourceError> {
        self.sources.fetch(&self.repository, wanted).await
    }

    async fn resolve(&self, name: &str) -> Result<String, SourceError> {
        self.sources.resolve(&self.repository, name).await
    }

    async fn titles(&self, tip: &str, since: Option<&str>) -> Vec<String> {
        let commits = self.sources.new_commits(&self.repository, tip, since).await;
        commits.unwrap().into_iter().map(|c| c.title).collect()
    }

    async fn merge(&self, base: &str, head: &str) -> Result<Merge, SourceError> {
        self.sources.merge(&self.repository, base, head).await
    }

    async fn file(&self, sha: &str, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        self.sources.file_at(&self.repository, sha, path).await
    }

    async fn changed(&self, from: &str, to: &str) -> Vec<u8> {
        let changed = self.sources.changed_files(&self.repository, from, to).await;
        changed.unwrap()
    }

    /// Unpacks the archive of a commit and returns the folder.
    async fn unpack(&self, sha: &str) -> PathBuf {
        let mut archive = self.sources.archive(&self.repository, sha).await.unwrap();
        let mut bytes = Vec::new();
        archive.read_to_end(&mut bytes).await.unwrap();
        archive.finish().await.unwrap();
        let tar = self.dir.path().join("archive.tar");
        std::fs::write(&tar, bytes).unwrap();
        let folder = self.dir.path().join(format!("unpacked-{sha}"));
        std::fs::create_dir(&folder).unwrap();
        let mut unpack = Command::new("tar");
        unpack.arg("-xpf").arg(&tar).arg("-C").arg(&folder);
        assert!(unpack.status().unwrap().success());
        folder
    }
}

fn repository(name: &str, url: &str) -> RepositoryConfig {
    let text = format!("[[repository]]\nname = '{name}'\nurl = '{url}'\n");
    let config = Config::parse(Path::new("/vivarium.toml"), &text).unwrap();
    config.repositories[0].clone()
}

fn git<A: AsRef<OsStr>>(dir: &Path, args: impl IntoIterator<Item = A>) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=Ada Lovelace"])
        .args(["-c", "user.email=ada@example.org"])
        .args(args)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn clean(merge: Result<Merge, SourceError>) -> (String, String) {
    match merge.unwrap() {
        Merge::Clean { sha, tree } => (sha, tree),
        Merge::Conflict { files } => panic!("conflict in {files:?}"),
    }
}

// Fetching and names

#[tokio::test]
async fn a_commit_is_found_by_all_its_names() {
    let (story, first) = Story::with_commit();
    let sha = story.commit("a", "1\n");
    story.git(["tag", "light"]);
    story.git(["tag", "-a", "v1.0", "-m", "one"]);
    story.git(["branch", "feature/x", &first]);
    story.fetch(&[&sha]).await.unwrap();
    for name in [
        "main",
        "refs/heads/main",
        "light",
        "v1.0",
        "refs/tags/v1.0",
        &sha,
        &sha[..7],
        &sha.to_uppercase(),
    ] {
        assert_eq!(story.resolve(name).await.unwrap(), sha, "{name}");
    }
    assert_eq!(story.resolve("feature/x").await.unwrap(), first);
    let (sources, repository) = (&story.sources, &story.repository);
    assert_eq!(
        sources.branches(repository).await.unwrap(),
        [
            ("feature/x".into(), first.clone()),
            ("main".into(), sha.clone())
        ]
    );
    let info = sources.commit_info(repository, &sha).await.unwrap();
    assert_eq!(info.title, "a: 1");
    assert_eq!(info.author, "Ada Lovelace");
    let seconds = story.git(["log", "-1", "--format=%ct"]);
    assert_eq!(info.time.as_second().to_string(), seconds);
    let parent = sources.parent(repository, &sha).await.unwrap();
    assert_eq!(parent.as_ref(), Some(&first));
    assert_eq!(sources.parent(repository, &first).await.unwrap(), None);
}

#[tokio::test]
async fn a_branch_goes_before_a_tag_and_both_before_an_abbreviation() {
    let (story, first) = Story::with_commit();
    let second = story.commit("a", "1\n");
    story.git(["tag", "same", &first]);
    story.git(["branch", "same", &second]);
    story.git(["branch", &first[..8], &second]);
    story.fetch(&[]).await.unwrap();
    assert_eq!(story.resolve("same").await.unwrap(), second);
    assert_eq!(story.resolve(&first[..8]).await.unwrap(), second);
    assert_eq!(story.resolve(&first[..9]).await.unwrap(), first);
}

#[tokio::test]
async fn hostile_names_are_refused_before_git_sees_them() {
    let (story, sha) = Story::with_commit();
    story.fetch(&[]).await.unwrap();
    let trap = story.dir.path().join("trap");
    let (sources, repository) = (&story.sources, &story.repository);
    for hostile in [
        format!("--upload-pack=touch {}", trap.display()),
        format!("--output={}", trap.display()),
        "-x".into(),
        "--".into(),
        "..".into(),
        "main..other".into(),
        "main other".into(),
        format!("main\n{sha}"),
        "main\0".into(),
        "main~1".into(),
        ":/hello".into(),
        "HEAD@{0}".into(),
        "refs/heads/*".into(),
        String::new(),
        "x".repeat(5000),
    ] {
        let name = hostile.as_str();
        for error in [
            story.resolve(name).await.unwrap_err(),
            story.fetch(&[name]).await.unwrap_err(),
            story.merge(name, &sha).await.unwrap_err(),
            sources.archive(repository, name).await.unwrap_err(),
            sources
                .changed_files(repository, &sha, name)
                .await
                .unwrap_err(),
            sources
                .new_commits(repository, name, None)
                .await
                .unwrap_err(),
            sources.bundle(repository, &sha, name).await.unwrap_err(),
        ] {
            assert!(matches!(error, SourceError::BadName { .. }), "{error}");
            assert!(error.is_final() && !error.to_string().contains('\n'));
        }
    }
    assert!(!trap.exists());
}

#[tokio::test]
async fn the_repository_is_left_alone_when_the_commits_are_there() {
    let (story, sha) = Story::with_commit();
    story.fetch(&[&sha]).await.unwrap();
    std::fs::rename(story.upstream(), story.dir.path().join("gone")).unwrap();
    story.fetch(&[&sha]).await.unwrap();
    // A branch may have moved, so that the repository has to be asked.
    let error = story.fetch(&["main"]).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    assert!(!error.is_final());
    let text = error.to_string();
    assert!(
        text.contains("owner/name") && text.contains("hint:"),
        "{text}"
    );
    // What is there stays readable.
    let file = story.file(&sha, "README").await.unwrap();
    assert_eq!(file.unwrap(), b"hello\n");
}

#[tokio::test]
async fn a_repository_that_never_was_leaves_no_mirror() {
    let story = Story::new();
    let nowhere = repository("owner/name", "/nonexistent/x.git");
    let error = story.sources.fetch(&nowhere, &[]).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    assert!(!story.mirror().exists());
    let leftovers = std::fs::read_dir(story.dir.path().join("mirrors/tmp")).unwrap();
    assert_eq!(leftovers.count(), 0);
    let error = story.resolve("main").await.unwrap_err();
    assert!(
        error.to_string().contains("has not been fetched yet"),
        "{error}"
    );
}

#[tokio::test]
async fn an_empty_repository_has_no_branches() {
    let story = Story::new();
    story.fetch(&[]).await.unwrap();
    let branches = story.sources.branches(&story.repository).await.unwrap();
    assert!(branches.is_empty());
    let error = story.fetch(&["main"]).await.unwrap_err();
    assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_commit_that_does_not_exist_is_final() {
    let (story, sha) = Story::with_commit();
    story.fetch(&[&sha]).await.unwrap();
    for wanted in [UNKNOWN, "nosuch", "refs/pull/9/head", "refs/tags/v9"] {
        let error = story.fetch(&[wanted]).await.unwrap_err();
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
        assert!(
            error.is_final() && error.to_string().contains(wanted),
            "{error}"
        );
    }
    let (sources, repository) = (&story.sources, &story.repository);
    for error in [
        story.resolve(UNKNOWN).await.unwrap_err(),
        story.merge(&sha, UNKNOWN).await.unwrap_err(),
        story.merge(UNKNOWN, &sha).await.unwrap_err(),
        story.file(UNKNOWN, "README").await.unwrap_err(),
        sources.parent(repository, UNKNOWN).await.unwrap_err(),
        sources.commit_info(repository, UNKNOWN).await.unwrap_err(),
        sources.archive(repository, UNKNOWN).await.unwrap_err(),
        sources
            .changed_files(repository, &sha, UNKNOWN)
            .await
            .unwrap_err(),
        sources
            .new_commits(repository, UNKNOWN, Some(&sha))
            .await
            .unwrap_err(),
        sources
            .bundle(repository, UNKNOWN, "main")
            .await
            .unwrap_err(),
    ] {
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
    }
    // None of that was taken for damage: nothing is fetched.
    std::fs::remove_dir_all(story.upstream()).unwrap();
    story.fetch(&[&sha]).await.unwrap();
}

#[tokio::test]
async fn a_mirror_is_kept_although_one_commit_is_not_there() {
    for wanted in [UNKNOWN, "refs/pull/9/head"] {
        let (story, sha) = Story::with_commit();
        let error = story.fetch(&[wanted, &sha]).await.unwrap_err();
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
        assert_eq!(story.resolve("main").await.unwrap(), sha);
    }
}

#[tokio::test]
async fn the_head_of_a_pull_request_comes_by_sha_and_by_ref() {
    let (story, base) = Story::with_commit();
    story.fetch(&[&base]).await.unwrap();
    let mut heads = Vec::new();
    for number in [7, 8] {
        story.checkout("fork", "main");
        let head = story.commit("fork.txt", &format!("{number}\n"));
        story.git(["update-ref", &format!("refs/pull/{number}/head"), &head]);
        story.git(["checkout", "-q", "main"]);
        story.git(["branch", "-D", "fork"]);
        heads.push(head);
    }
    story.fetch(&[&heads[0], &base]).await.unwrap();
    let file = story.file(&heads[0], "fork.txt").await.unwrap();
    assert_eq!(file.unwrap(), b"7\n");
    story.fetch(&["refs/pull/8/head", &heads[1]]).await.unwrap();
    assert_eq!(story.resolve("refs/pull/8/head").await.unwrap(), heads[1]);
    // An unknown sha does not keep the ref from being fetched.
    story.git(["update-ref", "refs/pull/8/head", &base]);
    let error = story
        .fetch(&["refs/pull/8/head", UNKNOWN])
        .await
        .unwrap_err();
    assert!(error.to_string().contains(UNKNOWN), "{error}");
    assert_eq!(story.resolve("refs/pull/8/head").await.unwrap(), base);
}

#[tokio::test]
async fn a_pull_request_is_fetched_with_the_present_tip_of_its_base() {
    let (story, old_base) = Story::with_commit();
    story.fetch(&[]).await.unwrap();
    story.checkout("fork", "main");
    let head = story.commit("fork.txt", "1\n");
    story.git(["update-ref", "refs/pull/7/head", &head]);
    story.git(["checkout", "-q", "main"]);
    story.git(["branch", "-D", "fork"]);
    let base = story.commit("base.txt", "1\n");
    let fetch = |head: String| {
        let (sources, repository) = (story.sources.clone(), story.repository.clone());
        async move {
            let reference = "refs/pull/7/head";
            sources
                .fetch_pull_request(&repository, "refs/heads/main", reference, &head)
                .await
        }
    };
    fetch(head.clone()).await.unwrap();
    assert_eq!(story.resolve("main").await.unwrap(), base);
    let (merged, _) = clean(story.merge(&base, &head).await);
    assert_eq!(
        story.changed(&old_base, &merged).await,
        b"base.txt\nfork.txt\n"
    );
    // A push took its place, and the old head is nowhere to be had.
    let error = fetch(UNKNOWN.into()).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::NotFound { what, .. } if what == UNKNOWN),
        "{error}"
    );
}

#[tokio::test]
async fn deleted_and_forced_branches_and_moved_tags_follow() {
    let (story, first) = Story::with_commit();
    story.git(["branch", "topic"]);
    story.git(["tag", "v1"]);
    let second = story.commit("a", "1\n");
    story.fetch(&[]).await.unwrap();
    story.git(["branch", "-D", "topic"]);
    // A name that could not exist beside the deleted one.
    story.git(["branch", "topic/deeper", &second]);
    story.git(["reset", "-q", "--hard", &first]);
    let forced = story.commit("b", "2\n");
    story.git(["tag", "-f", "v1", &forced]);
    story.fetch(&[]).await.unwrap();
    let gone = story.resolve("topic").await.unwrap_err();
    assert!(matches!(gone, SourceError::NotFound { .. }), "{gone}");
    assert_eq!(story.resolve("topic/deeper").await.unwrap(), second);
    assert_eq!(story.resolve("main").await.unwrap(), forced);
    assert_eq!(story.resolve("v1").await.unwrap(), forced);
}

#[tokio::test]
async fn every_way_to_write_an_address_works() {
    let (story, sha) = Story::with_commit();
    let dir = story.dir.path();
    git(
        dir,
        ["clone", "-q", "--bare", "up stream", "bare and \u{fc}.git"],
    );
    story.git(["worktree", "add", "-q", "../worktree"]);
    let dir = dir.display();
    for (index, url) in [
        format!("{dir}/up stream"),
        format!("{dir}/up stream/.git"),
        format!("{dir}/bare and \u{fc}.git"),
        format!("{dir}/worktree"),
        format!("file://{dir}/bare and \u{fc}.git"),
    ]
    .iter()
    .enumerate()
    {
        let repository = repository(&format!("r{index}"), url);
        let fetched = story.sources.fetch(&repository, &[&sha, "main"]).await;
        fetched.unwrap_or_else(|error| panic!("{url}: {error}"));
    }
    let program = repository("ext", "ext::sh -c touch% /tmp/x");
    let error = story.sources.fetch(&program, &[]).await.unwrap_err();
    assert!(error.to_string().contains("not allowed"), "{error}");
}

#[tokio::test]
async fn a_repository_of_another_user_is_fetched() {
    let (story, sha) = Story::with_commit();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can give a folder away");
        return;
    }
    let mut chown = Command::new("chown");
    chown.args(["-R", "65534"]).arg(story.upstream());
    assert!(chown.status().unwrap().success());
    story.fetch(&[&sha]).await.unwrap();
}

#[tokio::test]
async fn a_new_address_takes_effect_at_once() {
    let (story, _) = Story::with_commit();
    story.fetch(&[]).await.unwrap();
    let (other, sha) = Story::with_commit();
    other.git(["branch", "-m", "trunk"]);
    // The same name to GitHub.
    let moved = repository("Owner/Name", &other.upstream().display().to_string());
    story.sources.fetch(&moved, &["trunk"]).await.unwrap();
    let branches = story.sources.branches(&moved).await.unwrap();
    assert_eq!(branches, [("trunk".to_owned(), sha)]);
}

#[tokio::test]
async fn fetches_at_once_do_not_collide() {
    let (story, _) = Story::with_commit();
    let shas: Vec<String> = (0..8)
        .map(|n| story.commit("n", &format!("{n}\n")))
        .collect();
    let fetches: Vec<_> = shas
        .iter()
        .cloned()
        .map(|sha| {
            let (sources, repository) = (story.sources.clone(), story.repository.clone());
            tokio::spawn(async move { sources.fetch(&repository, &[&sha, "main"]).await })
        })
        .collect();
    for fetch in fetches {
        fetch.await.unwrap().unwrap();
    }
    assert_eq!(story.resolve("main").await.unwrap(), shas[7]);
}

#[tokio::test]
async fn many_fetches_end_in_few_packs() {
    let (story, _) = Story::with_commit();
    for number in 0..101 {
        let sha = story.commit("n", &format!("{number}\n"));
        story.fetch(&[&sha]).await.unwrap();
    }
    // Packing goes on beside the fetches.
    let packs = || {
        let packs = std::fs::read_dir(story.mirror().join("objects/pack")).unwrap();
        packs
            .filter(|entry| entry.as_ref().unwrap().path().extension() == Some("pack".as_ref()))
            .count()
    };
    while packs() > 75 {
        tokio::task::yield_now().await;
    }
}

// Mirrors that were hurt

/// Leaves half of every pack.
fn truncate_packs(mirror: &Path) {
    for entry in std::fs::read_dir(mirror.join("objects/pack")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some(OsStr::new("pack")) {
            let bytes = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }
    }
}

fn numbers() -> String {
    (0..20_000).map(|n| format!("{}\n", n * n)).collect()
}

#[tokio::test]
async fn a_damaged_mirror_is_made_again() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 7] = [
        ("no HEAD", |mirror| {
            std::fs::remove_file(mirror.join("HEAD")).unwrap();
        }),
        ("no objects", |mirror| {
            std::fs::remove_dir_all(mirror.join("objects")).unwrap();
        }),
        ("no packs", |mirror| {
            std::fs::remove_dir_all(mirror.join("objects/pack")).unwrap();
        }),
        ("half packs", truncate_packs),
        ("empty folder", |mirror| {
            std::fs::remove_dir_all(mirror).unwrap();
            std::fs::create_dir(mirror).unwrap();
        }),
        ("an empty ref", |mirror| {
            std::fs::create_dir_all(mirror.join("refs/heads")).unwrap();
            std::fs::write(mirror.join("refs/heads/main"), "").unwrap();
        }),
        ("a broken config", |mirror| {
            std::fs::write(mirror.join("config"), "[co").unwrap();
        }),
    ];
    for (name, damage) in damages {
        let (story, _) = Story::with_commit();
        story.commit("large", &numbers());
        story.fetch(&[]).await.unwrap();
        let sha = story.commit("a", "1\n");
        damage(&story.mirror());
        let fetched = story.fetch(&[&sha, "main"]).await;
        fetched.unwrap_or_else(|error| panic!("{name}: {error}"));
        let folder = story.unpack(&sha).await;
        let file = std::fs::read_to_string(folder.join("a")).unwrap();
        assert_eq!(file, "1\n", "{name}");
    }
}

#[tokio::test]
async fn damage_that_reading_finds_is_mended_by_the_next_fetch() {
    let (story, _) = Story::with_commit();
    let sha = story.commit("large", &numbers());
    story.fetch(&[&sha]).await.unwrap();
    truncate_packs(&story.mirror());
    let error = story.file(&sha, "large").await.unwrap_err();
    assert!(matches!(error, SourceError::Damaged { .. }), "{error}");
    assert!(!error.is_final());
    story.fetch(&[&sha]).await.unwrap();
    assert!(story.file(&sha, "large").await.unwrap().is_some());
}

#[tokio::test]
async fn a_damaged_mirror_stays_while_the_repository_is_away() {
    let (story, sha) = Story::with_commit();
    story.fetch(&[&sha]).await.unwrap();
    std::fs::remove_file(story.mirror().join("HEAD")).unwrap();
    let away = story.dir.path().join("away");
    std::fs::rename(story.upstream(), &away).unwrap();
    let error = story.fetch(&["main"]).await.unwrap_err();
    assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    assert!(story.mirror().exists());
    std::fs::rename(&away, story.upstream()).unwrap();
    story.fetch(&["main"]).await.unwrap();
}

#[tokio::test]
async fn a_damaged_repository_is_not_blamed_on_the_mirror() {
    let (story, sha) = Story::with_commit();
    let object = format!(".git/objects/{}/{}", &sha[..2], &sha[2..]);
    std::fs::remove_file(story.upstream().join(&object)).unwrap();
    let error = story.fetch(&[]).await.unwrap_err();
    assert!(!matches!(error, SourceError::Damaged { .. }), "{error}");
    assert!(!error.is_final(), "{error}");
}

#[tokio::test]
async fn lock_files_of_a_git_that_was_killed_are_in_nobodys_way() {
    let (story, _) = Story::with_commit();
    story.fetch(&[]).await.unwrap();
    // Under a running master, and before it starts.
    let started_later = Sources::new(story.dir.path().join("mirrors"), None);
    for sources in [&story.sources, &started_later] {
        for lock in ["packed-refs.lock", "refs/heads/main.lock"] {
            std::fs::write(story.mirror().join(lock), "").unwrap();
        }
        let sha = story.commit_all("next");
        story.git(["branch", "-f", "tmp_x"]);
        sources.fetch(&story.repository, &[&sha]).await.unwrap();
        for branch in ["main", "tmp_x"] {
            let tip = sources.resolve(&story.repository, branch).await.unwrap();
            assert_eq!(tip, sha);
        }
    }
}

// History

#[tokio::test]
async fn commits_since_the_last_one_come_oldest_first() {
    let (story, start) = Story::with_commit();
    for number in 1..=3 {
        story.commit("n", &format!("{number}\n"));
    }
    story.fetch(&[]).await.unwrap();
    let titles = story.titles("main", Some(&start)).await;
    assert_eq!(titles, ["n: 1", "n: 2", "n: 3"]);
    assert_eq!(story.titles("main", None).await, ["n: 3"]);
    let tip = story.resolve("main").await.unwrap();
    assert!(story.titles("main", Some(&tip)).await.is_empty());
    assert_eq!(story.titles(&tip, Some(UNKNOWN)).await, ["n: 3"]);
}

#[tokio::test]
async fn a_merged_branch_brings_its_commits_before_the_merge() {
    let (story, start) = Story::with_commit();
    story.checkout("topic", "main");
    story.commit("t", "1\n");
    story.commit("t", "2\n");
    story.git(["checkout", "-q", "main"]);
    story.commit("m", "1\n");
    story.git(["merge", "-q", "--no-ff", "-m", "merge topic", "topic"]);
    story.fetch(&[]).await.unwrap();
    let titles = story.titles("main", Some(&start)).await;
    assert_eq!(titles.len(), 4);
    assert_eq!(titles[3], "merge topic");
    let position = |title: &str| titles.iter().position(|t| t == title).unwrap();
    assert!(position("t: 1") < position("t: 2"));
    assert!(position("m: 1") < 3);
}

#[tokio::test]
async fn after_a_force_push_commits_count_from_the_common_ancestor() {
    let (story, start) = Story::with_commit();
    let old = story.commit("a", "old\n");
    story.fetch(&[]).await.unwrap();
    story.git(["reset", "-q", "--hard", &start]);
    story.commit("a", "new 1\n");
    story.commit("a", "new 2\n");
    story.fetch(&[]).await.unwrap();
    let titles = story.titles("main", Some(&old)).await;
    assert_eq!(titles, ["a: new 1", "a: new 2"]);
    // Another history altogether: only its tip.
    story.git(["checkout", "-q", "--orphan", "fresh"]);
    story.commit("b", "1\n");
    story.commit("b", "2\n");
    story.fetch(&[]).await.unwrap();
    assert_eq!(story.titles("fresh", Some(&old)).await, ["b: 2"]);
}

#[tokio::test]
async fn a_thousand_commits_are_the_most_that_are_new_at_once() {
    let (story, start) = Story::with_commit();
    let mut commits = String::new();
    for number in 1..=1100 {
        let title = format!("c{number}");
        commits += &format!(
            "commit refs/heads/main\ncommitter A <a@b> {} +0000\ndata {}\n{title}\n",
            1_700_000_000 + number,
            title.len()
        );
        if number == 1 {
            commits += "from refs/heads/main^0\n";
        }
    }
    let mut import = Command::new("git")
        .args(["fast-import", "--quiet"])
        .current_dir(story.upstream())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = import.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, commits.as_bytes()).unwrap();
    drop(stdin);
    assert!(import.wait().unwrap().success());
    story.fetch(&[]).await.unwrap();
    let titles = story.titles("main", Some(&start)).await;
    assert_eq!(titles.len(), 1000);
    assert_eq!(titles[0], "c101");
    assert_eq!(titles[999], "c1100");
}

// Merging

#[tokio::test]
async fn a_merge_has_both_sides_and_the_same_sha_each_time() {
    let (story, _) = Story::with_commit();
    story.checkout("topic", "main");
    let head = story.commit("topic.txt", "topic\n");
    story.git(["checkout", "-q", "main"]);
    let base = story.commit("main.txt", "main\n");
    story.fetch(&[]).await.unwrap();
    let (sha, tree) = clean(story.merge(&base, &head).await);
    for path in ["README", "topic.txt", "main.txt"] {
        assert!(story.file(&sha, path).await.unwrap().is_some(), "{path}");
    }
    let parent = story.sources.parent(&story.repository, &sha).await;
    assert_eq!(parent.unwrap().as_ref(), Some(&base));
    let actual = git(&story.mirror(), ["rev-parse", &format!("{sha}^{{tree}}")]);
    assert_eq!(actual, tree);
    assert_eq!(story.changed(&base, &sha).await, b"topic.txt\n");
    // Another master, at another time.
    let other = Sources::new(story.dir.path().join("other"), None);
    other.fetch(&story.repository, &[]).await.unwrap();
    let again = other.merge(&story.repository, "main", "topic").await;
    assert_eq!(clean(again), (sha, tree));
}

#[tokio::test]
async fn a_conflict_names_its_files() {
    let (story, _) = Story::with_commit();
    const NAME: &str = "with space \u{e4}";
    story.write("dir/b", "b\n");
    story.write(NAME, "1\n");
    story.write("fine", "1\n2\n3\n4\n5\n");
    story.commit_all("start");
    story.checkout("topic", "main");
    story.write("README", "theirs\n");
    story.write("fine", "0\n2\n3\n4\n5\n");
    story.write(NAME, "3\n");
    story.git(["rm", "-q", "dir/b"]);
    let head = story.commit_all("topic");
    story.git(["checkout", "-q", "main"]);
    story.write("README", "ours\n");
    story.write("fine", "1\n2\n3\n4\n6\n");
    story.write(NAME, "2\n");
    story.write("dir/b", "changed\n");
    let base = story.commit_all("main");
    story.fetch(&[]).await.unwrap();
    assert_eq!(
        story.merge(&base, &head).await.unwrap(),
        Merge::Conflict {
            files: vec!["README".into(), "dir/b".into(), NAME.into()]
        }
    );
}

#[tokio::test]
async fn a_merge_that_brings_nothing_is_one_of_the_two() {
    let (story, old) = Story::with_commit();
    let new = story.commit("a", "1\n");
    story.fetch(&[]).await.unwrap();
    let expected = (new.clone(), story.git(["rev-parse", "HEAD^{tree}"]));
    for (base, head) in [(&old, &new), (&new, &old), (&new, &new)] {
        assert_eq!(clean(story.merge(base, head).await), expected);
    }
}

#[tokio::test]
async fn histories_without_a_common_commit_are_not_merged() {
    let (story, base) = Story::with_commit();
    story.git(["checkout", "-q", "--orphan", "other"]);
    let head = story.commit("other", "1\n");
    story.fetch(&[]).await.unwrap();
    let error = story.merge(&base, &head).await.unwrap_err();
    assert!(matches!(error, SourceError::Unrelated { .. }), "{error}");
    assert!(error.is_final());
}

// Files

#[tokio::test]
async fn only_a_plain_file_of_the_commit_is_read() {
    let (story, _) = Story::with_commit();
    story.write(".vivarium.toml", "[suite]\n");
    story.write("dir/file", "deep\n");
    story.write("empty", "");
    story.write("large", &"x".repeat((1 << 20) + 1));
    story.write("just", &"x".repeat(1 << 20));
    symlink("/etc/passwd", story.upstream().join("link")).unwrap();
    symlink("dir", story.upstream().join("dirlink")).unwrap();
    let sha = story.commit_all("files");
    story.fetch(&[&sha]).await.unwrap();
    for (path, content) in [
        (".vivarium.toml", "[suite]\n"),
        ("dir/file", "deep\n"),
        ("empty", ""),
        ("just", &"x".repeat(1 << 20)),
    ] {
        let file = story.file(&sha, path).await.unwrap().unwrap();
        assert!(file == content.as_bytes(), "{path}");
    }
    let by_branch = story.file("main", "dir/file").await.unwrap();
    assert_eq!(by_branch.unwrap(), b"deep\n");
    for missing in ["nosuch", "dir/nosuch", "dirlink/file", "*", ":(top)README"] {
        let file = story.file(&sha, missing).await.unwrap();
        assert_eq!(file, None, "{missing}");
    }
    for (path, why) in [
        ("link", "symbolic link"),
        ("dirlink", "symbolic link"),
        ("dir", "folder"),
        ("large", "1048577 bytes"),
        ("../x", "top of the tree"),
        ("/etc/passwd", "top of the tree"),
        ("dir/", "top of the tree"),
        ("a\nb", "no path"),
    ] {
        let error = story.file(&sha, path).await.unwrap_err();
        assert!(
            error.is_final() && error.to_string().contains(why),
            "{error}"
        );
    }
}

#[tokio::test]
async fn changed_files_are_one_a_line_in_their_own_encoding() {
    let (story, base) = Story::with_commit();
    story.write(OsStr::from_bytes(b"latin-\xe9"), "1");
    story.write("with space", "1");
    story.write("line\nbreak", "1");
    story.write("dir/new", "1");
    std::fs::remove_file(story.upstream().join("README")).unwrap();
    let sha = story.commit_all("names");
    story.fetch(&[&sha]).await.unwrap();
    assert_eq!(
        story.changed(&base, &sha).await,
        b"README\ndir/new\nlatin-\xe9\nline?break\nwith space\n"
    );
    assert!(story.changed(&sha, &sha).await.is_empty());
    let folder = story.unpack(&sha).await;
    assert!(folder.join(OsStr::from_bytes(b"latin-\xe9")).exists());
}

#[tokio::test]
async fn a_long_list_of_changed_files_ends_after_a_whole_line() {
    let (story, base) = Story::with_commit();
    let long = "x".repeat(200);
    for number in 0..6000 {
        story.write(format!("{long}-{number:04}"), "");
    }
    let sha = story.commit_all("many");
    story.fetch(&[&sha]).await.unwrap();
    let changed = story.changed(&base, &sha).await;
    assert!(changed.len() <= 1 << 20 && changed.len() > (1 << 20) - 300);
    assert!(changed.ends_with(b"\n"));
    assert!(changed.split(|byte| *byte == b'\n').count() > 5000);
}

#[tokio::test]
async fn an_archive_is_the_commit_whatever_its_attributes_say() {
    let (story, _) = Story::with_commit();
    story.write(
        ".gitattributes",
        "[attr]hidden export-ignore\n\
         secret hidden\n\
         dir export-ignore\n\
         README export-ignore\n\
         subst export-subst\n\
         *.bat eol=crlf\n\
         .gitattributes export-ignore\n",
    );
    story.write("dir/.gitattributes", "* export-ignore export-subst\n");
    story.write("dir/file", "$Format:%H$\n");
    story.write("secret", "1\n");
    story.write("subst", "$Format:%H$\n");
    story.write("run.bat", "echo\n");
    story.write("run", "#!/bin/sh\n");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(story.upstream().join("run"), executable).unwrap();
    symlink("run", story.upstream().join("link")).unwrap();
    let sha = story.commit_all("attributes");
    story.fetch(&[&sha]).await.unwrap();
    let folder = story.unpack(&sha).await;
    for (path, content) in [
        ("README", "hello\n"),
        ("secret", "1\n"),
        ("subst", "$Format:%H$\n"),
        ("dir/file", "$Format:%H$\n"),
        ("dir/.gitattributes", "* export-ignore export-subst\n"),
        // As a checkout has it.
        ("run.bat", "echo\r\n"),
    ] {
        let file = std::fs::read_to_string(folder.join(path)).unwrap();
        assert_eq!(file, content, "{path}");
    }
    assert!(folder.join(".gitattributes").exists());
    let link = std::fs::read_link(folder.join("link")).unwrap();
    assert_eq!(link, Path::new("run"));
    for (path, mode) in [("run", 0o755), ("README", 0o644)] {
        let metadata = std::fs::metadata(folder.join(path)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
    }
}

#[tokio::test]
async fn a_submodule_is_an_empty_folder() {
    let (story, sha) = Story::with_commit();
    story.git([
        "update-index",
        "--add",
        "--cacheinfo",
        &format!("160000,{sha},sub"),
    ]);
    story.git(["commit", "-q", "-m", "submodule"]);
    let sha = story.git(["rev-parse", "HEAD"]);
    story.fetch(&[&sha]).await.unwrap();
    let folder = story.unpack(&sha).await;
    assert_eq!(std::fs::read_dir(folder.join("sub")).unwrap().count(), 0);
    let error = story.file(&sha, "sub").await.unwrap_err();
    assert!(error.to_string().contains("submodule"), "{error}");
}

#[tokio::test]
async fn an_archive_that_is_not_read_to_its_end_is_not_whole() {
    let (story, _) = Story::with_commit();
    let sha = story.commit("large", &"0123456789\n".repeat(1 << 20));
    story.fetch(&[&sha]).await.unwrap();
    let mut archive = story
        .sources
        .archive(&story.repository, &sha)
        .await
        .unwrap();
    archive.read_exact(&mut [0; 512]).await.unwrap();
    let error = archive.finish().await.unwrap_err();
    assert!(error.to_string().contains("not read to its end"), "{error}");
}

#[tokio::test]
async fn a_damaged_commit_makes_no_whole_archive() {
    let (story, _) = Story::with_commit();
    let sha = story.commit("large", &numbers());
    story.fetch(&[&sha]).await.unwrap();
    truncate_packs(&story.mirror());
    let error = match story.sources.archive(&story.repository, &sha).await {
        Err(error) => error,
        Ok(mut archive) => {
            archive.read_to_end(&mut Vec::new()).await.unwrap();
            archive.finish().await.unwrap_err()
        }
    };
    assert!(matches!(error, SourceError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_bundle_is_a_repository_with_history_and_tags() {
    let (story, _) = Story::with_commit();
    story.git(["tag", "-a", "v1.0", "-m", "one"]);
    story.checkout("topic", "main");
    story.commit("topic.txt", "1\n");
    story.git(["tag", "light"]);
    let head = story.commit("topic.txt", "2\n");
    story.git(["checkout", "-q", "main"]);
    let base = story.commit("main.txt", "1\n");
    story.git(["tag", "ahead"]);
    story.fetch(&[]).await.unwrap();
    let (merged, _) = clean(story.merge(&base, &head).await);
    let dir = story.dir.path();
    for (sha, reference, branch, tags) in [
        (&merged, "refs/pull/5/head", "", "ahead\nlight\nv1.0"),
        (&head, "topic", "topic", "light\nv1.0"),
        (&head, "refs/tags/light", "", "light\nv1.0"),
    ] {
        let bundle = story.sources.bundle(&story.repository, sha, reference);
        let mut bundle = bundle.await.unwrap();
        let mut bytes = Vec::new();
        bundle.read_to_end(&mut bytes).await.unwrap();
        bundle.finish().await.unwrap();
        std::fs::write(dir.join("b.bundle"), bytes).unwrap();
        git(dir, ["clone", "-q", "b.bundle", "cloned"]);
        let cloned = dir.join("cloned");
        assert_eq!(&git(&cloned, ["rev-parse", "HEAD"]), sha);
        assert_eq!(git(&cloned, ["branch", "--show-current"]), branch);
        assert_eq!(git(&cloned, ["tag"]), tags);
        assert!(git(&cloned, ["describe"]).starts_with("v1.0-"));
        git(&cloned, ["fsck", "--strict"]);
        std::fs::remove_dir_all(cloned).unwrap();
    }
    // No ref was needed in the mirror.
    assert!(!git(&story.mirror(), ["for-each-ref"]).contains(&merged));
}

#[test]
fn the_examples_of_the_reference_are_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/repository-file.md");
    let text = std::fs::read_to_string(path).unwrap();
    let examples: Vec<&str> = text
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .collect();
    assert_eq!(examples.len(), 3);
    for example in examples {
        RepositoryFile::parse(example).unwrap_or_else(|error| panic!("{error}\n{example}"));
    }
}

// Over HTTP

mod http {
    use super::*;
    use axum::Router;
    use axum::body::{Body, Bytes};
    use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
    use axum::routing::any;
    use base64::Engine;
    use std::net::SocketAddr;
    use std::sync::Arc;
    use tokio::io::AsyncWriteExt;
    use tokio::sync::Notify;

    const TOKEN: &str = "ghs_1234567890_secret";

    async fn serve(router: Router) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }

    /// Whether any process has the text among its arguments.
    fn is_in_process_list(text: &str) -> bool {
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            .any(|line| String::from_utf8_lossy(&line).contains(text))
    }

    /// Serves the repositories below `root` to those who show the token.
    async fn git_server(root: PathBuf) -> SocketAddr {
        let handler = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let root = root.clone();
            async move {
                let pair = base64::engine::general_purpose::STANDARD
                    .encode(format!("x-access-token:{TOKEN}"));
                assert!(!is_in_process_list(TOKEN) && !is_in_process_list(&pair));
                let wanted = format!("Basic {pair}");
                let header = |name: &str| {
                    headers
                        .get(name)
                        .and_then(|value| value.to_str().ok())
                        .unwrap_or_default()
                        .to_owned()
                };
                if header("authorization") != wanted {
                    return Response::builder()
                        .status(StatusCode::UNAUTHORIZED)
                        .header(header::WWW_AUTHENTICATE, "Basic realm=\"git\"")
                        .body(Body::empty())
                        .unwrap();
                }
                let mut backend = tokio::process::Command::new("git")
                    .args(["-c", "safe.directory=*", "http-backend"])
                    .env("GIT_PROJECT_ROOT", &root)
                    .env("GIT_HTTP_EXPORT_ALL", "1")
                    .env("PATH_INFO", uri.path().replace("%20", " "))
                    .env("QUERY_STRING", uri.query().unwrap_or_default())
                    .env("REQUEST_METHOD", method.as_str())
                    .env("CONTENT_TYPE", header("content-type"))
                    .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
                    .env("GIT_PROTOCOL", header("git-protocol"))
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap();
                let mut stdin = backend.stdin.take().unwrap();
                tokio::spawn(async move { stdin.write_all(&body).await });
                let output = backend.wait_with_output().await.unwrap().stdout;
                let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
                let mut response = Response::builder();
                for line in String::from_utf8_lossy(&output[..end]).lines() {
                    let (name, value) = line.split_once(": ").unwrap();
                    response = match name {
                        "Status" => response.status(value[..3].parse::<u16>().unwrap()),
                        name => response.header(name, value),
                    };
                }
                response
                    .body(Body::from(output[end + 4..].to_vec()))
                    .unwrap()
            }
        };
        serve(Router::new().fallback(any(handler))).await
    }

    #[tokio::test]
    async fn the_token_is_shown_to_the_server_and_nobody_else() {
        let (story, sha) = Story::with_commit();
        story.git(["update-ref", "refs/pull/7/head", &sha]);
        let address = git_server(story.dir.path().to_owned()).await;
        let sources = Sources::new(
            story.dir.path().join("mirrors"),
            Some(Credentials::token(TOKEN)),
        );
        let private = repository("owner/name", &format!("http://{address}/up%20stream/.git"));
        sources
            .fetch(&private, &[&sha, "refs/pull/7/head"])
            .await
            .unwrap();
        let next = story.commit("a", "1\n");
        sources.fetch(&private, &[&next]).await.unwrap();
        for file in ["mirrors/owner+name.git/config", "mirrors/gitconfig"] {
            let text = std::fs::read_to_string(story.dir.path().join(file)).unwrap();
            assert!(!text.contains(TOKEN) && !text.contains("Authorization"));
        }
        // A sha that the server does not have is asked for twice: it may be behind its own webhook.
        let error = sources.fetch(&private, &[UNKNOWN]).await.unwrap_err();
        assert!(matches!(error, SourceError::NotFound { .. }), "{error}");
        let error = sources
            .fetch(
                &repository("owner/none", &format!("http://{address}/none.git")),
                &[],
            )
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_password_in_the_address_works_and_stays_hidden() {
        let (story, sha) = Story::with_commit();
        let address = git_server(story.dir.path().to_owned()).await;
        let url = |token: &str| format!("http://x-access-token:{token}@{address}/up%20stream/.git");
        let right = repository("owner/name", &url(TOKEN));
        story.sources.fetch(&right, &[&sha]).await.unwrap();
        let wrong = repository("owner/wrong", &url("wr0ng"));
        let error = story.sources.fetch(&wrong, &[&sha]).await.unwrap_err();
        assert!(matches!(error, SourceError::Unreachable { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("the token may read") && !text.contains("wr0ng"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn what_the_server_says_is_shown_without_the_token() {
        let gossip = move |headers: HeaderMap| async move {
            let shown = headers.get(header::AUTHORIZATION);
            let shown = shown.and_then(|value| value.to_str().ok()).unwrap_or("-");
            let response = Response::builder().status(StatusCode::FORBIDDEN);
            let response = response.header(header::CONTENT_TYPE, "text/plain");
            response
                .body(Body::from(format!("you sent {shown} or {TOKEN}")))
                .unwrap()
        };
        let address = serve(Router::new().fallback(any(gossip))).await;
        let dir = TempDir::new().unwrap();
        let sources = Sources::new(dir.path().into(), Some(Credentials::token(TOKEN)));
        let repository = repository("owner/name", &format!("http://{address}/x.git"));
        let error = sources.fetch(&repository, &[]).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("you sent Basic *** or ***"), "{text}");
        assert!(!format!("{error:?} {sources:?}").contains(TOKEN));
    }

    /// Tells when the connection it lives in is closed.
    struct TellsEnd(Arc<Notify>);

    impl Drop for TellsEnd {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn a_fetch_that_nobody_waits_for_ends() {
        let (asked, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell_asked, tell_ended) = (asked.clone(), ended.clone());
        let silent = move || {
            let (asked, end) = (tell_asked.clone(), TellsEnd(tell_ended.clone()));
            async move {
                asked.notify_one();
                std::future::pending::<()>().await;
                drop(end);
            }
        };
        let address = serve(Router::new().fallback(any(silent))).await;
        let dir = TempDir::new().unwrap();
        let sources = Sources::new(dir.path().into(), None);
        let repository = repository("owner/name", &format!("http://{address}/x.git"));
        tokio::select! {
            result = sources.fetch(&repository, &[]) => panic!("{result:?}"),
            () = asked.notified() => {}
        }
        // Git was ended, and with it its helper that held the connection.
        ended.notified().await;
    }
}
