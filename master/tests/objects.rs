//! The object store against a server that speaks S3, on this machine.

use bytes::Bytes;
use futures::TryStreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use vivarium::result::objects::{ObjectError, Objects};

const KEY_ID: &str = "AKIAVIVARIUM";
const SECRET: &str = "a-secret-that-nobody-should-see";
const MIB: usize = 1 << 20;

/// S3 over HTTP on a loopback port, its buckets being folders.
struct Server {
    dir: TempDir,
    endpoint: String,
    accepting: JoinHandle<()>,
}

impl Server {
    async fn start() -> Server {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bucket")).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(dir.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = service.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let accepting = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    // A client that hangs up is no concern of the server.
                    let builder = Builder::new(TokioExecutor::new());
                    drop(
                        builder
                            .serve_connection(TokioIo::new(socket), service)
                            .await,
                    );
                });
            }
        });
        Server {
            dir,
            endpoint,
            accepting,
        }
    }

    fn options(&self, secret: &str) -> BTreeMap<String, String> {
        [
            ("aws_endpoint", self.endpoint.as_str()),
            ("aws_access_key_id", KEY_ID),
            ("aws_secret_access_key", secret),
            ("aws_region", "us-east-1"),
            ("allow_http", "true"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
    }

    fn objects(&self) -> Objects {
        Objects::open("s3://bucket/team/ci", &self.options(SECRET)).unwrap()
    }

    /// Files that the server holds, parts of uploads included.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.path().to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    files.push(path);
                }
            }
        }
        files
    }

    fn parts(&self) -> usize {
        let is_part = |path: &PathBuf| path.to_string_lossy().contains(".part-");
        self.files().iter().filter(|path| is_part(path)).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn read(objects: &Objects, key: &str) -> Vec<u8> {
    let fetched = objects.get(key).await.unwrap();
    let size = fetched.size;
    let pieces: Vec<Bytes> = fetched.bytes.try_collect().await.unwrap();
    let bytes = pieces.concat();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

fn pattern(length: usize) -> Bytes {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

#[tokio::test]
async fn objects_are_stored_read_listed_and_deleted_below_the_prefix() {
    let server = Server::start().await;
    let objects = server.objects();
    objects.check().await.unwrap();
    objects
        .put("logs/a", Bytes::from_static(b"0123456789"))
        .await
        .unwrap();
    objects
        .put("logs/b c#1%", Bytes::from_static(b"b"))
        .await
        .unwrap();
    objects.put("other", Bytes::new()).await.unwrap();
    assert!(server.dir.path().join("bucket/team/ci/logs/a").is_file());

    assert_eq!(read(&objects, "logs/a").await, b"0123456789");
    assert_eq!(objects.get_range("logs/a", 3..6).await.unwrap(), "345");
    assert_eq!(objects.get_range("logs/a", 8..100).await.unwrap(), "89");
    assert_eq!(objects.get_range("logs/a", 5..5).await.unwrap(), "");
    objects
        .put("logs/a", Bytes::from_static(b"new"))
        .await
        .unwrap();
    assert_eq!(read(&objects, "logs/a").await, b"new");

    let keys = |listed: Vec<vivarium::result::objects::Listed>| {
        listed
            .into_iter()
            .map(|l| (l.key, l.size))
            .collect::<Vec<_>>()
    };
    let logs = vec![("logs/a".to_string(), 3), ("logs/b c#1%".to_string(), 1)];
    assert_eq!(keys(objects.list("logs").await.unwrap()), logs);
    assert_eq!(objects.list("").await.unwrap().len(), 3);
    assert_eq!(objects.list("nothing").await.unwrap(), []);

    for _ in 0..2 {
        objects.delete("logs/b c#1%").await.unwrap();
    }
    let error = objects.get("logs/b c#1%").await.unwrap_err();
    assert!(matches!(error, ObjectError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_large_object_goes_in_parts_and_shows_only_whole() {
    let server = Server::start().await;
    let objects = server.objects();
    let bytes = pattern(21 * MIB + 17);
    let mut upload = objects.upload("large").unwrap();
    for piece in bytes.chunks(300_000) {
        upload.write(Bytes::copy_from_slice(piece)).await.unwrap();
        assert_eq!(objects.list("").await.unwrap(), []);
    }
    assert_eq!(upload.finish().await.unwrap(), bytes.len() as u64);
    assert!(read(&objects, "large").await == bytes, "it differs");
    let from = 8 * MIB as u64 - 3;
    let middle = objects.get_range("large", from..from + 6).await.unwrap();
    assert_eq!(middle, bytes[8 * MIB - 3..8 * MIB + 3]);
    assert_eq!(server.parts(), 0);
}

#[tokio::test]
async fn small_and_empty_objects_take_the_same_door() {
    let server = Server::start().await;
    let objects = server.objects();
    for length in [0, 1, 100_000] {
        let bytes = pattern(length);
        let mut upload = objects.upload("object").unwrap();
        upload.write(bytes.clone()).await.unwrap();
        assert_eq!(upload.finish().await.unwrap(), length as u64);
        assert!(read(&objects, "object").await == bytes, "it differs");
    }
}

#[tokio::test]
async fn an_upload_that_is_given_up_leaves_nothing() {
    let server = Server::start().await;
    let objects = server.objects();
    let mut upload = objects.upload("given/up").unwrap();
    for _ in 0..20 {
        upload.write(pattern(MIB)).await.unwrap();
    }
    upload.abort().await;
    assert_eq!(objects.list("").await.unwrap(), []);
    assert_eq!(server.parts(), 0);

    // A small one was never more than memory; what was there before stays.
    objects
        .put("kept", Bytes::from_static(b"kept"))
        .await
        .unwrap();
    let mut upload = objects.upload("kept").unwrap();
    upload.write(Bytes::from_static(b"other")).await.unwrap();
    drop(upload);
    assert_eq!(read(&objects, "kept").await, b"kept");
}

#[tokio::test]
async fn a_dropped_upload_is_given_up_too() {
    let server = Server::start().await;
    let objects = server.objects();
    let mut upload = objects.upload("dropped").unwrap();
    for _ in 0..30 {
        upload.write(pattern(MIB)).await.unwrap();
    }
    assert!(server.parts() > 0, "parts are on the server before");
    drop(upload);
    while server.parts() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(objects.list("").await.unwrap(), []);
}

#[tokio::test]
async fn a_wrong_secret_is_told_in_a_sentence_without_it() {
    let server = Server::start().await;
    let wrong = "another-secret-that-nobody-should-see";
    let objects = Objects::open("s3://bucket", &server.options(wrong)).unwrap();
    let error = objects.check().await.unwrap_err();
    let text = format!("{error} {error:?} {objects:?}");
    assert!(text.starts_with("cannot store `vivarium-check-"), "{text}");
    assert!(!text.contains(wrong), "{text}");
}
