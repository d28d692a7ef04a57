//! What the guest reaches: nothing where its network is closed, the host where it is open.
//!
//! ```text
//!   guest ──TCP──► 10.0.2.2, 10.0.2.3, the host's own addresses ──► a listener of ours, which counts its visitors
//!     └──► its own SSH server: the tool that looks can see
//! ```
//!
//! Nothing here aims beyond this machine.

use super::Checks;
use crate::certify::certificate::Verdict;
use crate::certify::guest::{Question, Trouble};
use crate::model::{Network, PlatformKind};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Where QEMU's user network has the host,
const GATEWAY: &str = "10.0.2.2";
/// and a name server.
const NAME_SERVER: &str = "10.0.2.3";
/// What the listener says.
const WORD: &str = "vivarium";
/// Hosts with very many addresses need not be asked about each.
const MOST_ADDRESSES: usize = 8;
/// How long one look waits for an answer, in seconds; longer where guests run without KVM.
const PATIENCE_SECS: u64 = 3;
/// Prints a line for each target: its place, and the first letters of what answered. With what there is: each of these
/// programs is missing in some image.
const PROBE: &str = r#"
ask() {
    if command -v nc >/dev/null 2>&1; then sleep "$PATIENCE" | nc -w "$PATIENCE" "$1" "$2"
    elif command -v perl >/dev/null 2>&1; then
        perl -MIO::Socket::INET -e '$SIG{ALRM} = sub { exit 1 }; alarm $ENV{PATIENCE};
            $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1]) or exit 1;
            sysread $s, $b, 64; print $b' "$1" "$2"
    elif command -v python3 >/dev/null 2>&1; then
        python3 -c 'import os, socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), float(os.environ["PATIENCE"]))
print(s.recv(64).decode("latin-1"))' "$1" "$2"
    elif command -v bash >/dev/null 2>&1 && command -v timeout >/dev/null 2>&1; then
        timeout "$PATIENCE" bash -c 'exec 3<>"/dev/tcp/$0/$1" && head -n 1 <&3' "$1" "$2"
    else echo no-tool
    fi 2>/dev/null | head -c 8 | tr -d '\r\n'
}
for target in $TARGETS; do
    (answer=$(ask "${target%:*}" "${target##*:}"); echo "$target ${answer:-nothing}") &
done
wait
"#;

impl Checks<'_> {
    pub(super) async fn network(&mut self) -> Result<Verdict, Trouble> {
        let network = match &self.guest.platform().kind {
            PlatformKind::Vm { network, .. } => network.clone(),
            PlatformKind::Ssh { .. } => Network::Closed,
        };
        let is_open = match network {
            Network::Closed => false,
            Network::Internet => true,
            Network::LibvirtNetwork(name) => {
                let why = format!("what it reaches is up to libvirt's network {name}");
                return Ok(Verdict::NotChecked(why));
            }
        };
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let addresses = match is_open {
            // Its own network is the host's business alone.
            true => Vec::new(),
            false => own_addresses(),
        };
        let bait = match Bait::lay(&addresses).await {
            Ok(bait) => bait,
            Err(error) => {
                let why = format!("no listener can be opened on this host: {error}");
                return Ok(Verdict::NotChecked(why));
            }
        };
        let port = bait.port;
        let own = format!("127.0.0.1:{}", self.guest.platform().ssh.port);
        let mut targets = vec![format!("{GATEWAY}:{port}")];
        if !is_open {
            targets.push(format!("{NAME_SERVER}:{port}"));
            targets.push(format!("{NAME_SERVER}:53"));
            targets.extend(addresses.iter().map(|address| format!("{address}:{port}")));
        }
        let patience = self.guest.machine.scaled(PATIENCE_SECS).as_secs();
        let question = Question::sh(PROBE)
            .with("PATIENCE", &patience.to_string())
            .with("TARGETS", &format!("{own} {}", targets.join(" ")));
        let said = self.guest.ask(question).await?.good()?;
        let answer = |target: &str| {
            let mut lines = said.lines().filter_map(|line| line.split_once(' '));
            lines
                .find(|(found, _)| *found == target)
                .map_or("nothing", |(_, answer)| answer)
        };
        match answer(&own) {
            "no-tool" => {
                let why = "the image has neither nc nor perl, python3 or bash to look with";
                return Ok(Verdict::NotChecked(why.to_owned()));
            }
            banner if banner.starts_with("SSH-") => {}
            other => {
                let why = format!(
                    "what looks from inside does not even see the guest's own SSH server: {other}"
                );
                return Ok(Verdict::NotChecked(why));
            }
        }
        let answered: Vec<&str> = targets
            .iter()
            .map(String::as_str)
            .filter(|target| answer(target) != "nothing")
            .collect();
        let visits = bait.visits();
        if is_open {
            return Ok(match answer(&format!("{GATEWAY}:{port}")) {
                WORD => Verdict::Passed(format!("open: {GATEWAY} leads to the host")),
                other => Verdict::Failed(format!(
                    "it is to be open, and {GATEWAY}, the host's loopback, answers {other} \
                     ({visits} connections came)"
                )),
            });
        }
        Ok(match answered.is_empty() && visits == 0 {
            true => Verdict::Passed(format!(
                "closed: nothing answers at {} addresses",
                targets.len()
            )),
            false => Verdict::Failed(format!(
                "it is to be closed, and {visits} connections came to this host; answers came from: {}",
                answered.join(", ")
            )),
        })
    }
}

/// A listener on the host's own addresses.
struct Bait {
    port: u16,
    visits: Arc<AtomicUsize>,
    _listening: JoinSet<()>,
}

impl Bait {
    /// On the loopback address, and with the same port on those of these addresses where it is free.
    async fn lay(addresses: &[IpAddr]) -> std::io::Result<Bait> {
        let first = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = first.local_addr()?.port();
        let mut listeners = vec![first];
        for address in addresses {
            listeners.extend(TcpListener::bind((*address, port)).await.ok());
        }
        let visits = Arc::new(AtomicUsize::new(0));
        let mut listening = JoinSet::new();
        for listener in listeners {
            let visits = Arc::clone(&visits);
            listening.spawn(async move {
                while let Ok((mut visitor, _)) = listener.accept().await {
                    visits.fetch_add(1, Ordering::SeqCst);
                    // One that has gone already has been counted.
                    visitor.write_all(format!("{WORD}\n").as_bytes()).await.ok();
                }
            });
        }
        Ok(Bait {
            port,
            visits,
            _listening: listening,
        })
    }

    fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}

/// This host's own addresses but for loopback ones, as its kernel lists them.
fn own_addresses() -> Vec<IpAddr> {
    let table = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    addresses_in(&table)
}

fn addresses_in(table: &str) -> Vec<IpAddr> {
    let mut addresses = BTreeSet::new();
    let mut last = None;
    for line in table.lines() {
        match line.trim().strip_prefix("|-- ") {
            Some(address) => last = address.parse::<IpAddr>().ok(),
            None if line.contains("/32 host LOCAL") => addresses.extend(last),
            None => {}
        }
    }
    addresses.retain(|address| !address.is_loopback());
    addresses.into_iter().take(MOST_ADDRESSES).collect()
}

#[cfg(test)]
mod tests {
    use super::addresses_in;

    #[test]
    fn the_hosts_addresses_are_those_that_the_kernel_calls_local() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                     Local:\n     |-- 127.0.0.1\n        /32 host LOCAL\n\
                     |-- 192.168.1.7\n        /32 host LOCAL\n     |-- 192.168.1.255\n        /32 link BROADCAST\n";
        let found: Vec<String> = addresses_in(table)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, ["192.168.1.7"]);
    }
}
