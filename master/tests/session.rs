//! Sessions with the real thing: OpenSSH's sshd, started for each connection, and the real agent behind it.
//!
//! The listener is the test's own and hands each connection to `sshd -i`, so that a test knows every sshd's process,
//! can kill or freeze it, and leaves nothing behind.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use vivarium::model::{AgentKind, Architecture, OsFamily};
use vivarium::session::{
    Agent, Agents, Credential, Endpoint, FollowEvent, Following, GuestSpec, SessionError, Ssh,
};
use vivarium_protocol::{Execution, Exit, Frame, Hello, StepCommand, ToMaster};

/// Longer than anything here takes on a loaded machine: a test that gets here hangs.
const HANGS: Duration = Duration::from_secs(120);

/// What the listener does with the next connections.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Door {
    Sshd,
    CloseAtOnce,
}

struct Guest {
    dir: TempDir,
    port: u16,
    host_key: PathBuf,
    door: Arc<Mutex<Door>>,
    connections: Arc<Mutex<Vec<Child>>>,
    served: Arc<Mutex<u32>>,
    listener: tokio::task::JoinHandle<()>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.listener.abort();
        for child in self.connections.lock().unwrap().iter_mut() {
            child.start_kill().ok();
        }
    }
}

fn host_key_file(kind: &str) -> String {
    format!("host_{}", kind.replace(' ', ""))
}

/// `kind` may go on with more options, as in `ecdsa -b 384`.
async fn keygen(path: &Path, kind: &str) {
    let made = Command::new("ssh-keygen")
        .args(["-q", "-N", "", "-t"])
        .args(kind.split(' '))
        .arg("-f")
        .arg(path)
        .status();
    assert!(made.await.unwrap().success());
}

impl Guest {
    async fn start() -> Self {
        Self::with("", &["ed25519"], "ed25519").await
    }

    /// With lines for sshd_config, host keys of these kinds of which the last is pinned, and a client key.
    async fn with(config: &str, host_keys: &[&str], client_key: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("vivarium-session-")
            .tempdir()
            .unwrap();
        std::fs::create_dir_all("/run/sshd").ok();
        let mut lines = format!(
            "AuthorizedKeysFile {}/client.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
             KbdInteractiveAuthentication no\nPermitRootLogin yes\nPidFile none\nLogLevel ERROR\n{config}\n",
            dir.path().display()
        );
        for kind in host_keys {
            let path = dir.path().join(host_key_file(kind));
            keygen(&path, kind).await;
            lines.push_str(&format!("HostKey {}\n", path.display()));
        }
        keygen(&dir.path().join("client"), client_key).await;
        let config = dir.path().join("sshd_config");
        std::fs::write(&config, lines).unwrap();

        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let door = Arc::new(Mutex::new(Door::Sshd));
        let connections = Arc::new(Mutex::new(Vec::new()));
        let served = Arc::new(Mutex::new(0));
        let listener = tokio::spawn(listen(
            socket,
            config,
            Arc::clone(&door),
            Arc::clone(&connections),
            Arc::clone(&served),
        ));
        Self {
            host_key: dir
                .path()
                .join(host_key_file(host_keys.last().unwrap()) + ".pub"),
            dir,
            port,
            door,
            connections,
            served,
            listener,
        }
    }

    fn endpoint(&self) -> Endpoint {
        let user = nix::unistd::User::from_uid(nix::unistd::getuid());
        Endpoint {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            user: user.unwrap().unwrap().name,
            credential: Credential::Key(self.dir.path().join("client")),
            host_key: self.host_key.clone(),
            name: "vm-17".to_owned(),
            heartbeat: Duration::from_secs(5),
        }
    }

    fn spec(&self) -> GuestSpec {
        GuestSpec {
            os: OsFamily::Linux,
            arch: Architecture::X86_64,
            agent: None,
            state_dir: self.path("it's the state"),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    async fn connect(&self) -> Agent {
        within(Agent::connect(&self.endpoint(), &self.spec()))
            .await
            .unwrap()
    }

    async fn refusal(&self) -> SessionError {
        within(Agent::connect(&self.endpoint(), &self.spec()))
            .await
            .unwrap_err()
    }

    /// The newest connection's sshd.
    fn signal_sshd(&self, signal: Signal) {
        let connections = self.connections.lock().unwrap();
        let pid = connections.last().unwrap().id().unwrap();
        kill(Pid::from_raw(pid as i32), signal).unwrap();
    }

    fn served(&self) -> u32 {
        *self.served.lock().unwrap()
    }

    fn command(&self, script: &str) -> StepCommand {
        StepCommand {
            shell: vec!["/bin/sh".to_owned(), "-e".to_owned(), "-c".to_owned()],
            script: script.to_owned(),
            dir: self.dir.path().to_str().unwrap().to_owned(),
            env: BTreeMap::new(),
            spool_bytes: 16 * 1024 * 1024,
            pty: None,
        }
    }
}

async fn listen(
    socket: TcpListener,
    config: PathBuf,
    door: Arc<Mutex<Door>>,
    connections: Arc<Mutex<Vec<Child>>>,
    served: Arc<Mutex<u32>>,
) {
    loop {
        let (connection, _) = socket.accept().await.unwrap();
        *served.lock().unwrap() += 1;
        if *door.lock().unwrap() == Door::CloseAtOnce {
            continue;
        }
        let connection = connection.into_std().unwrap();
        connection.set_nonblocking(false).unwrap();
        let sshd = Command::new("/usr/sbin/sshd")
            .args(["-i", "-e", "-f"])
            .arg(&config)
            .stdin(Stdio::from(OwnedFd::from(connection.try_clone().unwrap())))
            .stdout(Stdio::from(OwnedFd::from(connection)))
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        connections.lock().unwrap().push(sshd);
    }
}

async fn within<T>(wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, wait).await.expect("it hangs")
}

fn id(name: &str) -> Execution {
    Execution(name.to_owned())
}

/// Bytes of every value, so that any mistake in order or length changes them.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Everything to the end, acknowledged as it comes.
async fn read_to_end(
    agent: &Agent,
    following: &mut Following,
    output: &mut Vec<u8>,
) -> Result<Exit, SessionError> {
    let execution = following.execution().clone();
    loop {
        match within(following.next()).await? {
            FollowEvent::Output { offset, bytes } => {
                assert_eq!(offset, output.len() as u64);
                output.extend_from_slice(&bytes);
                let until = output.len() as u64;
                agent.acknowledge(&execution, until).await?;
            }
            FollowEvent::Exited { exit, output_bytes } => {
                assert_eq!(output_bytes, output.len() as u64);
                return Ok(exit);
            }
        }
    }
}

/// Runs a command to its end and returns its output.
async fn run(agent: &Agent, name: &str, command: StepCommand) -> (Exit, Vec<u8>) {
    let mut following = within(agent.start(&id(name), command)).await.unwrap();
    let mut output = Vec::new();
    let exit = read_to_end(agent, &mut following, &mut output).await;
    (exit.unwrap(), output)
}

fn assert_same(one: &[u8], other: &[u8]) {
    assert_eq!(one.len(), other.len());
    assert!(one == other, "same length, other bytes");
}

// Commands.

#[tokio::test]
async fn a_command_runs_and_tells_its_output_and_its_end() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    assert_eq!(agent.hello().os, "linux");
    let command = guest.command("echo out; echo err >&2; exit 3");
    let mut following = agent.start(&id("job-1"), command).await.unwrap();
    let mut output = Vec::new();
    let exit = read_to_end(&agent, &mut following, &mut output).await;
    assert_eq!(exit.unwrap(), Exit::Code { code: 3 });
    assert_eq!(output, b"out\nerr\n");
    let after = within(following.next()).await;
    assert!(after.is_err(), "there is nothing after the end");
    within(agent.disconnect()).await;
    assert_eq!(guest.served(), 1, "all over one connection");
}

#[tokio::test]
async fn fifty_megabytes_arrive_byte_for_byte() {
    let guest = Guest::start().await;
    let content = noise(50_000_000);
    std::fs::write(guest.path("noise"), &content).unwrap();
    let agent = guest.connect().await;
    let (exit, output) = run(&agent, "big", guest.command("cat noise")).await;
    assert_eq!(exit, Exit::Code { code: 0 });
    assert_same(&output, &content);
}

#[tokio::test]
async fn a_command_that_ignores_the_wish_is_killed() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    let script = "trap '' TERM; echo ready; while true; do sleep 1; done";
    let mut following = agent
        .start(&id("deaf"), guest.command(script))
        .await
        .unwrap();
    let ready = within(following.next()).await.unwrap();
    assert!(matches!(ready, FollowEvent::Output { .. }));
    let grace = Duration::from_millis(100);
    agent.stop(&id("deaf"), grace).await.unwrap();
    let end = loop {
        match within(following.next()).await.unwrap() {
            FollowEvent::Output { .. } => {}
            FollowEvent::Exited { exit, .. } => break exit,
        }
    };
    assert_eq!(end, Exit::Signal { signal: 9 });
}

#[tokio::test]
async fn the_same_id_again_attaches_and_what_is_unknown_or_refused_is_told() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    let command = guest.command("echo once >> ran; echo done");
    for _ in 0..2 {
        let mut following = agent.start(&id("once"), command.clone()).await.unwrap();
        let mut output = Vec::new();
        while let FollowEvent::Output { bytes, .. } = within(following.next()).await.unwrap() {
            output.extend_from_slice(&bytes);
        }
        assert_eq!(output, b"done\n");
    }
    let ran = std::fs::read_to_string(guest.path("ran")).unwrap();
    assert_eq!(ran, "once\n");
    assert!(agent.attach(&id("never"), 0).await.unwrap().is_none());

    let error = agent.start(&id("../x"), command.clone()).await.unwrap_err();
    assert!(matches!(error, SessionError::Refused { .. }), "{error}");
    let nowhere = StepCommand {
        dir: "/nowhere".to_owned(),
        ..command
    };
    let error = match agent.start(&id("nowhere"), nowhere).await {
        Ok(mut following) => within(following.next()).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(matches!(error, SessionError::Refused { .. }), "{error}");
    assert!(!error.is_fatal());
    let (exit, _) = run(&agent, "after", guest.command("true")).await;
    assert_eq!(exit, Exit::Code { code: 0 });
}

#[tokio::test]
async fn another_execution_takes_the_place_of_the_one_followed() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    let script = "echo 1; while [ ! -e go ]; do sleep 0.05; done; echo 2";
    let mut first = agent
        .start(&id("first"), guest.command(script))
        .await
        .unwrap();
    within(first.next()).await.unwrap();
    let (_, output) = run(&agent, "second", guest.command("echo other")).await;
    assert_eq!(output, b"other\n");
    let error = within(first.next()).await.unwrap_err();
    assert!(!error.is_fatal(), "{error}");
    std::fs::write(guest.path("go"), "").unwrap();
    let mut again = agent.attach(&id("first"), 2).await.unwrap().unwrap();
    let event = within(again.next()).await.unwrap();
    let bytes = "2\n".into();
    assert_eq!(event, FollowEvent::Output { offset: 2, bytes });
}

// Who is at the other end.

#[tokio::test]
async fn another_host_key_is_refused_and_the_pinning_file_named() {
    let mut guest = Guest::start().await;
    guest.host_key = guest.dir.path().join("pinned.pub");
    keygen(&guest.dir.path().join("pinned"), "ed25519").await;
    let error = guest.refusal().await;
    assert!(matches!(error, SessionError::HostKey { .. }), "{error}");
    let sentence = error.to_string();
    assert!(
        sentence.contains("pinned.pub") && sentence.contains("vm-17"),
        "{sentence}"
    );
    assert_eq!(guest.served(), 1, "waiting does not mend it");
}

#[tokio::test]
async fn a_host_key_of_another_kind_is_refused() {
    let mut guest = Guest::start().await;
    guest.host_key = guest.dir.path().join("pinned.pub");
    keygen(&guest.dir.path().join("pinned"), "ecdsa").await;
    let error = guest.refusal().await;
    assert!(matches!(error, SessionError::HostKey { .. }), "{error}");
    assert!(error.to_string().contains("pinned.pub"), "{error}");
}

#[tokio::test]
async fn rsa_and_ecdsa_keys_work_and_the_pinned_one_of_several_is_asked_for() {
    for (host_keys, client_key) in [(["ed25519", "rsa"], "rsa"), (["ed25519", "ecdsa"], "ecdsa")] {
        let guest = Guest::with("", &host_keys, client_key).await;
        guest.connect().await;
    }
}

/// As sshd was ten years ago, on systems whose updates have ended: neither Ed25519 nor Curve25519, no GCM.
#[tokio::test]
async fn an_old_server_with_nist_curves_alone_will_do() {
    for curve in ["256", "384", "521"] {
        let config = format!(
            "HostKeyAlgorithms ecdsa-sha2-nistp{curve}\nPubkeyAcceptedAlgorithms ecdsa-sha2-nistp{curve}\n\
             KexAlgorithms ecdh-sha2-nistp{curve}\nCiphers aes128-ctr\nMACs hmac-sha2-256"
        );
        let kind = format!("ecdsa -b {curve}");
        let guest = Guest::with(&config, &[&kind], &kind).await;
        let agent = guest.connect().await;
        let (exit, output) = run(&agent, "old", guest.command("echo hello")).await;
        assert_eq!(
            (exit, &output[..]),
            (Exit::Code { code: 0 }, &b"hello\n"[..])
        );
    }
}

#[tokio::test]
async fn a_password_is_not_offered_where_only_keys_are_taken_and_the_file_is_named() {
    let guest = Guest::start().await;
    let file = guest.dir.path().join("password");
    std::fs::write(&file, "open sesame\n").unwrap();
    let endpoint = Endpoint {
        credential: Credential::Password(file.clone()),
        ..guest.endpoint()
    };
    let error = within(Agent::connect(&endpoint, &guest.spec()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SessionError::Authentication { .. }),
        "{error}"
    );
    let sentence = error.to_string();
    assert!(sentence.contains("the password in "), "{sentence}");
    assert!(sentence.contains("/password: "), "{sentence}");
    assert!(!sentence.contains("sesame"), "{sentence}");
    std::fs::write(&file, "\n").unwrap();
    let error = within(Agent::connect(&endpoint, &guest.spec()))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("it holds no password"),
        "{error}"
    );
}

#[tokio::test]
async fn a_client_key_that_nobody_knows_is_refused() {
    let guest = Guest::start().await;
    keygen(&guest.dir.path().join("other"), "ed25519").await;
    let endpoint = Endpoint {
        credential: Credential::Key(guest.dir.path().join("other")),
        ..guest.endpoint()
    };
    let error = within(Agent::connect(&endpoint, &guest.spec()))
        .await
        .unwrap_err();
    assert!(
        matches!(error, SessionError::Authentication { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("/other"), "{error}");
}

#[tokio::test]
async fn a_key_file_that_is_none_is_named() {
    let guest = Guest::start().await;
    let pairs = [
        ("none", "host_ed25519.pub"),
        ("client", "none"),
        ("sshd_config", "host_ed25519.pub"),
    ];
    for (key, host_key) in pairs {
        let endpoint = Endpoint {
            credential: Credential::Key(guest.dir.path().join(key)),
            host_key: guest.dir.path().join(host_key),
            ..guest.endpoint()
        };
        let error = within(Agent::connect(&endpoint, &guest.spec()))
            .await
            .unwrap_err();
        assert!(matches!(error, SessionError::KeyFile { .. }), "{error}");
    }
    assert_eq!(guest.served(), 0);
}

#[tokio::test]
async fn a_guest_without_an_agent_is_not_even_connected_to() {
    let guest = Guest::start().await;
    let spec = GuestSpec {
        os: OsFamily::Windows,
        arch: Architecture::Aarch64,
        agent: None,
        state_dir: "x".to_owned(),
    };
    let error = within(Agent::connect(&guest.endpoint(), &spec))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("no agent for windows/aarch64"),
        "{error}"
    );
    assert_eq!(guest.served(), 0);
}

// Getting there.

#[tokio::test]
async fn nobody_listening_is_waited_for_until_patience_ends() {
    let guest = Guest::start().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint {
        port: closed.local_addr().unwrap().port(),
        ..guest.endpoint()
    };
    drop(closed);
    let patience = Duration::from_secs(2);
    let spec = guest.spec();
    let tried = Agent::connect_within(&endpoint, &spec, patience);
    let error = within(tried).await.unwrap_err();
    assert!(matches!(error, SessionError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn an_sshd_that_closes_at_once_is_waited_for() {
    let guest = Guest::start().await;
    *guest.door.lock().unwrap() = Door::CloseAtOnce;
    let opened = async {
        while guest.served() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        *guest.door.lock().unwrap() = Door::Sshd;
    };
    let (agent, ()) = tokio::join!(guest.connect(), opened);
    assert_eq!(agent.hello().os, "linux");
    assert_eq!(guest.served(), 3);
}

#[tokio::test]
async fn a_given_up_connection_is_closed() {
    let guest = Guest::with("ForceCommand sleep 300", &["ed25519"], "ed25519").await;
    let patience = Duration::from_secs(2);
    let (endpoint, spec) = (guest.endpoint(), guest.spec());
    let tried = Agent::connect_within(&endpoint, &spec, patience);
    let error = tried.await.unwrap_err();
    assert!(matches!(error, SessionError::Unreachable { .. }), "{error}");
    let sshd = guest.connections.lock().unwrap().pop();
    within(sshd.expect("it was reached").wait()).await.unwrap();
}

#[tokio::test]
async fn a_dropped_session_is_closed_and_its_command_goes_on() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    let script = "while [ ! -e go ]; do sleep 0.05; done; echo went on";
    let following = agent.start(&id("on"), guest.command(script)).await.unwrap();
    drop(agent);
    let sshd = guest.connections.lock().unwrap().pop();
    within(sshd.unwrap().wait()).await.unwrap();
    drop(following);
    std::fs::write(guest.path("go"), "").unwrap();
    let agent = guest.connect().await;
    let mut following = agent.attach(&id("on"), 0).await.unwrap().unwrap();
    let mut output = Vec::new();
    let exit = read_to_end(&agent, &mut following, &mut output).await;
    assert_eq!(exit.unwrap(), Exit::Code { code: 0 });
    assert_eq!(output, b"went on\n");
}

#[tokio::test]
async fn the_agent_is_pushed_once() {
    use std::os::unix::fs::MetadataExt;
    let guest = Guest::start().await;
    let pushed = || {
        let entries = std::fs::read_dir(guest.spec().state_dir).unwrap();
        let mut agents = Vec::new();
        for entry in entries.map(Result::unwrap) {
            if entry.file_name().to_str().unwrap().starts_with("agent-") {
                agents.push((entry.file_name(), entry.metadata().unwrap().ino()));
            }
        }
        agents
    };
    guest.connect().await;
    let first = pushed();
    assert_eq!(first.len(), 1, "{first:?}");
    guest.connect().await;
    assert_eq!(pushed(), first);
    assert_eq!(guest.served(), 2, "each time over one connection");
}

/// Where the agent was pushed to.
fn pushed(guest: &Guest) -> PathBuf {
    let mut entries = std::fs::read_dir(guest.spec().state_dir).unwrap();
    let agent = entries.find_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with("agent-").then_some(path)
    });
    agent.unwrap()
}

#[tokio::test]
async fn an_agent_that_came_half_is_replaced() {
    let guest = Guest::start().await;
    guest.connect().await;
    let agent = pushed(&guest);
    std::fs::remove_file(&agent).unwrap();
    std::fs::write(&agent, "half").unwrap();
    let session = guest.connect().await;
    let (_, output) = run(&session, "after", guest.command("echo ok")).await;
    assert_eq!(output, b"ok\n");
}

#[tokio::test]
async fn an_agent_that_is_not_what_was_sent_any_more_is_replaced() {
    let guest = Guest::start().await;
    guest.connect().await;
    let agent = pushed(&guest);
    let whole = std::fs::read(&agent).unwrap();
    // As a machine has it whose power went before its disk had all: executable, as long as it was, and partly zero.
    let mut torn = whole.clone();
    let middle = torn.len() / 2;
    torn[middle..].fill(0);
    // Another file in its place: the first may still run.
    std::fs::remove_file(&agent).unwrap();
    std::fs::write(&agent, torn).unwrap();
    std::fs::set_permissions(&agent, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    guest.connect().await;
    assert_same(&std::fs::read(&agent).unwrap(), &whole);
}

#[tokio::test]
async fn an_agent_that_is_stored_wrongly_is_not_started() {
    let programs = tempfile::tempdir().unwrap();
    let gzip = programs.path().join("gzip");
    std::fs::write(&gzip, "#!/bin/sh\n/bin/gzip \"$@\" | tr '\\001' '\\002'\n").unwrap();
    std::fs::set_permissions(&gzip, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let faulty = format!(
        "ForceCommand PATH={}:$PATH exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"",
        programs.path().display()
    );
    let guest = Guest::with(&faulty, &["ed25519"], "ed25519").await;
    let sentence = guest.refusal().await.to_string();
    assert!(
        sentence.contains("is not the agent that was sent: its SHA-256 should be"),
        "{sentence}"
    );
}

/// What a shell's path leads to on this machine.
fn link_programs(folder: &Path, programs: &[&str]) {
    for program in programs {
        let path = std::env::var_os("PATH").unwrap();
        let there = std::env::split_paths(&path)
            .map(|folder| folder.join(program))
            .find(|path| path.is_file());
        std::os::unix::fs::symlink(there.unwrap(), folder.join(program)).unwrap();
    }
}

#[tokio::test]
async fn a_guest_without_gzip_gets_its_agent_plain() {
    let programs = tempfile::tempdir().unwrap();
    link_programs(programs.path(), &["sh", "mkdir", "head", "wc", "chmod"]);
    let bare = format!(
        "ForceCommand PATH={} exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"",
        programs.path().display()
    );
    let guest = Guest::with(&bare, &["ed25519"], "ed25519").await;
    for name in ["first", "second"] {
        let agent = guest.connect().await;
        let (_, output) = run(&agent, name, guest.command("echo ok")).await;
        assert_eq!(output, b"ok\n");
    }
}

#[tokio::test]
async fn what_login_scripts_print_is_skipped() {
    let noisy = "ForceCommand head -c 30000 /dev/urandom; echo; echo 'Welcome!' >&2; \
                 exec /bin/sh -c \"$SSH_ORIGINAL_COMMAND\"";
    let guest = Guest::with(noisy, &["ed25519"], "ed25519").await;
    for name in ["first", "second"] {
        let agent = guest.connect().await;
        let (_, output) = run(&agent, name, guest.command("echo ok")).await;
        assert_eq!(output, b"ok\n");
    }
}

#[tokio::test]
async fn a_guest_that_only_talks_is_given_up() {
    let guest = Guest::with("ForceCommand yes", &["ed25519"], "ed25519").await;
    let error = guest.refusal().await;
    assert!(matches!(error, SessionError::Agent { .. }), "{error}");
}

#[tokio::test]
async fn a_shell_that_ends_tells_what_it_said() {
    let forced = "ForceCommand echo no such account >&2; exit 9";
    let guest = Guest::with(forced, &["ed25519"], "ed25519").await;
    let sentence = guest.refusal().await.to_string();
    assert!(
        sentence.contains("no such account") && sentence.contains("status 9"),
        "{sentence}"
    );
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_made_is_told() {
    let guest = Guest::start().await;
    let spec = GuestSpec {
        state_dir: guest.path("client/below-a-file"),
        ..guest.spec()
    };
    let error = within(Agent::connect(&guest.endpoint(), &spec))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("cannot create directory"),
        "{error}"
    );
}

#[tokio::test]
async fn the_agent_in_sh_works_where_it_is_asked_for() {
    let guest = Guest::start().await;
    let spec = GuestSpec {
        agent: Some(AgentKind::Sh),
        ..guest.spec()
    };
    let agent = within(Agent::connect(&guest.endpoint(), &spec))
        .await
        .unwrap();
    assert!(agent.hello().agent_version.ends_with("-sh"));
    let script = "echo out; while [ ! -e go ]; do sleep 0.05; done; echo went on; exit 3";
    drop(
        agent
            .start(&id("job"), guest.command(script))
            .await
            .unwrap(),
    );
    drop(agent);
    std::fs::write(guest.path("go"), "").unwrap();
    let agent = within(Agent::connect(&guest.endpoint(), &spec))
        .await
        .unwrap();
    let mut following = agent.attach(&id("job"), 0).await.unwrap().unwrap();
    let mut output = Vec::new();
    let exit = read_to_end(&agent, &mut following, &mut output).await;
    assert_eq!(exit.unwrap(), Exit::Code { code: 3 });
    assert_eq!(output, b"out\nwent on\n");
    assert!(
        std::fs::read(pushed(&guest))
            .unwrap()
            .starts_with(b"#!/bin/sh\n")
    );
}

#[tokio::test]
async fn where_the_native_agent_does_not_start_the_one_in_sh_does() {
    let guest = Guest::start().await;
    let folder = tempfile::tempdir().unwrap();
    let program = b"no program of this system";
    let sums = format!("{}  netbsd-x86_64\n", hex::encode(Sha256::digest(program)));
    std::fs::write(folder.path().join("netbsd-x86_64"), program).unwrap();
    std::fs::write(folder.path().join("SHA256SUMS"), sums).unwrap();
    let (agents, beside) = Agents::open(Some(folder.path()));
    assert_eq!(beside.refused, [""; 0]);
    let ssh = Ssh { agents };
    let spec = GuestSpec {
        os: OsFamily::Netbsd,
        ..guest.spec()
    };
    let endpoint = guest.endpoint();
    let agent = within(Agent::connect_by(&ssh, &endpoint, &spec))
        .await
        .unwrap();
    assert!(agent.hello().agent_version.ends_with("-sh"));
    assert_eq!(guest.served(), 1, "all over one connection");
    let native = GuestSpec {
        agent: Some(AgentKind::Native),
        ..spec
    };
    let error = within(Agent::connect_by(&ssh, &endpoint, &native))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("could not be started"),
        "{error}"
    );
}

// An agent that is not ours.

/// A guest whose agent greets and then, once something is asked of it, says this and no more.
async fn guest_that_says(frames: &[u8]) -> (Guest, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap();
    let hello = Frame::to_master(&ToMaster::Hello(Hello {
        protocol: vivarium_protocol::PROTOCOL_VERSION,
        agent_version: "0".to_owned(),
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        pid: 1,
        unix_ms: now.as_millis() as u64,
    }));
    // The clock may have been asked for when much time has passed.
    let clock = Frame::to_master(&ToMaster::ClockSet { stepped_ms: 0 });
    std::fs::write(folder.path().join("hello"), hello.into_bytes()).unwrap();
    let said = [clock.into_bytes(), frames.to_vec()].concat();
    std::fs::write(folder.path().join("said"), said).unwrap();
    let script = "set -f; for nonce in $SSH_ORIGINAL_COMMAND; do :; done; cd \"$(dirname \"$0\")\"\n\
                  printf 'VIVARIUM-PUSH %s HAVE\\n\\nVIVARIUM-AGENT %s\\n' $nonce $nonce\n\
                  cat hello; head -c 1 >/dev/null; cat said; exec sleep 300\n";
    let agent = folder.path().join("agent");
    std::fs::write(&agent, script).unwrap();
    let config = format!("ForceCommand sh {}", agent.display());
    (Guest::with(&config, &["ed25519"], "ed25519").await, folder)
}

#[tokio::test]
async fn an_agent_that_does_not_speak_the_protocol_is_known_for_it() {
    let message = |message: &ToMaster| Frame::to_master(message).into_bytes();
    let skipped = Vec::new();
    let stray = ToMaster::Collected {
        files: 0,
        bytes: 0,
        skipped,
    };
    let started = ToMaster::Started {
        execution: id("nobodys"),
        state: vivarium_protocol::ExecutionState::New,
    };
    for said in [
        // Four GiB, nothing at all, and what is longer than its kind may be.
        b"\xff\xff\xff\xff\x00{".to_vec(),
        b"\0\0\0\0".to_vec(),
        b"\0\x04\x00\x05\x00".to_vec(),
        // An unknown kind; output without a place.
        b"\0\0\0\x02\x09x".to_vec(),
        b"\0\0\0\x02\x01x".to_vec(),
        Frame::Control(b"{\"type\":\"started\"}".to_vec()).into_bytes(),
        Frame::Data(b"of no file".to_vec()).into_bytes(),
        message(&stray),
        message(&started),
    ] {
        let (guest, _folder) = guest_that_says(&said).await;
        let agent = guest.connect().await;
        let reason = within(agent.closed()).await;
        let error = agent.start(&id("x"), guest.command("true")).await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, SessionError::Protocol { .. }),
            "{said:?}: {reason}: {error}"
        );
    }
}

// Losing it.

#[tokio::test]
async fn a_lost_connection_loses_no_byte() {
    let guest = Guest::start().await;
    let content = noise(3_000_000);
    std::fs::write(guest.path("noise"), &content).unwrap();
    let script =
        "head -c 1000000 noise; while [ ! -e go ]; do sleep 0.05; done; tail -c +1000001 noise";
    let agent = guest.connect().await;
    let mut following = agent
        .start(&id("long"), guest.command(script))
        .await
        .unwrap();
    let mut output = Vec::new();
    while output.len() < 500_000 {
        match within(following.next()).await.unwrap() {
            FollowEvent::Output { bytes, .. } => output.extend_from_slice(&bytes),
            other @ FollowEvent::Exited { .. } => panic!("{other:?}"),
        }
    }
    let stored = output.len() as u64;
    agent.acknowledge(&id("long"), stored).await.unwrap();
    guest.signal_sshd(Signal::SIGKILL);
    let reason = within(agent.closed()).await;
    assert!(!reason.is_empty());
    let lost = loop {
        match within(following.next()).await {
            Ok(FollowEvent::Output { offset, bytes }) => {
                assert_eq!(offset, output.len() as u64);
                output.extend_from_slice(&bytes);
            }
            Ok(other @ FollowEvent::Exited { .. }) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(lost, SessionError::Lost { .. }), "{lost}");
    let command = guest.command("true");
    assert!(agent.start(&id("more"), command).await.is_err());

    let agent = guest.connect().await;
    std::fs::write(guest.path("go"), "").unwrap();
    let attached = agent.attach(&id("long"), output.len() as u64).await;
    let mut following = attached.unwrap().expect("it is there");
    let exit = read_to_end(&agent, &mut following, &mut output).await;
    assert_eq!(exit.unwrap(), Exit::Code { code: 0 });
    assert_same(&output, &content);
}

#[tokio::test]
async fn a_frozen_guest_is_noticed() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    guest.signal_sshd(Signal::SIGSTOP);
    let reason = within(agent.closed()).await;
    assert!(reason.contains("not answered"), "{reason}");
    guest.signal_sshd(Signal::SIGCONT);
}

/// An endless command whose output nobody takes, once the guest's spool is full and the command stands still.
async fn stand_still(guest: &Guest, agent: &Agent) -> Following {
    let command = guest.command("echo $$ > pid; exec yes");
    let full = command.spool_bytes;
    let following = agent.start(&id("endless"), command).await.unwrap();
    let spooled = || {
        let mut size = std::process::Command::new("du");
        let size = size
            .args(["-sb", &guest.spec().state_dir])
            .output()
            .unwrap();
        let text = String::from_utf8(size.stdout).unwrap();
        text.split_whitespace()
            .next()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    };
    while spooled() < full {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    following
}

#[tokio::test]
async fn a_stop_gets_through_while_output_is_unread() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    let mut following = stand_still(&guest, &agent).await;
    let grace = Duration::from_secs(5);
    within(agent.stop(&id("endless"), grace)).await.unwrap();
    // It has gone before anything of its output is read.
    let pid = std::fs::read_to_string(guest.path("pid")).unwrap();
    while Path::new("/proc").join(pid.trim()).exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut output = Vec::new();
    let exit = read_to_end(&agent, &mut following, &mut output)
        .await
        .unwrap();
    assert!(matches!(exit, Exit::Signal { .. }), "{exit:?}");
    assert!(output.len() as u64 > 8 * 1024 * 1024);
}

#[tokio::test]
async fn a_slow_reader_is_not_the_guests_fault() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    let mut following = stand_still(&guest, &agent).await;
    let longer_than_three_heartbeats = Duration::from_secs(25);
    tokio::select! {
        reason = agent.closed() => panic!("{reason}"),
        () = tokio::time::sleep(longer_than_three_heartbeats) => {}
    }
    let grace = Duration::from_secs(5);
    agent.stop(&id("endless"), grace).await.unwrap();
    let mut output = Vec::new();
    read_to_end(&agent, &mut following, &mut output)
        .await
        .unwrap();
}

// Files.

#[tokio::test]
async fn a_tree_is_unpacked_and_files_are_written() {
    let guest = Guest::start().await;
    let content = noise(5_000_000);
    std::fs::create_dir_all(guest.path("tree/deep")).unwrap();
    std::fs::write(guest.path("tree/deep/noise"), &content).unwrap();
    std::fs::write(guest.path("tree/run.sh"), "#!/bin/sh\n").unwrap();
    let tar = std::process::Command::new("tar")
        .args(["-C", &guest.path("tree"), "-c", "."])
        .output()
        .unwrap()
        .stdout;
    let work = guest.path("work");
    std::fs::create_dir(&work).unwrap();
    std::fs::write(guest.path("work/old"), "").unwrap();

    let agent = guest.connect().await;
    let entries = within(agent.unpack(&work, tar.as_slice())).await;
    assert_eq!(entries.unwrap(), 4);
    let unpacked = std::fs::read(guest.path("work/deep/noise")).unwrap();
    assert_same(&unpacked, &content);
    assert!(!Path::new(&guest.path("work/old")).exists());

    let file = guest.path("new/folder/file");
    let written = within(agent.write(&file, content.as_slice(), true)).await;
    assert_eq!(written.unwrap(), content.len() as u64);
    assert_same(&std::fs::read(&file).unwrap(), &content);
    let empty = guest.path("empty");
    let written = within(agent.write(&empty, tokio::io::empty(), false)).await;
    assert_eq!(written.unwrap(), 0);

    let below = guest.path("client/x");
    let refused = within(agent.write(&below, content.as_slice(), false)).await;
    assert!(
        matches!(refused, Err(SessionError::Refused { .. })),
        "{refused:?}"
    );
    let refused = within(agent.unpack(&work, content.as_slice())).await;
    assert!(
        matches!(refused, Err(SessionError::Refused { .. })),
        "{refused:?}"
    );
    let entries = within(agent.unpack(&work, tar.as_slice())).await;
    assert_eq!(entries.unwrap(), 4, "the connection is as good as before");
}

/// A reader that fails in the middle.
struct Broken(usize);

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        self.0 += 1;
        if self.0 > 3 {
            let error = std::io::Error::other("the mirror vanished");
            return std::task::Poll::Ready(Err(error));
        }
        buffer.put_slice(&[b'x'; 1000]);
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_source_that_breaks_leaves_no_half_file() {
    let guest = Guest::start().await;
    let agent = guest.connect().await;
    let half = guest.path("half");
    let error = within(agent.write(&half, Broken(0), false))
        .await
        .unwrap_err();
    assert!(matches!(error, SessionError::Source { .. }), "{error}");
    within(agent.closed()).await;
    let agent = guest.connect().await;
    run(&agent, "after", guest.command("true")).await;
    assert!(!Path::new(&half).exists());
}

#[tokio::test]
async fn files_are_collected_whole_and_checked() {
    let guest = Guest::start().await;
    let content = noise(2_000_000);
    let out = guest.path("out");
    std::fs::create_dir_all(guest.path("out/sub")).unwrap();
    std::fs::write(guest.path("out/a.bin"), &content).unwrap();
    std::fs::write(guest.path("out/sub/b.bin"), &content[..70_000]).unwrap();
    std::fs::write(guest.path("out/empty.bin"), "").unwrap();
    std::fs::write(guest.path("out/not.txt"), "").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", guest.path("out/link.bin")).unwrap();
    let hash = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let globs = ["**/*.bin".to_owned()];

    let agent = guest.connect().await;
    for skip_first in [false, true] {
        let mut collection = agent.collect(&out, &globs, 10, 10_000_000).await.unwrap();
        let mut found = Vec::new();
        while let Some(mut file) = within(collection.next_file()).await.unwrap() {
            let path = file.file.path.clone();
            if skip_first && path == "a.bin" {
                within(file.next_chunk()).await.unwrap();
                found.push((path, "skipped".to_owned()));
                continue;
            }
            let mut hash = Sha256::new();
            while let Some(bytes) = within(file.next_chunk()).await.unwrap() {
                hash.update(&bytes);
            }
            found.push((path, hex::encode(hash.finalize())));
        }
        let first = if skip_first {
            "skipped".to_owned()
        } else {
            hash(&content)
        };
        let expected = [
            ("a.bin".to_owned(), first),
            ("empty.bin".to_owned(), hash(b"")),
            ("sub/b.bin".to_owned(), hash(&content[..70_000])),
        ];
        assert_eq!(found, expected);
        let skipped = collection.skipped();
        assert_eq!(skipped.len(), 1, "{skipped:?}");
        assert_eq!(skipped[0].path, "link.bin");
    }
    // One that is given up is out of the next one's way.
    drop(agent.collect(&out, &globs, 10, 10_000_000).await.unwrap());
    let nowhere = guest.path("nowhere");
    let mut refused = within(agent.collect(&nowhere, &globs, 10, 10))
        .await
        .unwrap();
    let error = within(refused.next_file()).await.unwrap_err();
    assert!(matches!(error, SessionError::Refused { .. }), "{error}");
    assert!(within(refused.next_file()).await.unwrap().is_none());
}

// Not a test: `cargo test --release -p vivarium --test session -- --ignored --nocapture` compares with OpenSSH's client.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    const BYTES: usize = 300_000_000;
    let guest = Guest::start().await;
    let noise_path = guest.path("noise");
    std::fs::write(&noise_path, noise(BYTES)).unwrap();
    let started = Instant::now();
    drop(guest.connect().await);
    println!("first connect, with push: {:?}", started.elapsed());
    let started = Instant::now();
    let agent = guest.connect().await;
    println!("second connect: {:?}", started.elapsed());

    let key = std::fs::read_to_string(&guest.host_key).unwrap();
    let known = guest.path("known");
    std::fs::write(&known, format!("[127.0.0.1]:{} {key}", guest.port)).unwrap();
    let ssh = |command: String, option: &str| {
        let mut ssh = Command::new("ssh");
        ssh.args(["-o", option]);
        ssh.args([
            "-F",
            "none",
            "-p",
            &guest.port.to_string(),
            "-i",
            &guest.path("client"),
        ])
        .args(["-o", &format!("UserKnownHostsFile={known}")])
        .arg(format!("{}@127.0.0.1", guest.endpoint().user))
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
        async move { assert!(ssh.status().await.unwrap().success()) }
    };
    let rate = |started: Instant| BYTES as f64 / 1e6 / started.elapsed().as_secs_f64();
    for round in 0..3 {
        let started = Instant::now();
        ssh("true".to_owned(), "Compression=no").await;
        println!("ssh true: {:?}", started.elapsed());
        let started = Instant::now();
        ssh(format!("cat {noise_path}"), "Compression=no").await;
        let openssh = rate(started);
        let started = Instant::now();
        ssh(
            format!("cat {noise_path}"),
            "Ciphers=aes128-gcm@openssh.com",
        )
        .await;
        let same_cipher = rate(started);

        let started = Instant::now();
        let execution = id(&format!("run-{round}"));
        let command = guest.command("cat noise");
        let mut following = agent.start(&execution, command).await.unwrap();
        let mut acknowledged = 0;
        while let FollowEvent::Output { offset, bytes } = following.next().await.unwrap() {
            let end = offset + bytes.len() as u64;
            if end - acknowledged > 1024 * 1024 {
                agent.acknowledge(&execution, end).await.unwrap();
                acknowledged = end;
            }
        }
        let follow = rate(started);

        let started = Instant::now();
        let globs = ["noise".to_owned()];
        let dir = guest.dir.path().to_str().unwrap();
        let mut collection = agent.collect(dir, &globs, 1, BYTES as u64).await.unwrap();
        while let Some(mut file) = collection.next_file().await.unwrap() {
            while file.next_chunk().await.unwrap().is_some() {}
        }
        let collect = rate(started);

        let started = Instant::now();
        let file = tokio::fs::File::open(&noise_path).await.unwrap();
        agent.write(&guest.path("copy"), file, false).await.unwrap();
        println!(
            "ssh cat {openssh:.0} MB/s, with our cipher {same_cipher:.0}; follow {follow:.0} ({:.2}), collect {collect:.0} ({:.2}), write {:.0}",
            follow / openssh,
            collect / openssh,
            rate(started)
        );
    }
}
