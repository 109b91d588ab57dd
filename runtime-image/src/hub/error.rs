//! What can go wrong with a hub, in words that a person can act on, and which of it is worth another try.

use std::fmt::Write as _;
use std::time::Duration;

use url::Url;

use super::client::shown;
use super::listing::{Commit, ListingError, RepoPath, RepositoryId};
use crate::answer::{Failure, Reason};

/// From whom a hub hides that a repository exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hidden {
    /// From those without a token (status 401); what to do about the credentials.
    FromStrangers(String),
    /// From tokens without the right to see it.
    FromThisToken,
}

impl std::fmt::Display for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::FromStrangers(explanation) => write!(f, " (status 401): {explanation}"),
            Self::FromThisToken => f.write_str(": the token may not see it"),
        }
    }
}

/// A hub did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No connection, a cut one, or silence.
    #[error(
        "failed to {what}: {url} gave no complete answer: {cause}; check that the address is right and reachable from here, and proxy and certificates if there are any"
    )]
    NoAnswer {
        /// What was tried.
        what: String,
        /// The address, without its query.
        url: String,
        /// What the HTTP library said.
        cause: String,
    },
    /// A status of the 5xx family.
    #[error(
        "failed to {what}: {url} answered with status {status}; the hub is in trouble, it is asked again later"
    )]
    Server {
        /// What was tried.
        what: String,
        /// The address, without its query.
        url: String,
        /// The status.
        status: u16,
        /// How long the hub wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Status 429.
    #[error("failed to {what}: {url} allows no more requests from this address for now (status 429); it is asked again later{}", in_seconds(*retry_after))]
    RateLimited {
        /// What was tried.
        what: String,
        /// The address, without its query.
        url: String,
        /// How long the hub wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// Status 401, or 403 on a hub that says so to strangers.
    #[error(
        "failed to {what}: the hub wants credentials (status {status}{}): {explanation}",
        quoted(said)
    )]
    Credentials {
        /// What was tried.
        what: String,
        /// The status.
        status: u16,
        /// Which of no token, absent token, refused token it is, and what to do.
        explanation: String,
        /// The hub's own words.
        said: String,
    },
    /// Status 403, or a gated repository.
    #[error("failed to {what}: access is not granted (status 403{}): open {page} in a browser, signed in as the token's owner, and accept the licence; a token with restricted rights must also be allowed to read gated repositories{}", quoted(said), if *token { "" } else { " (no token was given)" })]
    Licence {
        /// What was tried.
        what: String,
        /// The model's page, where a person accepts the licence.
        page: String,
        /// The hub's own words.
        said: String,
        /// Whether a token was sent.
        token: bool,
    },
    /// No such repository, as far as this request may know.
    #[error("no repository {} on {endpoint}{}; check the id, for upper and lower case too", ids(tried), hidden.as_ref().map_or(String::new(), |hidden| format!(", or it is private{hidden}")))]
    NoRepository {
        /// Every id that was tried.
        tried: Vec<RepositoryId>,
        /// The hub's address.
        endpoint: String,
        /// Where the hub does not tell absent from private: from whom it may be hidden.
        hidden: Option<Hidden>,
    },
    /// The repository has no such revision.
    #[error("{id} on {endpoint} has no revision {revision:?}; check the branch, tag or commit")]
    NoRevision {
        /// The repository.
        id: RepositoryId,
        /// The hub's address.
        endpoint: String,
        /// What was asked for.
        revision: String,
    },
    /// The listing names a file that the hub does not have.
    #[error(
        "{id} at {commit} on {endpoint} has no file {path}, although its listing names it; check the mirror, or pin another revision"
    )]
    NoFile {
        /// The repository.
        id: RepositoryId,
        /// The commit.
        commit: Commit,
        /// The hub's address.
        endpoint: String,
        /// The file.
        path: RepoPath,
    },
    /// A redirect that is not followed.
    #[error("failed to {what}: {url} gave {why}; check the endpoint's address")]
    Redirect {
        /// What was tried.
        what: String,
        /// The last address, without its query.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A body beyond its limit.
    #[error(
        "failed to {what}: {url} sends more than {limit} bytes, which no such answer needs; check the endpoint's address"
    )]
    TooLarge {
        /// What was tried.
        what: String,
        /// The address, without its query.
        url: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// An answer that is not what such a hub answers.
    #[error(
        "failed to {what}: {url} does not answer as a hub does: {why}; check the endpoint's address"
    )]
    NotAHub {
        /// What was tried.
        what: String,
        /// The address, without its query.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// A status that has no meaning here.
    #[error(
        "failed to {what}: {url} answered with status {status}{}; check the endpoint, the id and the revision",
        quoted(said)
    )]
    Unexpected {
        /// What was tried.
        what: String,
        /// The address, without its query.
        url: String,
        /// The status.
        status: u16,
        /// The hub's own words.
        said: String,
    },
    /// A listing that is refused.
    #[error("the listing of {id} on {endpoint} is refused: {source}")]
    Listing {
        /// The repository.
        id: RepositoryId,
        /// The hub's address.
        endpoint: String,
        /// What is wrong with it.
        source: ListingError,
    },
}

impl HubError {
    /// No answer, or one that was cut.
    pub fn no_answer(what: &str, url: &Url, error: &(dyn std::error::Error + 'static)) -> Self {
        Self::NoAnswer {
            what: what.to_owned(),
            url: shown(url),
            cause: cause_of(error),
        }
    }

    /// Whether the same request may succeed a little later.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::NoAnswer { .. } | Self::Server { .. } | Self::RateLimited { .. }
        )
    }

    /// How long the hub wants to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Server { retry_after, .. } | Self::RateLimited { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    /// The stable word for it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoAnswer { .. } | Self::Server { .. } | Self::Redirect { .. } => {
                Reason::HubUnreachable
            }
            Self::RateLimited { .. } => Reason::HubRateLimited,
            Self::Credentials { .. }
            | Self::NoRepository {
                hidden: Some(Hidden::FromStrangers(_)),
                ..
            } => Reason::CredentialsMissing,
            Self::Licence { .. } => Reason::LicenceNotAccepted,
            Self::NoRepository { .. } | Self::NoRevision { .. } | Self::NoFile { .. } => {
                Reason::NotFoundOnHub
            }
            Self::TooLarge { .. }
            | Self::NotAHub { .. }
            | Self::Unexpected { .. }
            | Self::Listing { .. } => Reason::InvalidSource,
        }
    }
}

impl From<&HubError> for Failure {
    fn from(error: &HubError) -> Self {
        Self::new(error.reason(), error.to_string()).after(error.retry_after())
    }
}

/// An error and what caused it, in one line; addresses that an HTTP error carries are left out, for their queries.
pub(crate) fn cause_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let own = match error.downcast_ref::<reqwest::Error>() {
            Some(http) if http.is_connect() => "no connection".to_owned(),
            Some(http) if http.is_timeout() => "time-out".to_owned(),
            Some(http) if http.is_body() || http.is_decode() => "the answer was cut".to_owned(),
            Some(_) => "the request failed".to_owned(),
            None => error.to_string(),
        };
        if !text.contains(&own) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&own);
        }
        next = error.source();
    }
    text
}

fn quoted(said: &str) -> String {
    if said.is_empty() {
        String::new()
    } else {
        format!(", {said:?}")
    }
}

fn in_seconds(pause: Option<Duration>) -> String {
    pause.map_or(String::new(), |pause| {
        format!(", not before {} s have passed", pause.as_secs())
    })
}

fn ids(tried: &[RepositoryId]) -> String {
    let mut text = String::new();
    for (at, id) in tried.iter().enumerate() {
        let _ = match at {
            0 => write!(text, "{id}"),
            _ => write!(text, " and no {id}"),
        };
    }
    text
}
