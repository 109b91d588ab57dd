//! Where a model comes from: as typed ([`SourceArgs`]) and as meant ([`Source`]).
//!
//! Only what clap itself can refuse ends with exit code 2; the rest becomes a `Failed` answer with `InvalidSource`,
//! because ids, endpoints and patterns come from a user's object and the reason must reach that object's status.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use url::Url;

use super::Hub;
use super::choice::{Choice, ChoiceError, Format};
use super::client::{Client, ClientError, shown};
use super::listing::{ListingError, RepositoryId, shorten};
use super::retry::Patience;
use super::site::Site;
use super::token::{Credentials, TokenError};
use crate::answer::{Failure, Reason};

/// More aliases than any model has names.
const ALIASES_LIMIT: usize = 16;

/// The longest revision, in bytes: branches and tags are names, commits 40 digits.
const REVISION_LIMIT: usize = 256;

/// The flags that `resolve` and `fetch` share.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The hub's kind: it says which URLs and answers to expect.
    #[arg(long, env = "CHANDLER_HUB", value_enum, default_value_t = HubKind::Huggingface)]
    pub hub: HubKind,
    /// The hub's address, or that of a mirror of it; the public hub of the kind by default.
    #[arg(long, env = "CHANDLER_ENDPOINT")]
    pub endpoint: Option<String>,
    /// The repository, ORG/NAME.
    #[arg(long, env = "CHANDLER_ID")]
    pub id: String,
    /// Other names of the repository, tried in order when the first is not found. May be repeated.
    #[arg(long = "alias", env = "CHANDLER_ALIAS", value_delimiter = '\n')]
    pub aliases: Vec<String>,
    /// Branch, tag or commit; `main` is ModelScope's `master` where there is no branch of that name.
    #[arg(long, env = "CHANDLER_REVISION", default_value = "main")]
    pub revision: String,
    /// How the weights are stored: it says which files are needed.
    #[arg(long, env = "CHANDLER_FORMAT", value_enum)]
    pub format: Format,
    /// A glob over paths in the repository, in place of what the format needs. May be repeated.
    #[arg(long = "file", env = "CHANDLER_FILE", value_delimiter = '\n')]
    pub files: Vec<String>,
    /// A file that holds the hub's token. A file that does not exist means no token.
    #[arg(long, env = "CHANDLER_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Where the answer goes beside standard output. Without it, to the container's termination log where there is one.
    #[arg(long, env = "CHANDLER_RESULT_FILE")]
    pub result_file: Option<PathBuf>,
    /// How many seconds a hub in trouble may give no byte before the command gives up.
    #[arg(
        long,
        env = "CHANDLER_PATIENCE_SECONDS",
        default_value_t = 60,
        hide = true
    )]
    pub patience_seconds: u64,
    /// PEM text of certificates trusted beside the system's.
    #[arg(long, env = "CHANDLER_CA_BUNDLE", hide = true, hide_env_values = true)]
    pub ca_bundle: Option<String>,
}

/// The hubs that the catalog names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HubKind {
    /// Hugging Face, its mirrors, and what speaks like it.
    Huggingface,
    /// ModelScope.
    Modelscope,
}

impl HubKind {
    /// The public hub of this kind.
    fn address(self) -> &'static str {
        match self {
            Self::Huggingface => "https://huggingface.co",
            Self::Modelscope => "https://modelscope.cn",
        }
    }
}

/// A model on a hub, checked.
#[derive(Debug, Clone)]
pub struct Source {
    /// The hub's kind.
    pub hub: HubKind,
    /// The hub's address, without a slash at its end.
    pub endpoint: Url,
    /// The repository and its other names, in the order to try them; never empty.
    pub ids: Vec<RepositoryId>,
    /// Branch, tag or commit.
    pub revision: String,
    /// The files that are wanted.
    pub choice: Choice,
    /// The token, or why there is none.
    pub credentials: Credentials,
    /// How long to go on without progress.
    pub patience: Patience,
    ca_bundle: Option<String>,
}

/// What was typed makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The endpoint.
    #[error("the endpoint {endpoint:?} {why}; write it as https://HOST")]
    Endpoint {
        /// What was typed, without what may be secret.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The id or an alias.
    #[error(transparent)]
    Id(#[from] ListingError),
    /// Too many aliases.
    #[error("{0} aliases are given, at most {ALIASES_LIMIT} make sense")]
    TooManyAliases(usize),
    /// The revision.
    #[error("the revision {0:?} is no branch, tag or commit")]
    Revision(String),
    /// The patterns.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// The token's file.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The HTTP client.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl SourceArgs {
    /// Checks what was typed and reads the token.
    ///
    /// # Errors
    /// Says which flag makes no sense.
    pub fn check(self) -> Result<Source, SourceError> {
        if self.aliases.len() > ALIASES_LIMIT {
            return Err(SourceError::TooManyAliases(self.aliases.len()));
        }
        let endpoint = parse_endpoint(self.endpoint.as_deref().unwrap_or(self.hub.address()))?;
        let mut ids = Vec::new();
        for text in std::iter::once(&self.id).chain(&self.aliases) {
            let id = RepositoryId::parse(text)?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        if !is_revision(&self.revision) {
            return Err(SourceError::Revision(shorten(&self.revision)));
        }
        Ok(Source {
            hub: self.hub,
            endpoint,
            ids,
            revision: self.revision,
            choice: Choice::new(self.format, self.files)?,
            credentials: Credentials::read(self.token_file.as_deref())?,
            patience: Patience(Duration::from_secs(self.patience_seconds)),
            ca_bundle: self.ca_bundle,
        })
    }
}

impl Source {
    /// The hub, ready to be asked.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn connect(&self) -> Result<Hub, ClientError> {
        let client = Client::new(
            self.endpoint.clone(),
            self.credentials.token().cloned(),
            self.ca_bundle.as_deref(),
        )?;
        let site = Site {
            client,
            endpoint: self.endpoint.clone(),
            credentials: self.credentials.clone(),
        };
        Ok(Hub::new(self.hub, site, self.patience))
    }
}

impl From<&SourceError> for Failure {
    fn from(error: &SourceError) -> Self {
        let reason = match error {
            SourceError::Choice(error) => error.reason(),
            SourceError::Token(_) => Reason::CredentialsMissing,
            SourceError::Endpoint { .. }
            | SourceError::Id(_)
            | SourceError::TooManyAliases(_)
            | SourceError::Revision(_)
            | SourceError::Client(_) => Reason::InvalidSource,
        };
        Self::new(reason, error.to_string())
    }
}

fn parse_endpoint(text: &str) -> Result<Url, SourceError> {
    let refuse = |endpoint: String, why| Err(SourceError::Endpoint { endpoint, why });
    let Ok(url) = Url::parse(text.trim().trim_end_matches('/')) else {
        return refuse(shorten(text), "is no address");
    };
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return refuse(shorten(&shown(&url)), "is no HTTP address");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(
            shown(&url),
            "holds a user or password, which belong into a Secret",
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse(shown(&url), "holds a query or fragment");
    }
    Ok(url)
}

/// Slashes may stand in a revision (`refs/pr/1`); it is sent as one escaped part of the path, so it can lead nowhere else.
fn is_revision(text: &str) -> bool {
    let characters = |character: char| character.is_alphanumeric() || "._-+/@=".contains(character);
    (1..=REVISION_LIMIT).contains(&text.len())
        && text.chars().all(characters)
        && text
            .split('/')
            .all(|name| !name.is_empty() && name != "." && name != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_path_of_a_mirror() {
        assert_eq!(
            parse_endpoint("https://mirror.example/hf/")
                .unwrap()
                .as_str(),
            "https://mirror.example/hf"
        );
        assert_eq!(
            parse_endpoint("http://127.0.0.1:8080").unwrap().as_str(),
            "http://127.0.0.1:8080/"
        );
    }

    #[test]
    fn refuses_endpoints_that_are_none() {
        for text in [
            "",
            "huggingface.co",
            "ftp://x",
            "file:///etc",
            "https://",
            "https://x?y=1",
            "https://x#y",
        ] {
            assert!(parse_endpoint(text).is_err(), "{text:?} was taken");
        }
        let error = parse_endpoint("https://user:secret@x")
            .unwrap_err()
            .to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn knows_a_revision() {
        for text in ["main", "v1.0", "refs/pr/1", &"a".repeat(40)] {
            assert!(is_revision(text), "{text}");
        }
        for text in [
            "",
            "..",
            "a/../b",
            "/a",
            "a b",
            "a?b",
            "a#b",
            "a%2e",
            "a\nb",
            &"a".repeat(257),
        ] {
            assert!(!is_revision(text), "{text:?} was taken");
        }
    }
}
