//! What the master itself runs in a guest, in the language of the guest's own shell.

use crate::model::OsFamily;

/// What is to be done; paths are as `platform.toml` has them.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chore<'a> {
    /// Removes the work directory.
    Leave { dir: &'a str },
    /// Makes a clone of the bundle, and removes the bundle. Exits with [`NO_GIT`] where there is no git.
    Unbundle { bundle: &'a str, dir: &'a str },
}

/// A shell's own word for a program that is not there.
pub(super) const NO_GIT: i32 = 127;

impl Chore<'_> {
    /// The name of its execution.
    pub(super) fn name(self) -> &'static str {
        match self {
            Chore::Leave { .. } => "leave",
            Chore::Unbundle { .. } => "source",
        }
    }

    /// The shell and the script.
    pub(super) fn command(self, os: OsFamily) -> (Vec<String>, String) {
        match os {
            OsFamily::Windows => (words(&["cmd", "/d", "/s", "/c"]), self.in_cmd()),
            OsFamily::Linux
            | OsFamily::Freebsd
            | OsFamily::Netbsd
            | OsFamily::Openbsd
            | OsFamily::Dragonfly
            | OsFamily::Macos => (words(&["sh", "-e", "-c"]), self.in_sh()),
        }
    }

    fn in_sh(self) -> String {
        match self {
            Chore::Leave { dir } => format!("rm -rf '{dir}'"),
            Chore::Unbundle { bundle, dir } => format!(
                "rm -rf '{dir}' && git clone -q --branch vivarium '{bundle}' '{dir}' && git -C '{dir}' remote remove origin && rm -f '{bundle}'"
            ),
        }
    }

    fn in_cmd(self) -> String {
        match self {
            Chore::Leave { dir } => remove_folder(dir),
            Chore::Unbundle { bundle, dir } => {
                let (remove, bundle, dir) = (remove_folder(dir), native(bundle), native(dir));
                format!(
                    "(git --version >nul 2>nul || exit {NO_GIT}) & {remove} & git clone -q --branch vivarium \"{bundle}\" \"{dir}\" \
                     && git -C \"{dir}\" remote remove origin && del /f /q \"{bundle}\""
                )
            }
        }
    }
}

/// One that is not there is as good.
fn remove_folder(dir: &str) -> String {
    format!("rmdir /s /q \"{}\" 2>nul", native(dir))
}

/// Windows' own commands take a slash for the beginning of a switch.
pub(super) fn native(path: &str) -> String {
    path.replace('/', "\\")
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chore_speaks_the_language_of_the_guest() {
        let leave = Chore::Leave { dir: "C:/w/1" };
        let (shell, script) = leave.command(OsFamily::Windows);
        assert_eq!(shell[0], "cmd");
        assert_eq!(script, r#"rmdir /s /q "C:\w\1" 2>nul"#);
        let (shell, script) = Chore::Leave { dir: "/w/1" }.command(OsFamily::Openbsd);
        assert_eq!(shell, ["sh", "-e", "-c"]);
        assert_eq!(script, "rm -rf '/w/1'");
    }
}
