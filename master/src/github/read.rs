//! Lists, page by page, and single things. What has not changed since the last time is not sent again (`ETag`), and such
//! an answer costs nothing of the hour's requests.

use super::auth::Whom;
use super::transport::{Call, Reply};
use super::{GitHub, GitHubError};
use http::{HeaderValue, StatusCode, header};
use serde::de::DeserializeOwned;
use std::collections::HashMap;

/// A page of fifty pull requests has about a megabyte.
const MOST_PAGE_BYTES: usize = 16 << 20;
/// Of pull requests in a page, which are large.
const PULLS_PER_PAGE: usize = 50;
/// Pages of one list that are read; beyond them the list is not whole.
const MOST_PAGES: usize = 40;

/// What a list said the last time, kept by who asks for it again.
#[derive(Debug)]
pub struct Pages<T> {
    known: HashMap<String, Page<T>>,
}

#[derive(Debug, Clone)]
struct Page<T> {
    tag: Option<HeaderValue>,
    items: Vec<T>,
    next: Option<String>,
}

/// A list, as far as it was read.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    pub items: Vec<T>,
    /// False when there was more than is read.
    pub is_whole: bool,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Pages {
            known: HashMap::new(),
        }
    }
}

impl GitHub {
    /// The open pull requests of a repository, those that changed last first.
    pub async fn open_pull_requests<T: DeserializeOwned + Clone>(
        &self,
        repository: &str,
        pages: &mut Pages<T>,
    ) -> Result<Listed<T>, GitHubError> {
        let path = format!(
            "/repos/{repository}/pulls?state=open&sort=updated&direction=desc&per_page={PULLS_PER_PAGE}"
        );
        self.list(Whom::Repository(repository), path, pages).await
    }

    /// One pull request; `None` when GitHub does not have it.
    pub async fn pull_request<T: DeserializeOwned>(
        &self,
        repository: &str,
        number: i64,
    ) -> Result<Option<T>, GitHubError> {
        self.one(repository, &format!("/repos/{repository}/pulls/{number}"))
            .await
    }

    /// The branches whose names begin so.
    pub async fn branches<T: DeserializeOwned + Clone>(
        &self,
        repository: &str,
        beginning: &str,
        pages: &mut Pages<T>,
    ) -> Result<Listed<T>, GitHubError> {
        let beginning = in_path(beginning);
        let path = format!("/repos/{repository}/git/matching-refs/heads/{beginning}");
        match self.list(Whom::Repository(repository), path, pages).await {
            // A repository without a commit.
            Err(GitHubError::Answer {
                status: StatusCode::CONFLICT,
                ..
            }) => Ok(Listed {
                items: Vec::new(),
                is_whole: true,
            }),
            listed => listed,
        }
    }

    /// One commit, with one of the files that it changes; `None` when GitHub does not have it.
    pub async fn commit<T: DeserializeOwned>(
        &self,
        repository: &str,
        sha: &str,
    ) -> Result<Option<T>, GitHubError> {
        self.one(
            repository,
            &format!("/repos/{repository}/commits/{sha}?per_page=1"),
        )
        .await
    }

    async fn one<T: DeserializeOwned>(
        &self,
        repository: &str,
        path: &str,
    ) -> Result<Option<T>, GitHubError> {
        let call = Call::get(path).at_most(MOST_PAGE_BYTES);
        match self.ask(Whom::Repository(repository), &call).await {
            Ok(reply) => Ok(Some(reply.parsed(path)?)),
            Err(GitHubError::Answer {
                status: StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY,
                ..
            }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a list from its first page on. Only the pages of this reading are remembered.
    pub(super) async fn list<T: DeserializeOwned + Clone>(
        &self,
        whom: Whom<'_>,
        first: String,
        pages: &mut Pages<T>,
    ) -> Result<Listed<T>, GitHubError> {
        let mut before = std::mem::take(&mut pages.known);
        let mut items = Vec::new();
        let mut path = first;
        for _ in 0..MOST_PAGES {
            let page = self.page(whom, &path, before.remove(&path)).await?;
            items.extend(page.items.iter().cloned());
            let next = page.next.clone();
            pages.known.insert(path, page);
            match next {
                Some(next) => path = next,
                None => {
                    return Ok(Listed {
                        items,
                        is_whole: true,
                    });
                }
            }
        }
        tracing::warn!(path, "a list of GitHub's is longer than what is read of it");
        Ok(Listed {
            items,
            is_whole: false,
        })
    }

    async fn page<T: DeserializeOwned>(
        &self,
        whom: Whom<'_>,
        path: &str,
        known: Option<Page<T>>,
    ) -> Result<Page<T>, GitHubError> {
        let tag = known.as_ref().and_then(|page| page.tag.clone());
        let call = Call::get(path)
            .at_most(MOST_PAGE_BYTES)
            .unless(tag.as_ref());
        let reply = self.send(whom, &call).await?;
        if let (StatusCode::NOT_MODIFIED, Some(page)) = (reply.status, known) {
            return Ok(page);
        }
        if !reply.status.is_success() {
            return Err(self.error_of(&reply));
        }
        Ok(Page {
            tag: reply.headers.get(header::ETAG).cloned(),
            items: reply.parsed(path)?,
            next: self.next_of(&reply),
        })
    }

    /// Path and query of the page after this one.
    pub(super) fn next_of(&self, reply: &Reply) -> Option<String> {
        let links = reply.header(header::LINK.as_str())?;
        let link = links
            .split(',')
            .find(|link| link.contains("rel=\"next\""))?;
        let (_, rest) = link.split_once('<')?;
        let (address, _) = rest.split_once('>')?;
        self.transport.path_of(&address.parse().ok()?)
    }
}

/// A branch's name as part of an address.
fn in_path(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::in_path;

    #[test]
    fn any_branch_fits_into_an_address() {
        assert_eq!(in_path("release/1.x"), "release/1.x");
        assert_eq!(in_path("ü#?% "), "%C3%BC%23%3F%25%20");
    }
}
