//! Those who reach the master's address: who may see and do what, and what a crowd of them does to the others.

use anyhow::Result;
use serde_json::json;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;
use tests::http_client_builder;
use tests::master::{Authority, Master};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

/// Memory that a master may take for visitors beyond what it had, in KiB: the streams and connections of the limits
/// below, with room for an allocator that gives nothing back.
const MOST_GROWTH_KIB: u64 = 128 << 10;
const DEADLINE: Duration = Duration::from_secs(180);

/// A client with another of this machine's addresses, which counts as somebody's.
fn client_at(last: u8) -> Result<reqwest::Client> {
    let address = IpAddr::from([127, 0, 0, last]);
    Ok(http_client_builder().local_address(address).build()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_master_lets_those_in_who_have_a_token() -> Result<()> {
    let mut master = Master::builder()
        .set("server", "public", false)
        .start()
        .await?;
    let client = client_at(1)?;
    let base = master.url("");
    let status = async |path: &str, token: Option<&str>| -> Result<u16> {
        let mut request = client.get(format!("{base}{path}"));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        Ok(request.send().await?.status().as_u16())
    };
    assert_eq!(status("/api/builds", None).await?, 401);
    assert_eq!(status("/metrics", None).await?, 401);
    assert_eq!(status("/", None).await?, 303);
    assert_eq!(status("/healthz", None).await?, 200);
    // The command line has the local token and shows it when it is asked to.
    assert_eq!(master.command(&["status"]).await?.trim(), "no build yet");

    let made = master
        .command(&["token", "create", "prometheus", "--may", "read"])
        .await?;
    let token = Some(made.trim());
    assert_eq!(status("/metrics", token).await?, 200);
    let again = master.command(&["token", "create", "prometheus"]).await;
    assert!(format!("{:#}", again.unwrap_err()).contains("already"));
    let list = master.command(&["token", "list"]).await?;
    assert!(
        list.contains("prometheus") && list.contains("local"),
        "{list}"
    );
    assert!(!list.contains(made.trim()), "{list}");
    let drain = client
        .post(master.url("/api/drain"))
        .bearer_auth(made.trim());
    assert_eq!(
        drain
            .json(&json!({ "then": "stay" }))
            .send()
            .await?
            .status(),
        403
    );

    // A restart forgets nothing.
    master.stop().await?;
    master.start().await?;
    assert_eq!(status("/metrics", token).await?, 200);
    master.command(&["token", "revoke", "prometheus"]).await?;
    assert_eq!(status("/metrics", token).await?, 401);
    master.stop().await?;
    Ok(())
}

/// A guest that broke out into QEMU's user would look around with that user's rights.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_master_writes_is_for_its_own_user() -> Result<()> {
    let mut master = Master::builder().start().await?;
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(master.data_dir())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let others = entry.metadata()?.permissions().mode() & 0o077;
        // That user passes through to the files of its VM, by their names.
        let allowed = if entry.file_type()?.is_dir() {
            0o011
        } else {
            0
        };
        assert_eq!(others & !allowed, 0, "{name}: {others:o}");
        seen.push(name);
    }
    for name in ["vivarium.sqlite", "api-token", "logs"] {
        assert!(seen.iter().any(|seen| seen == name), "{name} in {seen:?}");
    }
    master.stop().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_serves_https_to_browsers_and_its_command_line() -> Result<()> {
    let mut master = Master::builder().https(Authority::new()?).start().await?;
    assert!(master.builds().await?.is_empty());
    assert_eq!(master.command(&["status"]).await?.trim(), "no build yet");
    let plain = master.url("/").replace("https://", "http://");
    let refused = client_at(1)?.get(plain).send().await;
    assert!(refused.is_err_and(|error| !error.is_timeout()));
    // Nobody believes the authority but who was told to.
    assert!(client_at(1)?.get(master.url("/")).send().await.is_err());
    let doctor = master.doctor().await?;
    assert!(
        doctor.contains("the certificate and its key serve"),
        "{doctor}"
    );
    master.stop().await?;
    Ok(())
}

/// One address trickles headers and bodies, one floods, one sends what is too large; another sees nothing of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_bad_clients_does_not_keep_others_from_their_answers() -> Result<()> {
    let mut master = Master::builder().webhook_secret("secret").start().await?;
    let before = master.resident_kib()?;
    let mut crowd = JoinSet::new();
    for number in 0..200 {
        let head: &[u8] = match number % 2 {
            0 => b"GET / HTTP/1.1\r\n",
            _ => b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                   Sec-Fetch-Site: same-origin\r\nContent-Length: 1000\r\n\r\n",
        };
        let stream = connect(&master, 2).await?;
        crowd.spawn(trickle(stream, head));
    }
    for _ in 0..16 {
        let (client, url) = (client_at(3)?, master.url("/"));
        crowd.spawn(async move {
            for _ in 0..100 {
                let answer = client.get(&url).send().await?;
                anyhow::ensure!([200, 429].contains(&answer.status().as_u16()));
            }
            Ok(())
        });
    }
    for path in ["/login", "/api/builds", "/webhook/github"] {
        let (client, url) = (client_at(4)?, master.url(path));
        crowd.spawn(async move {
            for _ in 0..8 {
                // It may answer and close before all was sent; a client may see either.
                let sent = client.post(&url).body(vec![b'x'; 30 << 20]).send().await;
                if let Ok(answer) = sent {
                    anyhow::ensure!(answer.status().is_client_error());
                }
            }
            Ok(())
        });
    }
    let other = client_at(5)?;
    let mut most = before;
    let mut answered = 0;
    let watched = async {
        while let Some(ended) = crowd.join_next().await {
            ended??;
            let answer = other.get(master.url("/healthz")).send().await?;
            // It asks as often as members of the crowd end, which may be too often for an address: that is an answer.
            anyhow::ensure!([200, 429].contains(&answer.status().as_u16()));
            let token = master.api_token()?;
            let answer = other.get(master.url("/")).bearer_auth(token).send().await?;
            anyhow::ensure!(answer.status() == 200);
            answered += 1;
            most = most.max(master.resident_kib()?);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(DEADLINE, watched).await??;
    assert_eq!(answered, 200 + 16 + 3);
    assert!(
        most < before + MOST_GROWTH_KIB,
        "{before} KiB before, {most} KiB at most"
    );
    println!("resident: {before} KiB before, {most} KiB at most");
    master.stop().await?;
    Ok(())
}

async fn connect(master: &Master, last: u8) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(([127, 0, 0, last], 0).into())?;
    let address = master.url("").replace("http://", "");
    Ok(socket.connect(address.parse()?).await?)
}

/// Sends what never becomes a request, a byte at a time, until the master has had enough.
async fn trickle(mut stream: TcpStream, head: &[u8]) -> Result<()> {
    let mut answer = [0; 256];
    let mut sent = stream.write_all(head).await;
    while sent.is_ok() {
        tokio::select! {
            // An answer or an end.
            read = stream.read(&mut answer) => {
                if !matches!(read, Ok(length) if length > 0) {
                    return Ok(());
                }
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        sent = stream.write_all(b"x").await;
    }
    Ok(())
}
