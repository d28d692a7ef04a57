//! How a shell of Windows gets its script: a command line is one string here, and each program takes it apart as it likes.
//!
//! `cmd` does not know the quoting that other programs do. With `/s /c` it takes off the first and the last quotation mark
//! and runs what stands between them, as it was written. It reads one line only, and 8191 characters of it, so a
//! longer script goes through a file.

use std::path::Path;

/// What `cmd` takes on its command line, with room for its own name and switches.
const LONGEST_LINE: usize = 8000;

/// The shell's last argument.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Quoted as most programs expect it.
    Argument(String),
    /// Put on the command line as it is.
    Raw(String),
    /// To be written to a file, which the shell is to call.
    File(Vec<u8>),
}

/// Decides how `script` reaches the shell.
pub(super) fn hand_over(shell: &[String], script: &str) -> Script {
    if !is_cmd(shell) {
        return Script::Argument(script.to_owned());
    }
    let script = script.trim_end_matches(['\r', '\n']);
    if script.contains('\n') || script.len() > LONGEST_LINE {
        return Script::File(batch(script));
    }
    Script::Raw(format!("\"{script}\""))
}

/// What makes `cmd` run the batch file, as a raw argument.
pub(super) fn run(file: &Path) -> String {
    format!("\"\"{}\"\"", file.display())
}

fn is_cmd(shell: &[String]) -> bool {
    let [program, .., last] = shell else {
        return false;
    };
    let name = program.rsplit(['/', '\\']).next().unwrap_or(program);
    ["cmd", "cmd.exe"]
        .iter()
        .any(|cmd| name.eq_ignore_ascii_case(cmd))
        && last.eq_ignore_ascii_case("/c")
}

/// The script as a subroutine, so that its end is `cmd`'s end with the code of its last command, whether it leaves by
/// `exit /b`, by `goto :eof` or at its last line. A batch file is read in the console's code page.
fn batch(script: &str) -> Vec<u8> {
    let mut file = String::from("@echo off\r\n");
    if !script.is_ascii() {
        file.push_str("chcp 65001 >nul\r\n");
    }
    file.push_str("call :vivarium\r\nexit %errorlevel%\r\n:vivarium\r\n");
    for line in script.lines() {
        file.push_str(line);
        file.push_str("\r\n");
    }
    file.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn cmd_gets_a_line_as_it_was_written_between_two_quotation_marks() {
        let cmd = shell(&["cmd", "/d", "/s", "/c"]);
        assert_eq!(
            hand_over(&cmd, "echo \"a b\" & exit 3\n"),
            Script::Raw("\"echo \"a b\" & exit 3\"".to_owned())
        );
        for other in [
            &["cmd", "/k"][..],
            &["powershell", "-Command"],
            &["sh", "-c"],
            &["cmd"],
        ] {
            assert_eq!(
                hand_over(&shell(other), "echo a"),
                Script::Argument("echo a".to_owned())
            );
        }
    }

    #[test]
    fn lines_and_long_lines_go_through_a_file() {
        let cmd = shell(&["C:\\Windows\\System32\\CMD.EXE", "/C"]);
        assert_eq!(
            hand_over(&cmd, "echo a\necho b\r\n"),
            Script::File(
                b"@echo off\r\ncall :vivarium\r\nexit %errorlevel%\r\n:vivarium\r\necho a\r\necho b\r\n".to_vec()
            )
        );
        let long = "x".repeat(LONGEST_LINE + 1);
        assert!(matches!(hand_over(&cmd, &long), Script::File(_)));
        let Script::File(file) = hand_over(&cmd, "echo \u{e4}\necho b") else {
            panic!("no file");
        };
        assert!(file.starts_with(b"@echo off\r\nchcp 65001 >nul\r\n"));
        assert_eq!(run(Path::new("C:\\a b.cmd")), "\"\"C:\\a b.cmd\"\"");
    }
}
