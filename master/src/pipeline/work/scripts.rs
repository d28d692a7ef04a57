//! A step's commands as its shell wants them.

use std::path::Path;

/// What the shell gets as its last argument.
///
/// PowerShell calls a script good whose last program failed, and goes on after an error: this makes it stop there, and exit
/// with the code of the last program that it ran.
pub(super) fn script(shell: &[String], run: &str) -> String {
    if !is_powershell(shell) {
        return run.to_owned();
    }
    format!(
        "$ErrorActionPreference = 'Stop'\n{}\nif (Test-Path -LiteralPath variable:\\LASTEXITCODE) {{ exit $LASTEXITCODE }}",
        run.trim_end()
    )
}

fn is_powershell(shell: &[String]) -> bool {
    let [program, .., last] = shell else {
        return false;
    };
    // A program of Windows may be named in full, and this runs on another system.
    let name = program.rsplit(['/', '\\']).next().unwrap_or(program);
    let stem = Path::new(name).file_stem().unwrap_or_default();
    let known = ["powershell", "pwsh"];
    known.iter().any(|known| stem.eq_ignore_ascii_case(known))
        && last.eq_ignore_ascii_case("-command")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powershell_ends_with_the_code_of_its_last_program() {
        let shell = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        for powershell in [
            "powershell",
            "pwsh",
            r"C:\Program Files\PowerShell\7\pwsh.exe",
        ] {
            let script = script(&shell(&[powershell, "-NoProfile", "-Command"]), "make\r\n");
            assert_eq!(
                script,
                "$ErrorActionPreference = 'Stop'\nmake\nif (Test-Path -LiteralPath variable:\\LASTEXITCODE) { exit $LASTEXITCODE }"
            );
        }
        for other in [
            &["cmd", "/c"][..],
            &["sh", "-c"],
            &["pwsh", "-File"],
            &["pwsh"],
        ] {
            assert_eq!(script(&shell(other), "make\n"), "make\n");
        }
    }
}
