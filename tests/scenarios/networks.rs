//! What a guest reaches beside its SSH connection: nothing, unless its platform opens the network.
//!
//! ```text
//!   guest ──TCP, UDP──► gateway 10.0.2.2, name server 10.0.2.3, the host's own addresses ──► bait, master, other guest
//! ```
//!
//! The bait is a server of the test on every address of this machine. It counts its visitors, so that a guest too slow to
//! see an answer is seen all the same. Nothing here aims beyond this machine.

use crate::{TINY, needs_guests};
use anyhow::{Context, Result};
use std::net::Ipv6Addr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tests::github::StatusState;
use tests::machine::{Platforms, qemu_processes_of, ssh};
use tests::repository::Suites;
use tests::world::{World, context};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};

/// A platform like tiny-linux whose network is open.
const OPEN: &str = "open-linux";
/// Where QEMU's user network has the host.
const GATEWAY: &str = "10.0.2.2";
const NAME_SERVER: &str = "10.0.2.3";
/// Runs in the guest: each line of its input is a target, and an answer's first letters follow it in the output. Those
/// that wait for more than they get end ten seconds later.
const PROBE: &str = r#"
read -r patience
echo 0 | sudo tee /proc/sys/net/ipv6/conf/eth0/disable_ipv6 >/dev/null
sudo ip -6 addr add fec0::15/64 dev eth0
ask() {
    case $1 in
        tcp) (printf 'GET /healthz HTTP/1.0\r\n\r\n'; sleep 10) | timeout "$patience" nc -w "$patience" "$2" "$3" ;;
        udp) timeout "$patience" tftp -g -l /dev/null -r x "$2" "$3" ;;
        dns) timeout "$patience" nslookup localhost. "$2" | grep -A 1 '^Name' ;;
        ping) ping -c 1 -W "$patience" "$2" | grep '1 packets received' ;;
    esac 2>/dev/null | head -c 3
}
while read -r how host port; do
    (answer=$(ask "$how" "$host" "$port" | tr -d '\n '); echo "$how $host $port ${answer:-nothing}") &
done
wait
"#;

/// A server on every address of this machine, TCP and UDP, that counts who comes.
struct Bait {
    port: u16,
    visits: Arc<AtomicUsize>,
}

impl Bait {
    async fn lay() -> Result<Bait> {
        // Of both families where the machine has both.
        let socket = match TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await {
            Ok(socket) => socket,
            Err(_) => TcpListener::bind("0.0.0.0:0").await?,
        };
        let address = socket.local_addr()?;
        let datagrams = UdpSocket::bind(address).await?;
        let visits = Arc::new(AtomicUsize::new(0));
        let (tcp, udp) = (Arc::clone(&visits), Arc::clone(&visits));
        tokio::spawn(async move {
            while let Ok((mut visitor, _)) = socket.accept().await {
                tcp.fetch_add(1, Ordering::SeqCst);
                // One that has gone already has been counted.
                visitor.write_all(b"bait\n").await.ok();
            }
        });
        tokio::spawn(async move {
            let mut datagram = [0; 512];
            while datagrams.recv_from(&mut datagram).await.is_ok() {
                udp.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Bait {
            port: address.port(),
            visits,
        })
    }

    fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}

/// The forwarded ports of the world's guests: of the closed one, and of the open one.
fn forwarded_ports(world: &World) -> Result<(u16, u16)> {
    let forward = "hostfwd=tcp:127.0.0.1:";
    let processes = qemu_processes_of(world.master.hypervisor(), &world.master.data_dir());
    let port_of = |restrict: &str| {
        let mut commands = processes.iter().map(|(_, command)| command);
        let command = commands.find(|command| command.contains(restrict));
        let (_, rest) = command
            .context("no such guest")?
            .split_once(forward)
            .context("no port")?;
        let digits = rest.split('-').next().unwrap_or_default();
        digits.parse().context("no port")
    };
    Ok((port_of("restrict=on")?, port_of("restrict=off")?))
}

/// What the guest behind the forwarded port finds at the targets, a line for each.
async fn probe(
    world: &World,
    port: u16,
    patience_secs: u32,
    targets: &[String],
) -> Result<Vec<String>> {
    let image = world.platforms.folder().join(TINY);
    let known = world.platforms.folder().join(format!("known-{port}"));
    let host_key = std::fs::read_to_string(image.join("ssh_host_key.pub"))?;
    std::fs::write(&known, format!("[127.0.0.1]:{port} {host_key}"))?;
    let mut child = ssh(port, "build", &image.join("ssh_key"), &known)
        .arg(format!("sh -c '{}'", PROBE.replace('\'', r"'\''")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    let lines = format!("{patience_secs}\n{}\n", targets.join("\n"));
    input.write_all(lines.as_bytes()).await?;
    drop(input);
    let output = tokio::time::timeout(tests::world::DEADLINE, child.wait_with_output()).await??;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "the probe failed: {said}");
    let mut found: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect();
    found.sort();
    Ok(found)
}

/// This machine's own addresses, but for loopback ones, as the kernel lists them.
fn own_addresses() -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/net/fib_trie")?;
    let mut addresses = std::collections::BTreeSet::new();
    let mut last = "";
    for line in table.lines() {
        match line.trim().strip_prefix("|-- ") {
            Some(address) => last = address,
            None if line.contains("/32 host LOCAL") && !last.starts_with("127.") => {
                addresses.insert(last.to_owned());
            }
            None => {}
        }
    }
    Ok(addresses.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_guest_reaches_nothing_and_an_open_one_what_its_host_does() -> Result<()> {
    needs_guests!();
    let platforms = Platforms::new()?;
    platforms.add(TINY)?;
    platforms.add_changed(TINY, OPEN, |platform| {
        platform.insert("network".to_owned(), "internet".into());
    })?;
    let step = "echo ready; while [ ! -e /tmp/over ]; do sleep 1; done";
    let suites = Suites::test_on(&[TINY, OPEN]).step("wait", step);
    let world =
        World::with_platforms(platforms, &suites, |master, entry| master.repository(entry)).await?;
    let head = world.propose_any().await?;
    for platform in [TINY, OPEN] {
        world.said(&head, platform, "ready").await?;
    }
    let (closed, open) = forwarded_ports(&world)?;
    let master: u16 = world
        .master
        .url("")
        .rsplit(':')
        .next()
        .unwrap_or_default()
        .parse()?;
    let bait = Bait::lay().await?;

    let mut targets = Vec::new();
    let mut hosts = own_addresses()?;
    hosts.extend([GATEWAY, NAME_SERVER].map(str::to_owned));
    for host in &hosts {
        // libvirt's own ports beside those that are surely open.
        for port in [bait.port, master, open, 16509, 16514] {
            targets.push(format!("tcp {host} {port}"));
        }
        targets.push(format!("udp {host} {}", bait.port));
    }
    targets.push(format!("tcp fec0::2 {}", bait.port));
    targets.push(format!("dns {NAME_SERVER} 53"));
    for address in own_addresses()? {
        targets.push(format!("ping {address} 0"));
    }
    let found = probe(&world, closed, 12, &targets).await?;
    let mut nothing: Vec<String> = targets
        .iter()
        .map(|target| format!("{target} nothing"))
        .collect();
    nothing.sort();
    assert_eq!(found, nothing);
    assert_eq!(bait.visits(), 0);

    // That the probe sees what there is, and that the documentation tells the truth about open networks.
    let loopback = [
        format!("tcp {GATEWAY} {}", bait.port),
        format!("tcp {GATEWAY} {master}"),
        format!("tcp {GATEWAY} {closed}"),
        format!("udp {GATEWAY} {}", bait.port),
    ];
    let found = probe(&world, open, 60, &loopback).await?;
    for (target, answer) in [(0, "bai"), (1, "HTT"), (2, "SSH")] {
        let line = format!("{} {answer}", loopback[target]);
        assert!(found.contains(&line), "{line}: {found:?}");
    }
    assert!(bait.visits() >= 2, "TCP and UDP came: {}", bait.visits());

    for port in [closed, open] {
        let image = world.platforms.folder().join(TINY);
        let known = world.platforms.folder().join(format!("known-{port}"));
        let mut ssh = ssh(port, "build", &image.join("ssh_key"), &known);
        let status = ssh
            .arg("touch /tmp/over")
            .stdin(Stdio::null())
            .status()
            .await?;
        anyhow::ensure!(status.success());
    }
    for platform in [TINY, OPEN] {
        world
            .settled_as(&head, &context(platform), StatusState::Success)
            .await?;
    }
    world.end().await
}
