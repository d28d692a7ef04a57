//! A shell as people name it, and the command that it means.

use schemars::JsonSchema;
use serde::Deserialize;

/// A shell by name, or a program with its arguments before the script.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(in crate::config) enum Shell {
    Named(String),
    Command(Vec<String>),
}

impl Shell {
    pub(in crate::config) fn into_command(self) -> Result<Vec<String>, String> {
        let words: &[&str] = match &self {
            Shell::Command(command) if command.is_empty() => {
                return Err("a shell given as a list needs at least the program".into());
            }
            Shell::Command(command) => return Ok(command.clone()),
            Shell::Named(name) => match name.as_str() {
                "sh" => &["sh", "-e", "-c"],
                "bash" => &["bash", "-e", "-o", "pipefail", "-c"],
                "cmd" => &["cmd", "/d", "/s", "/c"],
                "powershell" => &["powershell", "-NoProfile", "-NonInteractive", "-Command"],
                "pwsh" => &["pwsh", "-NoProfile", "-NonInteractive", "-Command"],
                other => {
                    return Err(format!(
                        "unknown shell `{other}`: known are sh, bash, cmd, powershell, pwsh, \
                         or a list such as [\"/bin/zsh\", \"-c\"]"
                    ));
                }
            },
        };
        Ok(words.iter().map(|word| (*word).to_owned()).collect())
    }
}
