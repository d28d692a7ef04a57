use super::*;
use crate::config::{Platforms, parse_platform};
use crate::model::PlatformKind;

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("vivarium.toml"),
            "data_dir = 'data'\nplatforms_dir = 'platforms'\n",
        )
        .unwrap();
        Place { folder }
    }

    fn platforms(&self) -> PathBuf {
        self.folder.path().join("platforms")
    }

    fn image(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        let made = std::process::Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(&path)
            .arg("1M")
            .status();
        assert!(made.unwrap().success());
        path.display().to_string()
    }

    async fn add(&self, image: &str, sha256: Option<&str>) -> anyhow::Result<ExitCode> {
        add(Options {
            image: image.to_owned(),
            name: None,
            os: None,
            sha256: sha256.map(str::to_owned),
            local: Local {
                config: self.folder.path().join("vivarium.toml"),
            },
        })
        .await
    }

    /// All that is in the folder of platforms.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.platforms()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

#[tokio::test]
async fn an_image_becomes_a_platform_of_five_lines_in_one_step() {
    let place = Place::new();
    let image = place.image("FreeBSD-14.2-BASIC-CLOUDINIT.qcow2");
    place.add(&image, None).await.unwrap();
    assert_eq!(place.names(), ["FreeBSD-14.2-BASIC-CLOUDINIT"]);
    let folder = place.platforms().join("FreeBSD-14.2-BASIC-CLOUDINIT");
    let text = fs::read_to_string(folder.join("platform.toml")).unwrap();
    assert_eq!(text.lines().count(), 5, "{text}");
    let platform = parse_platform(&folder, &text).unwrap();
    assert_eq!(platform.os.as_str(), "freebsd");
    assert_eq!(Platforms::load(place.platforms()).ready().len(), 1);
    let PlatformKind::Vm {
        disk: Some(disk), ..
    } = platform.kind
    else {
        panic!("it has a disk");
    };
    let own = crate::fetch::sha256(Path::new(&image)).await.unwrap();
    assert_eq!(disk.sha256, Some(own));
    let again = place.add(&image, None).await.unwrap_err();
    assert!(again.to_string().contains("is there already"), "{again}");
}

#[tokio::test]
async fn what_is_no_image_or_another_one_leaves_nothing() {
    let place = Place::new();
    let page = place.folder.path().join("disk.qcow2");
    fs::write(&page, "<html>404</html>").unwrap();
    let page = page.display().to_string();
    let error = place.add(&page, None).await.unwrap_err();
    assert!(error.to_string().contains("was not added"), "{error}");
    let image = place.image("other.qcow2");
    let error = place.add(&image, Some(&"0".repeat(64))).await.unwrap_err();
    assert!(error.to_string().contains("not what was meant"), "{error}");
    let error = place.add("/no/such/file", None).await.unwrap_err();
    assert!(error.to_string().contains("is no file"), "{error}");
    assert!(place.names().is_empty(), "{:?}", place.names());
}
