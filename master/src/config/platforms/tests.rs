use super::*;

pub(super) const PLATFORM: &str =
    "[kernel]\npath = 'vmlinuz'\n[ssh]\nuser = 'build'\nkey = 'key'\nhost_key = 'host.pub'\n";

pub(super) fn add(dir: &Path, name: &str, text: &str) {
    let folder = dir.join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("platform.toml"), text).unwrap();
    for file in ["key", "host.pub", "vmlinuz"] {
        std::fs::write(folder.join(file), "").unwrap();
    }
}

/// Looks until nothing has just changed.
fn settled(platforms: &Platforms) {
    assert!(platforms.reload(), "a change is seen");
    platforms.reload();
    assert!(!platforms.reload());
}

#[test]
fn a_broken_platform_is_refused_alone_and_comes_back_when_mended() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["good", "bad"] {
        add(dir.path(), name, PLATFORM);
    }
    let missing = dir.path().join("bad/vmlinuz");
    std::fs::remove_file(&missing).unwrap();
    let platforms = Platforms::load(dir.path().to_path_buf());
    assert!(platforms.get("good").is_ok());
    let why = platforms.get("bad").unwrap_err();
    assert!(
        why.contains(&format!("its kernel {}", missing.display())),
        "{why}"
    );
    assert!(platforms.get("none").unwrap_err().contains("no folder"));
    let misspelt = PLATFORM.replace("host_key", "hostkey");
    std::fs::write(dir.path().join("good/platform.toml"), misspelt).unwrap();
    settled(&platforms);
    assert_eq!(
        platforms.get("good").unwrap_err(),
        "platform `good` takes no work: platform.toml:6:1: unknown key `hostkey`: did you mean `host_key`?"
    );
    std::fs::write(dir.path().join("good/platform.toml"), PLATFORM).unwrap();
    settled(&platforms);
    assert!(platforms.get("good").is_ok());
    std::fs::write(missing, "kernel").unwrap();
    settled(&platforms);
    assert!(platforms.get("bad").is_ok());
}

/// A file that is half there was refused, and the jobs that asked for it ended.
#[test]
fn what_is_just_being_written_is_held_and_not_refused() {
    let dir = tempfile::tempdir().unwrap();
    let platforms = Platforms::load(dir.path().to_path_buf());
    add(dir.path(), "new", "[kern");
    assert!(platforms.reload());
    assert!(platforms.refused().is_empty());
    assert!(platforms.ready().is_empty());
    assert_eq!(platforms.why_held("new").as_deref(), Some(SETTLING));
    std::fs::write(dir.path().join("new/platform.toml"), PLATFORM).unwrap();
    settled(&platforms);
    assert_eq!(platforms.ready().len(), 1);
    std::fs::remove_dir_all(dir.path().join("new")).unwrap();
    assert!(platforms.reload());
    assert!(platforms.get("new").unwrap_err().contains("is not there"));
}

#[test]
fn of_two_names_that_differ_by_case_the_one_in_service_stays() {
    let dir = tempfile::tempdir().unwrap();
    add(dir.path(), "Debian-12", PLATFORM);
    let platforms = Platforms::load(dir.path().to_path_buf());
    add(dir.path(), "debian-12", PLATFORM);
    settled(&platforms);
    assert!(platforms.get("Debian-12").is_ok());
    let why = platforms.get("debian-12").unwrap_err();
    assert!(why.contains("its name is that of `Debian-12`"), "{why}");
    std::fs::remove_dir_all(dir.path().join("Debian-12")).unwrap();
    settled(&platforms);
    assert!(platforms.get("debian-12").is_ok());
}

#[test]
fn an_expired_platform_takes_no_work() {
    let dir = tempfile::tempdir().unwrap();
    let day = jiff::Zoned::now().date();
    add(dir.path(), "old", &format!("expires = {day}\n{PLATFORM}"));
    let tomorrow = day.tomorrow().unwrap();
    add(
        dir.path(),
        "good",
        &format!("expires = '{tomorrow}'\n{PLATFORM}"),
    );
    let platforms = Platforms::load(dir.path().to_path_buf());
    let why = platforms.get("old").unwrap_err();
    assert!(why.contains(&format!("expired on {day}")), "{why}");
    assert!(platforms.get("good").is_ok());
}

#[test]
fn a_disk_is_looked_into_before_the_platform_takes_work() {
    let dir = tempfile::tempdir().unwrap();
    let text = PLATFORM.replace("[kernel]", "[disk]");
    add(dir.path(), "disk", &text);
    let mut platforms = Platforms::load(dir.path().to_path_buf());
    assert_eq!(platforms.ready().len(), 1, "nobody looks into it");
    platforms = Platforms::read(dir.path().to_path_buf(), None, Inspection::Wanted);
    assert!(platforms.ready().is_empty());
    assert_eq!(platforms.usable().len(), 1);
    let [unchecked] = &platforms.unchecked()[..] else {
        panic!("one is to be looked into");
    };
    let fetching = Standing::Held("fetching 34 %".to_owned());
    assert!(platforms.tell(unchecked, fetching));
    assert_eq!(platforms.why_held("disk").as_deref(), Some("fetching 34 %"));
    std::fs::write(dir.path().join("disk/vmlinuz"), "another").unwrap();
    platforms.reload();
    assert!(
        !platforms.tell(unchecked, Standing::Ready),
        "it was another"
    );
    platforms.reload();
    let [again] = &platforms.unchecked()[..] else {
        panic!("it is to be looked into again");
    };
    assert!(platforms.tell(again, Standing::Ready));
    assert_eq!(platforms.ready().len(), 1);
    assert!(!platforms.reload(), "it stays so");
    assert_eq!(platforms.ready().len(), 1);
}
