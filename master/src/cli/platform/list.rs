//! `vivarium platform list`: a line for each platform, and below it what there is to say.

use super::super::Remote;
use super::super::client::Client;
use super::super::terminal::{colour_standing, print, print_json};
use anyhow::Context;
use jiff::civil::Date;
use serde::Deserialize;
use std::process::ExitCode;

/// What the master answers, as far as it is shown.
#[derive(Debug, Deserialize)]
struct Answer {
    ready: Vec<Shown>,
    held: Vec<Shown>,
    /// Unknown to masters before this one.
    #[serde(default)]
    out_of_service: Vec<Shown>,
    refused: Vec<Shown>,
}

/// One platform; of one whose file cannot be read only the name and why.
#[derive(Debug, Deserialize)]
struct Shown {
    name: String,
    why: Option<String>,
    #[serde(default)]
    tags: Vec<String>,
    os: Option<String>,
    os_version: Option<String>,
    arch: Option<String>,
    #[serde(rename = "where")]
    place: Option<String>,
    owner: Option<String>,
    known_issue: Option<String>,
    expires: Option<Date>,
    certificate: Option<Certificate>,
}

/// What its image's last test came to.
#[derive(Debug, Deserialize)]
struct Certificate {
    said: String,
    trouble: Option<String>,
}

pub(super) async fn list(remote: &Remote) -> anyhow::Result<ExitCode> {
    let answer = Client::new(remote)?.platforms().await?;
    if remote.json {
        print_json(&answer)?;
        return Ok(ExitCode::SUCCESS);
    }
    let answer: Answer =
        serde_json::from_value(answer).context("the master's answer is not understood")?;
    let all = [
        ("ready", answer.ready),
        ("waits", answer.held),
        ("OUT", answer.out_of_service),
        ("refused", answer.refused),
    ];
    let mut all: Vec<(&str, Shown)> = all
        .into_iter()
        .flat_map(|(state, shown)| shown.into_iter().map(move |shown| (state, shown)))
        .collect();
    all.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    if all.is_empty() {
        print("no platform: `vivarium platform add` makes one of an image\n")?;
    }
    let width = all.iter().map(|(_, shown)| shown.name.len()).max();
    for (state, shown) in &all {
        print(&line(state, shown, width.unwrap_or_default()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(state: &str, shown: &Shown, width: usize) -> String {
    let system = [&shown.os, &shown.os_version, &shown.arch];
    let system: Vec<&str> = system.into_iter().flatten().map(String::as_str).collect();
    let mut text = format!(
        "{}  {:<width$}  {}  [{}]  {}",
        colour_standing(state),
        shown.name,
        system.join(" "),
        shown.tags.join(", "),
        shown.place.as_deref().unwrap_or_default(),
    );
    text.truncate(text.trim_end().len());
    text.push('\n');
    let expires = shown.expires.map(|day| day.to_string());
    let certificate = shown.certificate.as_ref();
    let tested = certificate.map(|certificate| certificate.said.clone());
    let trouble = certificate.and_then(|certificate| certificate.trouble.clone());
    for (what, said) in [
        ("why", &shown.why),
        ("known issue", &shown.known_issue),
        ("expires", &expires),
        ("owner", &shown.owner),
        ("test", &tested),
        ("last night", &trouble),
    ] {
        if let Some(said) = said {
            let said = said.replace('\n', "\n         ");
            text.push_str(&format!("         {what}: {said}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_shown_and_what_is_not_leaves_no_gap() {
        let shown = |json: &str| serde_json::from_str::<Shown>(json).unwrap();
        let full = shown(
            r#"{"name": "netbsd-10", "why": null, "tags": ["bsd", "slow"], "os": "netbsd", "os_version": "10.1",
                "arch": "x86_64", "where": "/p/netbsd-10", "owner": "me", "known_issue": "hangs",
                "expires": "2027-06-30"}"#,
        );
        let text = line("ready", &full, 9);
        let (first, rest) = text.split_once('\n').unwrap();
        assert!(
            first.ends_with("netbsd-10  netbsd 10.1 x86_64  [bsd, slow]  /p/netbsd-10"),
            "{first}"
        );
        assert_eq!(
            rest,
            "         known issue: hangs\n         expires: 2027-06-30\n         owner: me\n"
        );
        let broken = line("refused", &shown(r#"{"name": "x", "why": "no TOML"}"#), 9);
        assert!(broken.ends_with("         why: no TOML\n"), "{broken}");
    }
}
