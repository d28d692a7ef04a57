//! The files of a log that still grows, as a power cut or a hand may have left them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vivarium::model::JobId;
use vivarium::result::log::Logs;
use vivarium::result::objects::Objects;
use vivarium::store::Store;

const JOB: JobId = JobId(1);
const CAP: u64 = 1 << 10;
/// More pieces than any log of this size has.
const MOST_CHUNKS: usize = 10_000;
const FAST_FOLDER: &str = "/dev/shm";

struct Place {
    runtime: Runtime,
    store: Store,
    objects: Objects,
    folder: TempDir,
}

static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in(FAST_FOLDER)
        .or_else(|_| tempfile::tempdir())
        .expect("a folder");
    let runtime = Runtime::new().expect("a runtime");
    let store = runtime.block_on(Store::open(&folder.path().join("state.sqlite")));
    let objects = folder.path().join("objects").display().to_string();
    Place {
        runtime,
        store: store.expect("a database"),
        objects: Objects::open(&objects, &BTreeMap::new()).expect("a folder of objects"),
        folder,
    }
});

/// Records of a kind, a length and a content make the files; the log must then read to its end and take more bytes.
pub(crate) fn log_files(data: &[u8]) {
    let place = &*PLACE;
    let logs_folder = place.folder.path().join("logs");
    let folder = logs_folder.join(JOB.to_string());
    std::fs::remove_dir_all(&logs_folder).ok();
    std::fs::create_dir_all(&folder).expect("a folder");
    lay_out(&folder, data);
    let logs = Logs::open(logs_folder, CAP, place.store.clone(), place.objects.clone());
    let logs = logs.expect("the folder is there");
    place.runtime.block_on(async {
        let Ok(length) = logs.length(JOB).await else {
            return;
        };
        assert_eq!(read_to_end(&logs).await, length);
        let times = logs.times(JOB).await.expect("times are read or left aside");
        assert!(times.iter().all(|(_, offset)| *offset < length));
        if let Ok(mut writer) = logs.writer(JOB).await {
            writer.append(b"more\n").await.expect("a log can go on");
            assert_eq!(read_to_end(&logs).await, writer.len());
        }
    });
}

fn lay_out(folder: &std::path::Path, mut data: &[u8]) {
    while let [kind, a, b, length, rest @ ..] = data {
        let offset = u64::from(u16::from_be_bytes([*a, *b]));
        let (content, later) = rest.split_at(usize::from(*length).min(rest.len()));
        data = later;
        let (name, bytes): (PathBuf, Vec<u8>) = match kind % 5 {
            0 => ("times".into(), content.to_vec()),
            1 => ("cap".into(), content.to_vec()),
            2 => ("cap".into(), offset.to_string().into_bytes()),
            3 => (format!("{offset:020}.seg").into(), content.to_vec()),
            _ => {
                let name = String::from_utf8_lossy(content).replace(['/', '\0', '.'], "_");
                (
                    format!("{}.seg", name.chars().take(60).collect::<String>()).into(),
                    vec![0; 3],
                )
            }
        };
        std::fs::write(folder.join(name), bytes).expect("a file");
    }
}

/// Follows the chunks to the end of what is there, and says where that is.
async fn read_to_end(logs: &Logs) -> u64 {
    let mut at = 0;
    for _ in 0..MOST_CHUNKS {
        let chunk = logs
            .chunk(JOB, at, 100)
            .await
            .expect("a log in files reads");
        if chunk.bytes.is_empty() {
            return at;
        }
        assert!(chunk.next > at, "a chunk goes forward");
        at = chunk.next;
    }
    panic!("the log has no end");
}
