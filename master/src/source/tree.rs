//! What a commit holds: single files, what changed, and the whole of it as a stream.
//!
//! An archive has the files as a checkout on Linux would: line ends and encodings that `.gitattributes` asks for are
//! applied, and modes are 755 or 644. Unlike in `git archive` nothing is left out or filled in: `info/attributes` of the
//! mirror, which goes before the tree's own, turns `export-ignore` and `export-subst` off. Submodules are empty folders,
//! files of Git LFS are their pointers.

use super::names::{Name, fault_of_path};
use super::{Archive, SourceError, Sources};
use crate::config::RepositoryConfig;

/// The longest file that [`Sources::file_at`] reads, in bytes.
const MAX_FILE: usize = 1 << 20;
/// The longest list of changed files, in bytes.
const MAX_CHANGES: usize = 1 << 20;
/// What the mirror's `info/attributes` holds.
pub(super) const ATTRIBUTES: &str = "* -export-ignore -export-subst\n";

impl Sources {
    /// A file's content, or `None` where there is none. Symbolic links, folders and files over 1 MiB are refused.
    pub async fn file_at(
        &self,
        repository: &RepositoryConfig,
        sha: &str,
        path: &str,
    ) -> Result<Option<Vec<u8>>, SourceError> {
        const WHAT: &str = "read a file of";
        if let Some(why) = fault_of_path(path) {
            return Err(SourceError::BadName {
                repository: repository.name.clone(),
                name: path.escape_debug().to_string(),
                why,
            });
        }
        let refused = |why: String| SourceError::Unreadable {
            repository: repository.name.clone(),
            path: path.to_owned(),
            why,
        };
        let sha = self.commit(repository, sha).await?;
        let call = self.ask(repository, WHAT).await?;
        let judge = call.judge();
        let listed = call
            .args(["ls-tree", "-z", "--long", &sha, "--", path])
            .run()
            .await?;
        if !listed.is_success() {
            return Err(self
                .explain(repository, &[&sha], &judge, &listed.stderr)
                .await);
        }
        // "<mode> <type> <object> <size>\t<path>\0"
        let listed = listed.text();
        let Some((entry, _)) = listed.split_once('\t') else {
            return Ok(None);
        };
        let words: Vec<&str> = entry.split_whitespace().collect();
        let &[mode, kind, object, size] = words.as_slice() else {
            return Err(judge.error(entry));
        };
        match (mode, kind) {
            ("120000", _) => return Err(refused("it is a symbolic link, not a file".into())),
            (_, "blob") => {}
            (_, "commit") => return Err(refused("it is a submodule, not a file".into())),
            _ => return Err(refused("it is a folder, not a file".into())),
        }
        if size.parse().is_ok_and(|size: usize| size > MAX_FILE) {
            return Err(refused(format!(
                "it has {size} bytes, at most {MAX_FILE} are read"
            )));
        }
        let output = self
            .ask(repository, WHAT)
            .await?
            .args(["cat-file", "blob", object])
            .limit(MAX_FILE)
            .succeed()
            .await?;
        Ok(Some(output.stdout))
    }

    /// The paths that differ between two commits, one a line, as bytes since a path may be in any encoding.
    ///
    /// A line break inside a path becomes `?`. The list ends at 1 MiB, after a whole line.
    pub async fn changed_files(
        &self,
        repository: &RepositoryConfig,
        from: &str,
        to: &str,
    ) -> Result<Vec<u8>, SourceError> {
        let from = self.commit(repository, from).await?;
        let to = self.commit(repository, to).await?;
        let call = self.ask(repository, "compare commits of").await?;
        let judge = call.judge();
        let output = call
            .args([
                "diff-tree",
                "-r",
                "-z",
                "--name-only",
                "--no-renames",
                &from,
                &to,
                "--",
            ])
            .limit(MAX_CHANGES)
            .run()
            .await?;
        if !output.is_success() {
            return Err(self
                .explain(repository, &[&from, &to], &judge, &output.stderr)
                .await);
        }
        let mut lines = output.stdout;
        if output.is_cut {
            let whole = lines
                .iter()
                .rposition(|byte| *byte == 0)
                .map_or(0, |end| end + 1);
            lines.truncate(whole);
        }
        for byte in &mut lines {
            match *byte {
                b'\n' => *byte = b'?',
                0 => *byte = b'\n',
                _ => {}
            }
        }
        Ok(lines)
    }

    /// The commit's files as a tar archive.
    pub async fn archive(
        &self,
        repository: &RepositoryConfig,
        sha: &str,
    ) -> Result<Archive, SourceError> {
        let sha = self.resolve(repository, sha).await?;
        let running = self
            .ask(repository, "archive the files of")
            .await?
            .args(["archive", "--format=tar", &sha])
            .stream()
            .await?;
        Ok(Archive::new(Vec::new(), running))
    }

    /// The commit with its whole history as a git bundle, which `git clone` and `git fetch` read like a repository.
    ///
    /// Its refs are `HEAD`, `reference_name` (a branch where it does not begin with `refs/`) and the tags that point into
    /// the history. It is made on the way: no file, and no ref in the mirror for a commit that has none.
    pub async fn bundle(
        &self,
        repository: &RepositoryConfig,
        sha: &str,
        reference_name: &str,
    ) -> Result<Archive, SourceError> {
        const WHAT: &str = "bundle the history of";
        let reference = match Name::parse(repository, reference_name)? {
            Name::Ref(name) => name,
            Name::Short(name) | Name::Sha(name) => format!("refs/heads/{name}"),
        };
        let sha = self.resolve(repository, sha).await?;
        let tags = self
            .ask(repository, WHAT)
            .await?
            .args([
                "for-each-ref",
                &format!("--merged={sha}"),
                "--format=%(objectname) %(refname)",
                "refs/tags",
            ])
            .succeed()
            .await?
            .text();
        let head = bundle_head(&sha, &reference, &tags);
        let objects: String = std::iter::once(sha.as_str())
            .chain(tags.lines().filter_map(|line| line.split(' ').next()))
            .map(|object| format!("{object}\n"))
            .collect();
        let running = self
            .ask(repository, WHAT)
            .await?
            .args([
                "pack-objects",
                "--revs",
                "--stdout",
                "--delta-base-offset",
                "-q",
            ])
            .input(objects)
            .stream()
            .await?;
        Ok(Archive::new(head, running))
    }
}

/// What stands before the pack in a bundle: see gitformat-bundle(5).
fn bundle_head(sha: &str, reference: &str, tags: &str) -> Vec<u8> {
    let signature = match sha.len() {
        64 => "# v3 git bundle\n@object-format=sha256\n",
        _ => "# v2 git bundle\n",
    };
    let tags: String = tags
        .lines()
        .filter(|line| line.split(' ').nth(1) != Some(reference))
        .map(|line| format!("{line}\n"))
        .collect();
    format!("{signature}{sha} HEAD\n{sha} {reference}\n{tags}\n").into_bytes()
}
