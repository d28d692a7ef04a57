use super::*;
use std::sync::{Arc, Mutex};
use tokio::net::{TcpListener, TcpStream};

/// What the server does with a request.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    Good,
    /// Ends the connection after so many bytes of the body.
    Cut(usize),
    /// Knows nothing of ranges.
    Whole,
    Status(u16),
}

/// A server with one file on a loopback port.
struct Server {
    url: Url,
    manner: Arc<Mutex<Manner>>,
    /// The first byte that each request asked for.
    asked: Arc<Mutex<Vec<usize>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    async fn with(content: Vec<u8>) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/disk.qcow2", listener.local_addr().unwrap());
        let (manner, asked) = (Arc::new(Mutex::new(Manner::Good)), Arc::default());
        let shared = (Arc::clone(&manner), Arc::clone(&asked));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let manner = *shared.0.lock().unwrap();
                serve(stream, &content, manner, &shared.1).await;
            }
        });
        Server {
            url: url.parse().unwrap(),
            manner,
            asked,
            serving,
        }
    }

    fn behave(&self, manner: Manner) {
        *self.manner.lock().unwrap() = manner;
    }

    fn asked(&self) -> Vec<usize> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(mut stream: TcpStream, content: &[u8], manner: Manner, asked: &Mutex<Vec<usize>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let from = head.split_once("range: bytes=").map_or(0, |(_, rest)| {
        let (from, _) = rest.split_once('-').unwrap();
        from.parse().unwrap()
    });
    asked.lock().unwrap().push(from);
    let length = content.len();
    let (status, range, from) = match manner {
        Manner::Status(status) => (status, String::new(), length),
        Manner::Whole => (200, String::new(), 0),
        _ if from == 0 => (200, String::new(), 0),
        _ if from >= length => (416, format!("content-range: bytes */{length}\r\n"), length),
        _ => {
            let range = format!("content-range: bytes {from}-{}/{length}\r\n", length - 1);
            (206, range, from)
        }
    };
    let body = &content[from..];
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n{range}\r\n",
        body.len()
    );
    let sent = match manner {
        Manner::Cut(count) => &body[..count.min(body.len())],
        Manner::Good | Manner::Whole | Manner::Status(_) => body,
    };
    // A client that had enough is no fault.
    stream.write_all(head.as_bytes()).await.ok();
    stream.write_all(sent).await.ok();
    stream.shutdown().await.ok();
}

fn noise() -> Vec<u8> {
    (0..300_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

fn sha256_of(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[tokio::test]
async fn a_fetch_that_breaks_off_is_gone_on_with_to_the_last_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("images/x/disk.qcow2");
    let content = noise();
    let hash = sha256_of(&content);
    let server = Server::with(content.clone()).await;
    let wanted = Wanted {
        url: &server.url,
        sha256: Some(&hash),
        path: &path,
    };
    for _ in 0..2 {
        server.behave(Manner::Cut(100_000));
        let error = fetch(wanted, |_| {}).await.unwrap_err();
        assert!(matches!(error, FetchError::Interrupted(_)), "{error}");
        assert!(!path.exists(), "nothing is there before all of it is");
    }
    server.behave(Manner::Good);
    let mut heard = Vec::new();
    let found = fetch(wanted, |progress| heard.push(progress))
        .await
        .unwrap();
    assert_eq!(found, hash);
    assert_eq!(server.asked(), [0, 100_000, 200_000], "no byte twice");
    assert_eq!(heard.first().unwrap().percent(), Some(66));
    assert_eq!(heard.last().unwrap().percent(), Some(100));
    assert!(std::fs::read(&path).unwrap() == content);
    assert_eq!(sha256(&path).await.unwrap(), hash);
    assert!(!part_of(&path).exists());
}

#[tokio::test]
async fn a_server_without_ranges_is_fetched_from_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let content = noise();
    let server = Server::with(content.clone()).await;
    let wanted = Wanted {
        url: &server.url,
        sha256: None,
        path: &path,
    };
    server.behave(Manner::Cut(100_000));
    fetch(wanted, |_| {}).await.unwrap_err();
    server.behave(Manner::Whole);
    let found = fetch(wanted, |_| {}).await.unwrap();
    assert_eq!(found, sha256_of(&content));
    assert!(std::fs::read(&path).unwrap() == content);
}

#[tokio::test]
async fn all_that_a_try_left_is_used_and_what_is_too_long_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let content = noise();
    let hash = sha256_of(&content);
    let server = Server::with(content.clone()).await;
    let wanted = Wanted {
        url: &server.url,
        sha256: Some(&hash),
        path: &path,
    };
    std::fs::write(part_of(&path), [&content[..], b"more"].concat()).unwrap();
    let error = fetch(wanted, |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("begins anew"), "{error}");
    std::fs::write(part_of(&path), &content).unwrap();
    fetch(wanted, |_| {}).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == content);
}

#[tokio::test]
async fn what_has_another_hash_is_thrown_away_and_what_is_not_there_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let server = Server::with(noise()).await;
    let other = "0".repeat(64);
    let wanted = Wanted {
        url: &server.url,
        sha256: Some(&other),
        path: &path,
    };
    let error = fetch(wanted, |_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::WrongHash { .. }), "{error}");
    let sentence = error.to_string();
    for part in [server.url.as_str(), &other, &sha256_of(&noise())] {
        assert!(sentence.contains(part), "{sentence}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    server.behave(Manner::Status(404));
    let error = fetch(wanted, |_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("404"), "{error}");
    server.behave(Manner::Status(503));
    let error = fetch(wanted, |_| {}).await.unwrap_err();
    assert!(matches!(error, FetchError::Interrupted(_)), "{error}");
}
