//! Real sockets, real TLS, clients that behave badly.

use super::*;
use crate::config::TlsConfig;
use axum::body::Body;
use axum::routing::{get, post};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;

/// Nothing here takes long but on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
const SHORT: Duration = Duration::from_millis(300);

/// A running server, stopped when dropped.
struct Running {
    address: SocketAddr,
    task: JoinHandle<()>,
    stopping: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(config: &str, tls: Option<Tls>) -> Running {
    let config: ServerConfig = toml::from_str(config).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::new(listener, &config, tls);
    server.deadlines = Deadlines {
        header: SHORT,
        write: SHORT,
    };
    let endless = || async {
        let zeros = Bytes::from_static(&[0; 64 << 10]);
        Body::from_stream(futures::stream::repeat_with(move || {
            Ok::<_, std::io::Error>(zeros.clone())
        }))
    };
    let routes = Router::new()
        .route("/", get(|| async { "here" }))
        .route("/echo", post(|body: String| async move { body }))
        .route("/endless", get(endless));
    let stopping = CancellationToken::new();
    let task = tokio::spawn(server.run(routes, stopping.clone()));
    Running {
        address,
        task,
        stopping,
    }
}

/// A connection from another address of this machine, which counts as somebody's.
async fn connect(running: &Running, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect(running.address).await.unwrap()
}

/// What comes until the other side closes, at most so many bytes.
async fn read_to_end(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut all = Vec::new();
    // A reset is an end too.
    let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
    drop(read.expect("it was never closed"));
    all
}

async fn get_with(client: &reqwest::Client, url: &str) -> reqwest::Result<String> {
    let answer = client.get(url).timeout(PATIENCE).send().await?;
    answer.error_for_status()?.text().await
}

fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .pool_max_idle_per_host(0)
}

#[tokio::test]
async fn a_header_that_comes_byte_by_byte_holds_a_connection_for_a_bounded_time() {
    let running = start("", None).await;
    let mut slow = connect(&running, [127, 0, 0, 2]).await;
    let trickle = async {
        // Each byte resets nothing: the deadline is for the whole header.
        loop {
            if slow.write_all(b"G").await.is_err() {
                return;
            }
            tokio::time::sleep(SHORT / 10).await;
        }
    };
    tokio::time::timeout(PATIENCE, trickle)
        .await
        .expect("it was never closed");
    // Idle ones are closed too, before a request and after one.
    let silent = connect(&running, [127, 0, 0, 2]).await;
    assert!(read_to_end(silent).await.is_empty());
    let mut once = connect(&running, [127, 0, 0, 2]).await;
    once.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let answer = read_to_end(once).await;
    assert!(
        answer.ends_with(b"here"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_let_go() {
    let running = start("limits.connections = 1", None).await;
    let mut stalled = connect(&running, [127, 0, 0, 2]).await;
    stalled
        .write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    // It has the only connection, until the deadline for writing.
    let url = format!("http://{}/", running.address);
    let answer = get_with(&client().build().unwrap(), &url).await.unwrap();
    assert_eq!(answer, "here");
    drop(stalled);
}

#[tokio::test]
async fn one_address_does_not_take_all_connections() {
    let running = start(
        "limits = { connections = 8, connections_per_address = 3 }",
        None,
    )
    .await;
    let mut first = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&running, [127, 0, 0, 2]).await;
        // An answer shows that the connection was accepted and counted.
        stream
            .write_all(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        stream.read_exact(&mut [0; 12]).await.unwrap();
        first.push(stream);
    }
    // A fourth is closed at once, while the first go on.
    let fourth = connect(&running, [127, 0, 0, 2]).await;
    assert!(read_to_end(fourth).await.is_empty());
    for from in [[127, 0, 0, 3], [127, 0, 0, 1]] {
        let other = client()
            .local_address(std::net::IpAddr::from(from))
            .build()
            .unwrap();
        let url = format!("http://{}/", running.address);
        assert_eq!(get_with(&other, &url).await.unwrap(), "here");
    }
    drop(first);
}

#[tokio::test]
async fn a_header_without_measure_is_refused() {
    let running = start("", None).await;
    for head in [
        format!("GET /?{} HTTP/1.1\r\nHost: x\r\n", "x".repeat(MOST_HEADER)),
        format!(
            "GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n",
            "x".repeat(MOST_HEADER)
        ),
        format!("GET / HTTP/1.1\r\nHost: x\r\n{}", "X: y\r\n".repeat(1000)),
        "\0\u{1}\u{2} nonsense\r\n".to_owned(),
    ] {
        let mut stream = connect(&running, [127, 0, 0, 2]).await;
        // It may answer and close before all was sent.
        drop(stream.write_all(head.as_bytes()).await);
        drop(stream.write_all(b"\r\n").await);
        let answer = read_to_end(stream).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{answer}"
        );
    }
    let url = format!("http://{}/", running.address);
    assert_eq!(
        get_with(&client().build().unwrap(), &url).await.unwrap(),
        "here"
    );
}

#[tokio::test]
async fn a_stop_lets_the_request_under_way_end() {
    let mut running = start("", None).await;
    let mut stream = connect(&running, [127, 0, 0, 1]).await;
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        .await
        .unwrap();
    // The header was read once another connection, opened later, was answered.
    let url = format!("http://{}/", running.address);
    get_with(&client().build().unwrap(), &url).await.unwrap();
    running.stopping.cancel();
    stream.write_all(b"hello").await.unwrap();
    let answer = read_to_end(stream).await;
    assert!(
        answer.ends_with(b"hello"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    tokio::time::timeout(PATIENCE, &mut running.task)
        .await
        .unwrap()
        .unwrap();
}

/// As programs that renew certificates do it.
fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}

/// An authority of our own, and the certificates that it gives.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    /// Writes a certificate for this machine, and its key.
    fn certify(&self, folder: &Path) -> TlsConfig {
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsConfig {
            certificate_file: folder.join("certificate.pem"),
            key_file: folder.join("key.pem"),
        };
        replace(&files.certificate_file, &certificate.pem());
        replace(&files.key_file, &key.serialize_pem());
        files
    }

    fn client(&self) -> reqwest::Client {
        let trusted = reqwest::Certificate::from_pem(self.certificate.as_bytes()).unwrap();
        client().tls_certs_only([trusted]).build().unwrap()
    }
}

#[tokio::test]
async fn https_is_served_and_a_renewed_certificate_is_taken_up() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let files = old.certify(folder.path());
    let tls = Tls::open(&files).unwrap();
    assert!(!format!("{tls:?}").contains("PRIVATE"));
    let running = start("", Some(tls)).await;
    let url = format!("https://{}/", running.address);
    let answer = old
        .client()
        .get(&url)
        .timeout(PATIENCE)
        .send()
        .await
        .unwrap();
    assert_eq!(
        answer.headers()["strict-transport-security"],
        "max-age=15552000"
    );
    assert!(get_with(&new.client(), &url).await.is_err());

    // The certificate alone is half of a renewal: the old pair goes on.
    let key = std::fs::read_to_string(&files.key_file).unwrap();
    new.certify(folder.path());
    let new_key = std::fs::read_to_string(&files.key_file).unwrap();
    replace(&files.key_file, &key);
    assert_eq!(get_with(&old.client(), &url).await.unwrap(), "here");
    replace(&files.key_file, &new_key);
    assert_eq!(get_with(&new.client(), &url).await.unwrap(), "here");
    assert!(get_with(&old.client(), &url).await.is_err());

    std::fs::remove_file(&files.certificate_file).unwrap();
    assert_eq!(get_with(&new.client(), &url).await.unwrap(), "here");
}

#[tokio::test]
async fn who_does_not_speak_tls_is_let_go_and_harms_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let tls = Tls::open(&authority.certify(folder.path())).unwrap();
    let running = start("limits.connections = 2", Some(tls)).await;
    let silent = connect(&running, [127, 0, 0, 2]).await;
    let mut plain = connect(&running, [127, 0, 0, 2]).await;
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let url = format!("https://{}/", running.address);
    assert_eq!(get_with(&authority.client(), &url).await.unwrap(), "here");
    assert!(read_to_end(silent).await.is_empty());
    assert!(!read_to_end(plain).await.ends_with(b"here"));
}

#[test]
fn files_that_do_not_serve_are_told_of_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let files = authority.certify(folder.path());
    let other = tempfile::tempdir().unwrap();
    let another = authority.certify(other.path());
    let wrong = |certificate_file: &Path, key_file: &Path| {
        let files = TlsConfig {
            certificate_file: certificate_file.to_owned(),
            key_file: key_file.to_owned(),
        };
        format!("{:#}", Tls::open(&files).unwrap_err())
    };
    let missing = folder.path().join("missing.pem");
    assert!(wrong(&missing, &files.key_file).contains("missing.pem"));
    assert!(wrong(&files.key_file, &files.key_file).contains("holds no certificate"));
    assert!(wrong(&files.certificate_file, &files.certificate_file).contains("private key in"));
    let mixed = wrong(&files.certificate_file, &another.key_file);
    assert!(mixed.contains("does not serve with"), "{mixed}");
}
