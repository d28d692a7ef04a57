//! Builds the agents that the master pushes into guests and lists them for `session/programs.rs`.
//!
//! ```text
//!   ../agent ──nested cargo, release, static──> OUT_DIR/<target> ──┐
//!   $VIVARIUM_AGENT_DIR/<os>-<arch> (built elsewhere) ─────────────┼─gzip─> OUT_DIR/agents.rs (include_bytes!)
//!   ../agent/sh, its parts joined ─────────────────────────────────┘
//! ```
//!
//! The nested cargo has a target folder of its own, so it never waits for the lock that the outer one holds; it
//! shares the outer one's job server and nothing else of its environment that would change what is built.

use sha2::{Digest, Sha256};
use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What an agent for Linux is built for. `+crt-static` makes it independent of the guest's C library.
const LINUX: &[(&str, &str)] = &[
    ("x86_64", "x86_64-unknown-linux-gnu"),
    ("aarch64", "aarch64-unknown-linux-gnu"),
];

/// The names that `VIVARIUM_AGENT_DIR` may hold: the words of `model::platform`, lower case and as variants.
const SYSTEMS: &[(&str, &str)] = &[
    ("linux", "Linux"),
    ("freebsd", "Freebsd"),
    ("netbsd", "Netbsd"),
    ("openbsd", "Openbsd"),
    ("dragonfly", "Dragonfly"),
    ("windows", "Windows"),
    ("macos", "Macos"),
];
const ARCHITECTURES: &[(&str, &str)] = &[("x86_64", "X86_64"), ("aarch64", "Aarch64")];

/// Passed on to the nested cargo although they begin with `CARGO`: where crates come from, and the job server.
const KEPT: &[&str] = &["CARGO_HOME", "CARGO_MAKEFLAGS"];
const KEPT_BEGINNINGS: &[&str] = &[
    "CARGO_NET_",
    "CARGO_HTTP_",
    "CARGO_REGISTRIES_",
    "CARGO_REGISTRY_",
    "CARGO_SOURCE_",
];

/// An agent's program and the guests it is for.
struct Agent {
    os: &'static str,
    arch: &'static str,
    path: PathBuf,
}

fn main() -> Result<(), Box<dyn Error>> {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let agent_dir = manifest_dir.join("../agent").canonicalize()?;
    for path in [
        "Cargo.toml",
        "src",
        "sh",
        "protocol/Cargo.toml",
        "protocol/src",
        "../Cargo.toml",
        "../Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", agent_dir.join(path).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=VIVARIUM_AGENT_DIR");

    let mut found = Vec::new();
    for (arch, target) in LINUX {
        // The machine's own kind must build. The others are built where the toolchain has them and are elsewhere
        // handed in through VIVARIUM_AGENT_DIR: a missing cross linker must not stop anybody's first build.
        if variable("TARGET")? == *target
            || (cfg!(target_os = "linux") && env::consts::ARCH == *arch)
        {
            found.push(Agent {
                os: "linux",
                arch,
                path: build(&agent_dir, &out_dir, target)?,
            });
        }
    }
    if let Some(dir) = env::var_os("VIVARIUM_AGENT_DIR") {
        for agent in list(Path::new(&dir))? {
            println!("cargo::rerun-if-changed={}", agent.path.display());
            found.retain(|other| (other.os, other.arch) != (agent.os, agent.arch));
            found.push(agent);
        }
    }
    write_table(&out_dir, &found, &joined(&agent_dir.join("sh"))?)
}

/// The agent in `sh`: its parts, in the order of their names.
fn joined(dir: &Path) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut parts = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "sh"));
    parts.sort();
    let mut script = Vec::new();
    for part in parts {
        script.extend(std::fs::read(part)?);
    }
    Ok(script)
}

fn variable(name: &str) -> Result<String, Box<dyn Error>> {
    env::var(name).map_err(|error| format!("{name}: {error}").into())
}

/// Builds the agent for one target and says where it is.
fn build(agent_dir: &Path, out_dir: &Path, target: &str) -> Result<PathBuf, Box<dyn Error>> {
    // Beside the folders of all build scripts, so that check, clippy and build share it; the copy is this build's own.
    let shared = out_dir
        .ancestors()
        .find(|dir| dir.file_name().is_some_and(|name| name == "build"))
        .and_then(Path::parent);
    let target_dir = shared.unwrap_or(out_dir).join("vivarium-agent-build");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        // Among them clippy's wrapper, the outer flags, profile overrides and the outer target folder.
        let disturbs = name.starts_with("CARGO")
            || name.starts_with("__CARGO")
            || matches!(
                name,
                "RUSTFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER" | "RUSTDOCFLAGS"
            );
        let kept = KEPT.contains(&name)
            || KEPT_BEGINNINGS
                .iter()
                .any(|beginning| name.starts_with(beginning))
            || (name.starts_with("CARGO_TARGET_") && name.ends_with("_LINKER"));
        if disturbs && !kept {
            cargo.env_remove(name);
        }
    }
    cargo
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "vivarium-agent",
            "--bin",
            "vivarium-agent",
        ])
        .args(["--target", target])
        .arg("--manifest-path")
        .arg(agent_dir.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(agent_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static")
        // It is sent to every guest: small counts for more than quick.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    let output = cargo
        .output()
        .map_err(|error| format!("cannot start {cargo:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "the agent for {target} does not build ({}):\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    let built = target_dir
        .join(target)
        .join("release")
        .join("vivarium-agent");
    let kept = out_dir.join(target);
    std::fs::copy(&built, &kept)
        .map_err(|error| format!("cannot copy {}: {error}", built.display()))?;
    Ok(kept)
}

/// The agents in a folder that are named for a guest that we know.
fn list(dir: &Path) -> Result<Vec<Agent>, Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", dir.display());
    let mut found = Vec::new();
    for (os, _) in SYSTEMS {
        for (arch, _) in ARCHITECTURES {
            let path = dir.join(format!("{os}-{arch}"));
            if path.is_file() {
                found.push(Agent {
                    os,
                    arch,
                    path: path.canonicalize()?,
                });
            }
        }
    }
    Ok(found)
}

fn write_table(out_dir: &Path, found: &[Agent], script: &[u8]) -> Result<(), Box<dyn Error>> {
    let variant = |names: &[(&'static str, &'static str)], name: &str| {
        names
            .iter()
            .find(|(lower, _)| *lower == name)
            .map_or("?", |(_, variant)| variant)
    };
    let mut table = format!("static NATIVE: [Native; {}] = [\n", found.len());
    for agent in found {
        let program = std::fs::read(&agent.path)
            .map_err(|error| format!("cannot read {}: {error}", agent.path.display()))?;
        let path = out_dir.join(format!("{}-{}.gz", agent.os, agent.arch));
        writeln!(
            table,
            "    Native {{ os: OsFamily::{}, arch: Architecture::{}, program: {} }},",
            variant(SYSTEMS, agent.os),
            variant(ARCHITECTURES, agent.arch),
            embedded("Native", &program, &path)?,
        )?;
    }
    let sh = embedded("Sh", script, &out_dir.join("sh.gz"))?;
    writeln!(table, "];\n\nstatic SH: Program = {sh};")?;
    std::fs::write(out_dir.join("agents.rs"), table)?;
    Ok(())
}

/// Packs a program into this file, and gives the Rust expression that embeds it.
fn embedded(kind: &str, program: &[u8], path: &Path) -> Result<String, Box<dyn Error>> {
    std::fs::write(path, packed(program)?)?;
    let mut sha256 = String::new();
    for byte in Sha256::digest(program) {
        write!(sha256, "{byte:02x}")?;
    }
    Ok(format!(
        "Program::embedded(AgentKind::{kind}, {}, {sha256:?}, include_bytes!({path:?}))",
        program.len(),
    ))
}

fn packed(program: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(program)?;
    Ok(packed.finish()?)
}
