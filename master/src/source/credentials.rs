//! What a repository is fetched with. Handed to git in its environment, so that it is in no argument, URL or file.

use crate::config::RepositoryConfig;
use crate::github::GitHub;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt;
use futures::future::BoxFuture;
use secrecy::{ExposeSecret, SecretString};
use std::sync::Arc;
use url::{Host, Url};

/// A user and a password or token for HTTP's basic authentication.
#[derive(Debug, Clone)]
pub struct Credentials {
    user: String,
    password: SecretString,
}

impl Credentials {
    /// A token of GitHub: a personal one or an installation's.
    pub fn token(token: impl Into<String>) -> Credentials {
        Credentials::basic("x-access-token", token)
    }

    pub fn basic(user: impl Into<String>, password: impl Into<String>) -> Credentials {
        Credentials {
            user: user.into(),
            password: SecretString::from(password.into()),
        }
    }
}

/// Says what a repository is fetched with. Asked before each fetch, since tokens change and end.
pub trait Login: Send + Sync {
    fn credentials<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
    ) -> BoxFuture<'a, Option<Credentials>>;
}

/// The same for all.
impl Login for Option<Credentials> {
    fn credentials<'a>(&'a self, _: &'a RepositoryConfig) -> BoxFuture<'a, Option<Credentials>> {
        std::future::ready(self.clone()).boxed()
    }
}

/// GitHub's own credentials, for repositories on GitHub; where they cannot be had, that is told in the log.
impl Login for Arc<GitHub> {
    fn credentials<'a>(
        &'a self,
        repository: &'a RepositoryConfig,
    ) -> BoxFuture<'a, Option<Credentials>> {
        async move {
            if !repository.is_github() {
                return None;
            }
            match self.token_for(&repository.name).await {
                Ok(token) => Some(Credentials::token(token.expose_secret())),
                Err(error) => {
                    tracing::warn!(%error, "{} is fetched without a token", repository.name);
                    None
                }
            }
        }
        .boxed()
    }
}

/// Where git fetches from, with the secrets apart.
pub(super) struct Remote {
    /// Without user and password.
    pub(super) url: String,
    /// Whether a network lies between.
    pub(super) is_distant: bool,
    /// Configuration for git's environment.
    pub(super) config: Vec<(String, String)>,
    /// Texts that no message may show.
    pub(super) secrets: Vec<String>,
}

impl Remote {
    pub(super) fn new(repository: &RepositoryConfig, given: Option<Credentials>) -> Remote {
        let url = repository.fetch_url();
        let Some(mut url) = Url::parse(&url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
        else {
            let is_distant =
                !url.starts_with("file://") && (url.contains("://") || is_scp_like(&url));
            return Remote {
                url: absolute(url, is_distant),
                is_distant,
                config: Vec::new(),
                secrets: Vec::new(),
            };
        };
        let credentials = take_userinfo(&mut url)
            .or(given)
            .filter(|_| is_private(&url));
        let mut config = Vec::new();
        let mut secrets = Vec::new();
        if let Some(Credentials { user, password }) = credentials {
            let password = password.expose_secret();
            let pair = STANDARD.encode(format!("{user}:{password}"));
            config.push((
                format!("http.{}/.extraHeader", url.origin().ascii_serialization()),
                format!("Authorization: Basic {pair}"),
            ));
            secrets.extend([password.to_owned(), pair]);
        }
        Remote {
            url: url.into(),
            is_distant: true,
            config,
            secrets,
        }
    }
}

/// Takes the user and password out of the URL: git would show both to every user of this machine.
fn take_userinfo(url: &mut Url) -> Option<Credentials> {
    let decode = |text: &str| percent_decode(text);
    let user = decode(url.username());
    let password = url.password().map(decode);
    // An http URL has a host, so neither can fail.
    let cleared = url.set_username("").and(url.set_password(None));
    debug_assert!(cleared.is_ok());
    match (user.is_empty(), password) {
        (true, None) => None,
        (false, None) => Some(Credentials::basic("x-access-token", user)),
        (_, Some(password)) => Some(Credentials::basic(user, password)),
    }
}

fn percent_decode(text: &str) -> String {
    url::form_urlencoded::parse(
        format!("v={}", text.replace('+', "%2B").replace('&', "%26")).as_bytes(),
    )
    .next()
    .map(|(_, value)| value.into_owned())
    .unwrap_or_default()
}

/// A token is sent over TLS, or to this machine itself, never over an open network.
fn is_private(url: &Url) -> bool {
    url.scheme() == "https"
        || match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
}

/// `host:path`, as git reads it: a colon before any slash.
fn is_scp_like(url: &str) -> bool {
    url.split('/')
        .next()
        .is_some_and(|first| first.contains(':'))
}

/// Paths are taken from where the master runs; git itself runs elsewhere.
fn absolute(url: String, is_distant: bool) -> String {
    if is_distant || url.starts_with("file://") {
        return url;
    }
    std::path::absolute(&url)
        .ok()
        .and_then(|path| path.into_os_string().into_string().ok())
        .unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(url: &str, given: Option<Credentials>) -> Remote {
        let text = format!("[[repository]]\nname = 'a/b'\nurl = '{url}'\n");
        let config = crate::config::Config::parse(std::path::Path::new("/v.toml"), &text).unwrap();
        Remote::new(&config.repositories[0], given)
    }

    #[test]
    fn a_password_in_the_url_moves_to_the_header() {
        let remote = remote("https://bob:p%40ss+@git.example.org/x.git", None);
        assert_eq!(remote.url, "https://git.example.org/x.git");
        assert_eq!(
            remote.config[0].0,
            "http.https://git.example.org/.extraHeader"
        );
        assert_eq!(
            remote.config[0].1,
            format!("Authorization: Basic {}", STANDARD.encode("bob:p@ss+"))
        );
        assert!(remote.secrets.contains(&"p@ss+".to_owned()));
    }

    #[test]
    fn a_token_crosses_no_open_network() {
        let token = || Some(Credentials::token("t0ken"));
        assert!(
            remote("http://git.example.org/x", token())
                .config
                .is_empty()
        );
        assert!(!remote("http://127.0.0.1:8080/x", token()).config.is_empty());
        assert!(remote("ssh://git@example.org/x", token()).config.is_empty());
        assert!(!format!("{:?}", token()).contains("t0ken"));
    }

    #[test]
    fn paths_are_told_from_hosts() {
        for (url, is_distant) in [
            ("/srv/a b.git", false),
            ("./x", false),
            ("./x:y", false),
            ("file:///srv/x", false),
            ("git@host:x.git", true),
            ("git://host/x", true),
        ] {
            assert_eq!(remote(url, None).is_distant, is_distant, "{url}");
        }
        assert!(remote("./x", None).url.starts_with('/'));
    }
}
