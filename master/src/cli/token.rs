//! `vivarium token create | list | revoke`: who else may use the master.

use super::Remote;
use super::client::Client;
use super::terminal::{print, print_json};
use crate::model::Right;
use crate::web::{MadeToken, TokenView};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use reqwest::Method;
use serde_json::{Value, json};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token and print it, this once.
    Create {
        /// What it is for or who has it, e.g. `alice` or `prometheus`.
        name: String,
        /// `read` (where reading is not public), `act` (start, cancel, rerun) or `admin` (drain, tokens).
        #[arg(
            long,
            default_value = "act",
            value_parser = PossibleValuesParser::new(Right::ALL.map(Right::as_str))
                .try_map(|name| Right::from_name(&name).ok_or("no such right"))
        )]
        may: Right,
        #[command(flatten)]
        remote: Remote,
    },
    /// Show the tokens with what they may do and when they were last used.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a token useless, and end the logins by it.
    Revoke {
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

pub(super) async fn token(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Create { name, may, remote } => {
            let body = json!({ "name": name, "may": may });
            let client = Client::new(&remote)?;
            let made: MadeToken = client.act("api/tokens", &body).await?;
            match remote.json {
                true => print_json(&made)?,
                false => print(&format!("{}\n", made.token))?,
            }
        }
        TokenCommand::List { remote } => {
            let tokens = Client::new(&remote)?.tokens().await?;
            match remote.json {
                true => print_json(&tokens)?,
                false => tokens.iter().try_for_each(print_token)?,
            }
        }
        TokenCommand::Revoke { name, remote } => {
            let quoted: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
            let path = format!("api/tokens/{quoted}");
            let answer: Value = Client::new(&remote)?
                .change(Method::DELETE, &path, &json!({}))
                .await?;
            match remote.json {
                true => print_json(&answer)?,
                false => print(&format!("{name} is revoked\n"))?,
            }
        }
    }
    Ok(())
}

fn print_token(token: &TokenView) -> anyhow::Result<()> {
    let time = |at: Timestamp| {
        at.to_zoned(TimeZone::system())
            .strftime("%F %H:%M")
            .to_string()
    };
    print(&format!(
        "{:<24} {:<6} made {}  last used {}\n",
        token.name,
        token.may.as_str(),
        time(token.created_at),
        token.last_used_at.map_or("never".to_owned(), time),
    ))
}
