//! What reaches a step's shell, and what comes back: its words, its environment, its end.

use super::Checks;
use crate::certify::certificate::Verdict;
use crate::certify::guest::{Question, Trouble, ended, shown};
use vivarium_protocol::Exit;

/// Shells that understand what a POSIX shell does.
const POSIX: [&str; 7] = ["sh", "ash", "bash", "dash", "ksh", "mksh", "zsh"];
/// All that a shell might take for something else.
const WORDS: &str =
    r#"single "double" $HOME ${x} `id` \n \\ 100% ! * ? ~ ; & | < > ( ) [ ] { } # é ß 日本"#;
const CMD: [&str; 4] = ["cmd", "/d", "/s", "/c"];

impl Checks<'_> {
    /// The platform's own shell is tried: most steps use it.
    pub(super) async fn shell(&mut self) -> Result<Verdict, Trouble> {
        let shell = self.guest.platform().shell.clone();
        let words: Vec<&str> = shell.iter().map(String::as_str).collect();
        let name = words.first().copied().unwrap_or_default();
        let stem = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let (script, wanted) = match stem.trim_end_matches(".exe") {
            posix if POSIX.contains(&posix) => (
                format!("printf '%s\\n' '{WORDS}' \"it's\"\n# a line\necho \"two  spaces\"\n"),
                format!("{WORDS}\nit's\ntwo  spaces\n"),
            ),
            "cmd" => (
                r#"echo a  b& echo "c & d""#.to_owned(),
                "a  b\n\"c & d\"\n".to_owned(),
            ),
            "powershell" | "pwsh" => (
                r#"Write-Output 'it''s  "quoted" $x'"#.to_owned(),
                "it's  \"quoted\" $x\n".to_owned(),
            ),
            _ => ("echo vivarium".to_owned(), "vivarium\n".to_owned()),
        };
        let said = self.guest.ask(Question::to(&words, script)).await?;
        let got = said.good()?.replace("\r\n", "\n");
        Ok(match got == wanted {
            true => Verdict::Passed(format!("{name} got every character as it was sent")),
            false => Verdict::Failed(format!(
                "{name} was to print \"{}\", and {}",
                wanted.escape_debug(),
                shown(got.as_bytes())
            )),
        })
    }

    pub(super) async fn environment(&mut self) -> Result<Verdict, Trouble> {
        let is_unix = self.guest.platform().os.is_unix();
        let value = match is_unix {
            true => format!("a=b  {WORDS}'\nsecond line"),
            false => "a=b  c".to_owned(),
        };
        let question = match is_unix {
            true => Question::sh(r#"printf '%s' "$VIVARIUM_TRY""#),
            false => Question::to(&CMD, "echo %VIVARIUM_TRY%"),
        };
        let said = self
            .guest
            .ask(question.with("VIVARIUM_TRY", &value))
            .await?;
        let got = said.good()?;
        if got.trim_end_matches(['\r', '\n']) != value {
            return Ok(Verdict::Failed(format!(
                "a variable was to be \"{}\", and {}",
                value.escape_debug(),
                shown(got.as_bytes())
            )));
        }
        if !is_unix {
            return Ok(Verdict::Passed("a variable came as it was sent".to_owned()));
        }
        let script = r#"for name in HOME PATH; do eval "value=\${$name-}"; [ -n "$value" ] || echo "$name"; done; id -un"#;
        let said = self.guest.ask(Question::sh(script)).await?.good()?;
        let mut lines: Vec<&str> = said.lines().collect();
        let user = lines.pop().unwrap_or_default();
        if !lines.is_empty() {
            let why = format!("these variables are not set: {}", lines.join(", "));
            return Ok(Verdict::Failed(why));
        }
        let wanted = &self.guest.platform().ssh.user;
        Ok(match user == wanted {
            true => Verdict::Passed(format!(
                "a variable came as it was sent; the user is {user}"
            )),
            false => Verdict::Failed(format!("steps run as {user}, and [ssh] user says {wanted}")),
        })
    }

    pub(super) async fn exit_codes(&mut self) -> Result<Verdict, Trouble> {
        let is_unix = self.guest.platform().os.is_unix();
        for code in [0, 1, 7, 255] {
            let question = match is_unix {
                true => Question::sh(format!("exit {code}")),
                false => Question::to(&CMD, format!("exit {code}")),
            };
            let exit = self.guest.ask(question).await?.exit;
            if exit != (Exit::Code { code }) {
                let why = format!("a step that was to exit with {code} {}", ended(exit));
                return Ok(Verdict::Failed(why));
            }
        }
        if !is_unix {
            return Ok(Verdict::Passed("0, 1, 7 and 255 arrive".to_owned()));
        }
        let exit = self.guest.ask(Question::sh("kill -9 $$")).await?.exit;
        // As a shell in between would say it.
        let is_right = match exit {
            Exit::Signal { signal } => signal == 9,
            Exit::Code { code } => code == 128 + 9,
            Exit::Lost => false,
        };
        Ok(match is_right {
            true => Verdict::Passed("0, 1, 7, 255 and a signal arrive".to_owned()),
            false => Verdict::Failed(format!(
                "a step that was to end by signal 9 {}",
                ended(exit)
            )),
        })
    }
}
