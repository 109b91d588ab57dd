//! One hub's address, and what every kind of hub says alike: requests, escaped addresses, refusals by status.

use std::time::SystemTime;

use reqwest::{Method, Response, StatusCode};
use url::Url;

use super::About;
use super::client::{Client, Follow, Request, read_body, shown};
use super::error::{Hidden, HubError};
use super::listing::{Commit, ListingError, RepositoryId, shorten};
use super::retry::retry_after;
use super::token::Credentials;

/// The largest listings of real models are a few hundred kilobytes.
pub(super) const LISTING_LIMIT: usize = 16 << 20;

/// A hub's address and the means to ask it.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) client: Client,
    pub(super) endpoint: Url,
    pub(super) credentials: Credentials,
}

impl Site {
    pub(super) async fn get(
        &self,
        url: Url,
        range: Option<(u64, Option<u64>)>,
        follow: Follow,
        what: &str,
    ) -> Result<Response, HubError> {
        self.client
            .send(Request {
                method: Method::GET,
                url,
                range,
                follow,
                what,
            })
            .await
    }

    /// An address below the hub's; each part is escaped, slashes inside it too.
    pub(super) fn url<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .expect("an HTTP address has a path")
            .pop_if_empty()
            .extend(parts);
        url
    }

    /// The body of an answer that must be JSON of this form.
    pub(super) async fn json<T: serde::de::DeserializeOwned>(
        &self,
        response: Response,
        what: &str,
    ) -> Result<T, HubError> {
        let url = response.url().clone();
        let body = read_body(response, LISTING_LIMIT, what).await?;
        serde_json::from_slice(&body).map_err(|error| not_a_hub(what, &url, &error.to_string()))
    }

    pub(super) fn refused_listing(&self, id: &RepositoryId, source: ListingError) -> HubError {
        HubError::Listing {
            id: id.clone(),
            endpoint: self.endpoint.to_string(),
            source,
        }
    }

    /// What a status means on every hub; `None` where that depends on the kind.
    pub(super) fn common_refusal(&self, response: &Response, what: &str) -> Option<HubError> {
        let status = response.status();
        let what = what.to_owned();
        let url = shown(response.url());
        let pause = retry_after(response.headers(), SystemTime::now());
        // The content's host knows nothing of rights and revisions; what it refuses is mostly an address that has become too old.
        let elsewhere = !self.client.is_hub(response.url()) && status.is_client_error();
        if status == StatusCode::TOO_MANY_REQUESTS {
            Some(HubError::RateLimited {
                what,
                url,
                retry_after: pause,
            })
        } else if status == StatusCode::REQUEST_TIMEOUT || status.is_server_error() || elsewhere {
            Some(HubError::Server {
                what,
                url,
                status: status.as_u16(),
                retry_after: pause,
            })
        } else {
            None
        }
    }

    /// A status 404 whose meaning the hub does not tell: whether the repository itself answers at `url` says what is absent.
    pub(super) async fn not_found(&self, about: About<'_>, url: Url) -> HubError {
        match about {
            About::Repository { id, revision } => {
                let what = format!("ask whether {id} exists");
                match self.get(url, None, Follow::Everywhere, &what).await {
                    Ok(response) if response.status().is_success() => {
                        self.no_revision(id, revision)
                    }
                    _ => self.no_repository(id),
                }
            }
            About::File { id, commit, path } => HubError::NoFile {
                id: id.clone(),
                commit: commit.clone(),
                endpoint: self.endpoint.to_string(),
                path: path.clone(),
            },
        }
    }

    pub(super) fn no_revision(&self, id: &RepositoryId, revision: &str) -> HubError {
        HubError::NoRevision {
            id: id.clone(),
            endpoint: self.endpoint.to_string(),
            revision: shorten(revision),
        }
    }

    pub(super) fn no_repository(&self, id: &RepositoryId) -> HubError {
        HubError::NoRepository {
            tried: vec![id.clone()],
            endpoint: self.endpoint.to_string(),
            hidden: self.credentials.token().map(|_| Hidden::FromThisToken),
        }
    }
}

impl<'a> About<'a> {
    pub(super) fn id(&self) -> &'a RepositoryId {
        match self {
            Self::Repository { id, .. } | Self::File { id, .. } => id,
        }
    }
}

/// The commit that a listing tells of, unless another one was asked for.
pub(super) fn agreed_commit(told: Option<Commit>, asked: &str) -> Result<Commit, String> {
    match (told, Commit::parse(asked).ok()) {
        (Some(told), Some(asked)) if told != asked => Err(format!(
            "asked for commit {asked}, it tells of commit {told}"
        )),
        (Some(commit), _) | (None, Some(commit)) => Ok(commit),
        (None, None) => Err("the listing names no commit".into()),
    }
}

pub(super) fn not_a_hub(what: &str, url: &Url, why: &str) -> HubError {
    HubError::NotAHub {
        what: what.to_owned(),
        url: shown(url),
        why: why.to_owned(),
    }
}

/// The hub's own words, short and without control characters.
pub(super) fn words(text: &str) -> String {
    let printable: String = text
        .chars()
        .filter(|character| !character.is_control())
        .collect();
    shorten(&printable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_every_part_of_an_address() {
        let endpoint = Url::parse("https://mirror.example/hf").unwrap();
        let site = Site {
            client: Client::new(endpoint.clone(), None, None).unwrap(),
            endpoint,
            credentials: Credentials::NotAsked,
        };
        assert_eq!(
            site.url(["a", "refs/pr/1", "x y?#%.json"]).as_str(),
            "https://mirror.example/hf/a/refs%2Fpr%2F1/x%20y%3F%23%25.json"
        );
    }

    #[test]
    fn believes_no_listing_of_another_commit() {
        let (one, other) = ("a".repeat(40), "b".repeat(40));
        let told = |text: &str| Some(Commit::parse(text).unwrap());
        assert_eq!(agreed_commit(told(&one), "main"), Ok(told(&one).unwrap()));
        assert_eq!(agreed_commit(None, &one), Ok(told(&one).unwrap()));
        assert!(
            agreed_commit(told(&one), &other)
                .unwrap_err()
                .contains(&other)
        );
        assert!(
            agreed_commit(None, "main")
                .unwrap_err()
                .contains("no commit")
        );
    }
}
