//! A hub of models: which files a repository holds at a revision, and their bytes.
//!
//! [`source`] turns what was typed into what is meant; [`client`] speaks HTTP with limits, redirects and a token that never leaves the hub's own host;
//! [`neighbourhood`] keeps a public hub from sending a fetch into the cluster's own network;
//! [`site`] is one hub's address with what every kind of hub refuses alike; [`huggingface`] and [`modelscope`] know the URLs and answers of their kind;
//! [`listing`] is what every kind gives, checked; [`choice`] picks the files that a format needs;
//! [`description`] reads what the model's own files say about it: [`dimensions`] from `config.json` or a GGUF file's first keys ([`gguf_header`]);
//! [`retry`] says how long to go on when a hub is in trouble; [`error`] says what went wrong in words for a person.
//! What never happens here: nothing is written to a disk.

pub mod choice;
pub mod client;
pub mod description;
mod dimensions;
pub mod error;
mod gguf_header;
pub mod huggingface;
pub mod listing;
pub mod modelscope;
mod neighbourhood;
pub mod retry;
mod site;
pub mod source;
pub mod token;

use std::time::Duration;

use reqwest::{Response, StatusCode};
use url::Url;

pub use choice::{Choice, ChoiceError, Format};
use client::Follow;
pub use error::HubError;
use huggingface::HuggingFace;
pub use listing::{Commit, FileDigest, RemoteFile, RepoPath, RepositoryId, Snapshot};
use modelscope::ModelScope;
pub use retry::Patience;
use site::Site;
pub use source::{HubKind, Source, SourceArgs, SourceError};
pub use token::Token;

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may stay silent before it counts as cut.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Files asked about or fetched at the same time; the real hub counts requests by address, so more would only meet its limits sooner.
pub const PARALLEL_FILES: usize = 4;

/// A hub of any kind, ready to be asked.
#[derive(Debug, Clone)]
pub struct Hub {
    patience: Patience,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    HuggingFace(HuggingFace),
    ModelScope(ModelScope),
}

/// What a hub says about one file when asked for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileFacts {
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Its digest.
    pub digest: Option<FileDigest>,
}

/// What a refused request was about.
#[derive(Debug, Clone, Copy)]
enum About<'a> {
    Repository {
        id: &'a RepositoryId,
        revision: &'a str,
    },
    File {
        id: &'a RepositoryId,
        commit: &'a Commit,
        path: &'a RepoPath,
    },
}

impl Hub {
    fn new(kind: HubKind, site: Site, patience: Patience) -> Self {
        Self {
            patience,
            kind: match kind {
                HubKind::Huggingface => Kind::HuggingFace(HuggingFace::new(site)),
                HubKind::Modelscope => Kind::ModelScope(ModelScope::new(site)),
            },
        }
    }

    /// How long to go on without progress.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// What the first of these repositories that exists holds at a revision.
    ///
    /// # Errors
    /// The first refusal that is not about the id; when no id exists, all of them.
    pub async fn snapshot(
        &self,
        ids: &[RepositoryId],
        revision: &str,
    ) -> Result<Snapshot, HubError> {
        let endpoint = &self.site().endpoint;
        let mut tried = Vec::new();
        let mut hidden_by = None;
        for id in ids {
            match self.patience.ask(|| self.list(id, revision)).await {
                Err(HubError::NoRepository { hidden, .. }) => {
                    tracing::info!(%id, %endpoint, "no such repository");
                    tried.push(id.clone());
                    hidden_by = hidden_by.or(hidden);
                }
                other => return other,
            }
        }
        Err(HubError::NoRepository {
            tried,
            endpoint: endpoint.to_string(),
            hidden: hidden_by,
        })
    }

    /// A file's bytes, from one on. Redirects lead wherever they are; the status is 200 or, when a range was asked for, perhaps 206 or 416.
    ///
    /// # Errors
    /// When the hub refuses, or does not answer.
    pub async fn open(
        &self,
        snapshot: &Snapshot,
        path: &RepoPath,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<Response, HubError> {
        self.open_at(None, snapshot, path, range).await
    }

    /// The same from where an earlier answer's redirects led, which spares the hub a request.
    ///
    /// # Errors
    /// As [`Self::open`]; an address that has become too old is trouble that may pass.
    pub async fn open_at(
        &self,
        link: Option<Url>,
        snapshot: &Snapshot,
        path: &RepoPath,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<Response, HubError> {
        let what = format!("read {path} of {} at {}", snapshot.id, snapshot.commit);
        let url = link.unwrap_or_else(|| match &self.kind {
            Kind::HuggingFace(hub) => hub.file_url(snapshot, path),
            Kind::ModelScope(hub) => hub.file_url(snapshot, path),
        });
        let response = self
            .site()
            .get(url, range, Follow::Everywhere, &what)
            .await?;
        let answered_range =
            range.is_some() && response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
        if response.status().is_success() || answered_range {
            return Ok(response);
        }
        let about = About::File {
            id: &snapshot.id,
            commit: &snapshot.commit,
            path,
        };
        Err(match &self.kind {
            Kind::HuggingFace(hub) => hub.refusal(response, &what, about).await,
            Kind::ModelScope(hub) => hub.refusal(response, &what, about).await,
        })
    }

    /// Size and digest of a file that the listing left out.
    ///
    /// # Errors
    /// When the hub refuses, or does not answer.
    pub async fn describe(
        &self,
        snapshot: &Snapshot,
        path: &RepoPath,
    ) -> Result<FileFacts, HubError> {
        if let Kind::HuggingFace(hub) = &self.kind
            && let Some(facts) = hub.describe(snapshot, path).await?
        {
            return Ok(facts);
        }
        // Only the headers are read: dropping the answer ends it.
        let response = self.open(snapshot, path, None).await?;
        Ok(match &self.kind {
            Kind::HuggingFace(hub) => hub.facts(&response),
            Kind::ModelScope(_) => FileFacts {
                size: response
                    .content_length()
                    .filter(|size| *size <= listing::SIZE_LIMIT),
                digest: None,
            },
        })
    }

    /// The page where a person reads about the model and accepts its licence.
    pub fn page(&self, id: &RepositoryId) -> String {
        match &self.kind {
            Kind::HuggingFace(hub) => hub.page(id),
            Kind::ModelScope(hub) => hub.page(id),
        }
    }

    /// Whether an address is the hub's own.
    pub fn is_hub(&self, url: &Url) -> bool {
        self.site().client.is_hub(url)
    }

    async fn list(&self, id: &RepositoryId, revision: &str) -> Result<Snapshot, HubError> {
        match &self.kind {
            Kind::HuggingFace(hub) => hub.list(id, revision).await,
            Kind::ModelScope(hub) => hub.list(id, revision).await,
        }
    }

    fn site(&self) -> &Site {
        match &self.kind {
            Kind::HuggingFace(hub) => hub.site(),
            Kind::ModelScope(hub) => hub.site(),
        }
    }
}
