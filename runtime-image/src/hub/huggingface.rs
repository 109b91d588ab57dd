//! Hugging Face's URLs and answers, as its own clients and its mirrors use them.
//!
//! `/api/models/ID/revision/REV?blobs=true` lists a repository, `/ID/resolve/COMMIT/PATH` gives a file, often by a redirect to another host.
//! Refusals carry `X-Error-Code`; without it, as on many mirrors, one more question tells an absent repository from an absent revision.

use std::time::SystemTime;

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::client::{Client, Follow, Request, read_body, shown};
use super::error::{Hidden, HubError};
use super::listing::{
    Commit, FileDigest, ListingError, RemoteFile, RepoPath, RepositoryId, SIZE_LIMIT, Snapshot,
    shorten,
};
use super::retry::{Patience, retry_after};
use super::token::Credentials;

/// The largest listings of real models are a few hundred kilobytes.
const LISTING_LIMIT: usize = 16 << 20;

/// A hub that speaks Hugging Face's language.
#[derive(Debug, Clone)]
pub struct HuggingFace {
    client: Client,
    endpoint: Url,
    credentials: Credentials,
    patience: Patience,
}

/// What the hub says about one file when asked for it.
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

#[derive(Deserialize)]
struct ModelInfo {
    sha: Option<String>,
    siblings: Option<Vec<Sibling>>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl HuggingFace {
    pub(super) fn new(
        client: Client,
        endpoint: Url,
        credentials: Credentials,
        patience: Patience,
    ) -> Self {
        Self {
            client,
            endpoint,
            credentials,
            patience,
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
        let mut tried = Vec::new();
        let mut hidden_by = None;
        for id in ids {
            match self.patience.ask(|| self.list(id, revision)).await {
                Err(HubError::NoRepository { hidden, .. }) => {
                    tracing::info!(%id, endpoint = %self.endpoint, "no such repository");
                    tried.push(id.clone());
                    hidden_by = hidden_by.or(hidden);
                }
                other => return other,
            }
        }
        Err(HubError::NoRepository {
            tried,
            endpoint: self.endpoint.to_string(),
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
        let what = format!("read {path} of {} at {}", snapshot.id, snapshot.commit);
        let url = self.file_url(snapshot, path);
        let response = self
            .client
            .send(Request {
                method: Method::GET,
                url,
                range,
                follow: Follow::Everywhere,
                what: &what,
            })
            .await?;
        let answered_range =
            range.is_some() && response.status() == StatusCode::RANGE_NOT_SATISFIABLE;
        if response.status().is_success() || answered_range {
            return Ok(response);
        }
        Err(self
            .refusal(
                response,
                &what,
                About::File {
                    id: &snapshot.id,
                    commit: &snapshot.commit,
                    path,
                },
            )
            .await)
    }

    /// Size and digest of a file that the listing left out, from the headers of its own address.
    ///
    /// # Errors
    /// When the hub refuses, or does not answer.
    pub async fn describe(
        &self,
        snapshot: &Snapshot,
        path: &RepoPath,
    ) -> Result<FileFacts, HubError> {
        let what = format!(
            "ask for size and digest of {path} of {} at {}",
            snapshot.id, snapshot.commit
        );
        let url = self.file_url(snapshot, path);
        let request = Request {
            method: Method::HEAD,
            url,
            range: None,
            follow: Follow::WithinHub,
            what: &what,
        };
        let mut response = self.client.send(request.clone()).await?;
        if response.status().is_redirection() && linked(response.headers()).is_none() {
            // The bytes are elsewhere and the hub itself tells nothing about them: their host may.
            response = self
                .client
                .send(Request {
                    follow: Follow::Everywhere,
                    ..request
                })
                .await?;
        }
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(facts(&response, self.client.is_hub(response.url())));
        }
        if matches!(
            status,
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        ) {
            let response = self.open(snapshot, path, None).await?;
            return Ok(facts(&response, self.client.is_hub(response.url())));
        }
        Err(self
            .refusal(
                response,
                &what,
                About::File {
                    id: &snapshot.id,
                    commit: &snapshot.commit,
                    path,
                },
            )
            .await)
    }

    /// The page where a person reads about the model and accepts its licence.
    pub fn page(&self, id: &RepositoryId) -> String {
        self.url(id.names()).to_string()
    }

    async fn list(&self, id: &RepositoryId, revision: &str) -> Result<Snapshot, HubError> {
        let what = format!("list {id} at {}", shorten(revision));
        let mut url = self.url(
            ["api", "models"]
                .into_iter()
                .chain(id.names())
                .chain(["revision", revision]),
        );
        url.set_query(Some("blobs=true"));
        let response = self
            .client
            .send(Request {
                method: Method::GET,
                url,
                range: None,
                follow: Follow::Everywhere,
                what: &what,
            })
            .await?;
        if !response.status().is_success() {
            return Err(self
                .refusal(response, &what, About::Repository { id, revision })
                .await);
        }
        let url = shown(response.url());
        let body = read_body(response, LISTING_LIMIT, &what).await?;
        let info: ModelInfo = serde_json::from_slice(&body).map_err(|error| HubError::NotAHub {
            what: what.clone(),
            url: url.clone(),
            why: error.to_string(),
        })?;
        let not_a_hub = |why: &str| HubError::NotAHub {
            what: what.clone(),
            url: url.clone(),
            why: why.to_owned(),
        };
        let siblings = info
            .siblings
            .ok_or_else(|| not_a_hub("the listing names no files"))?;
        let refused = |source| HubError::Listing {
            id: id.clone(),
            endpoint: self.endpoint.to_string(),
            source,
        };
        let asked = Commit::parse(revision).ok();
        let commit = match (info.sha, asked) {
            (Some(sha), asked) => {
                let commit = Commit::parse(&sha).map_err(refused)?;
                if asked.is_some_and(|asked| asked != commit) {
                    return Err(not_a_hub(&format!(
                        "asked for commit {revision}, it tells of commit {commit}"
                    )));
                }
                commit
            }
            (None, Some(asked)) => asked,
            (None, None) => return Err(not_a_hub("the listing names no commit")),
        };
        let files = siblings
            .into_iter()
            .map(remote_file)
            .collect::<Result<Vec<_>, _>>()
            .map_err(refused)?;
        Snapshot::new(id.clone(), commit, files).map_err(refused)
    }

    fn file_url(&self, snapshot: &Snapshot, path: &RepoPath) -> Url {
        self.url(
            snapshot
                .id
                .names()
                .chain(["resolve", snapshot.commit.as_str()])
                .chain(path.names()),
        )
    }

    /// Each part is escaped, slashes inside it too.
    fn url<'a>(&self, parts: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.endpoint.clone();
        url.path_segments_mut()
            .expect("an HTTP address has a path")
            .pop_if_empty()
            .extend(parts);
        url
    }

    /// What a status that is no success means.
    async fn refusal(&self, response: Response, what: &str, about: About<'_>) -> HubError {
        let status = response.status();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
                .unwrap_or_default()
        };
        let code = header("x-error-code").to_owned();
        let said = words(header("x-error-message"));
        let what = what.to_owned();
        let url = shown(response.url());
        let pause = retry_after(response.headers(), SystemTime::now());
        let (id, token) = match about {
            About::Repository { id, .. } | About::File { id, .. } => {
                (id.clone(), self.credentials.token().is_some())
            }
        };
        let endpoint = self.endpoint.to_string();
        tracing::debug!(%url, %status, code, said, "refused");
        // The content's host knows nothing of rights and revisions; what it refuses is mostly an address that has become too old.
        let elsewhere = !self.client.is_hub(response.url()) && status.is_client_error();
        drop(response);
        match status {
            StatusCode::TOO_MANY_REQUESTS => HubError::RateLimited {
                what,
                url,
                retry_after: pause,
            },
            StatusCode::REQUEST_TIMEOUT => HubError::Server {
                what,
                url,
                status: status.as_u16(),
                retry_after: pause,
            },
            _ if status.is_server_error() || elsewhere => HubError::Server {
                what,
                url,
                status: status.as_u16(),
                retry_after: pause,
            },
            // Without a token the real hub says 401 for what does not exist, so that nobody can guess names of private repositories.
            StatusCode::UNAUTHORIZED if code == "RepoNotFound" && !token => {
                HubError::NoRepository {
                    tried: vec![id],
                    endpoint,
                    hidden: Some(Hidden::FromStrangers(self.credentials.explain())),
                }
            }
            StatusCode::UNAUTHORIZED if code == "GatedRepo" => {
                let explanation = format!(
                    "the repository is gated: accept its licence at {}; {}",
                    self.page(&id),
                    self.credentials.explain()
                );
                HubError::Credentials {
                    what,
                    explanation,
                    said,
                }
            }
            StatusCode::UNAUTHORIZED => HubError::Credentials {
                what,
                explanation: self.credentials.explain(),
                said,
            },
            StatusCode::FORBIDDEN => HubError::Licence {
                what,
                page: self.page(&id),
                said,
                token,
            },
            StatusCode::NOT_FOUND | StatusCode::GONE => self.not_found(&code, about).await,
            _ => HubError::Unexpected {
                what,
                url,
                status: status.as_u16(),
                said,
            },
        }
    }

    async fn not_found(&self, code: &str, about: About<'_>) -> HubError {
        let endpoint = self.endpoint.to_string();
        let no_repository = |id: &RepositoryId| {
            let hidden = self.credentials.token().map(|_| Hidden::FromThisToken);
            HubError::NoRepository {
                tried: vec![id.clone()],
                endpoint: endpoint.clone(),
                hidden,
            }
        };
        match (code, about) {
            ("RepoNotFound", About::Repository { id, .. } | About::File { id, .. }) => {
                no_repository(id)
            }
            ("RevisionNotFound", About::Repository { id, revision }) => HubError::NoRevision {
                id: id.clone(),
                endpoint,
                revision: shorten(revision),
            },
            (_, About::Repository { id, revision }) => {
                let what = format!("ask whether {id} exists");
                let url = self.url(["api", "models"].into_iter().chain(id.names()));
                let asked = Request {
                    method: Method::GET,
                    url,
                    range: None,
                    follow: Follow::Everywhere,
                    what: &what,
                };
                match self.client.send(asked).await {
                    Ok(response) if response.status().is_success() => HubError::NoRevision {
                        id: id.clone(),
                        endpoint,
                        revision: shorten(revision),
                    },
                    _ => no_repository(id),
                }
            }
            (_, About::File { id, commit, path }) => HubError::NoFile {
                id: id.clone(),
                commit: commit.clone(),
                endpoint,
                path: path.clone(),
            },
        }
    }
}

fn remote_file(sibling: Sibling) -> Result<RemoteFile, ListingError> {
    let Sibling {
        rfilename,
        size,
        blob_id,
        lfs,
    } = sibling;
    let path = RepoPath::parse(&rfilename)?;
    Ok(match lfs {
        // The blob of an LFS file is its pointer; its digest says nothing about the content.
        Some(lfs) => RemoteFile {
            path,
            size: lfs.size.or(size),
            digest: lfs.sha256.as_deref().and_then(FileDigest::parse),
        },
        None => RemoteFile {
            path,
            size,
            digest: blob_id.as_deref().and_then(FileDigest::parse),
        },
    })
}

/// The facts that the hub tells about content on another host.
fn linked(headers: &HeaderMap) -> Option<FileFacts> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let size = text("x-linked-size")
        .and_then(|size| size.trim().parse().ok())
        .filter(|size| *size <= SIZE_LIMIT);
    let digest = text("x-linked-etag").and_then(etag_digest);
    (size.is_some() || digest.is_some()).then_some(FileFacts { size, digest })
}

fn facts(response: &Response, from_hub: bool) -> FileFacts {
    let headers = response.headers();
    let linked = linked(headers).unwrap_or_default();
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let own_size = text(CONTENT_LENGTH)
        .filter(|_| response.status().is_success())
        .and_then(|size| size.parse().ok())
        .filter(|size| *size <= SIZE_LIMIT);
    // An ETag is a digest only where the hub made it: other hosts put there what they like.
    let own_digest = text(ETAG)
        .filter(|_| from_hub && response.status().is_success())
        .and_then(etag_digest);
    FileFacts {
        size: linked.size.or(own_size),
        digest: linked.digest.or(own_digest),
    }
}

fn etag_digest(etag: &str) -> Option<FileDigest> {
    FileDigest::parse(etag.trim().trim_start_matches("W/").trim_matches('"'))
}

/// The hub's own words, short and without control characters.
fn words(text: &str) -> String {
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
    fn takes_the_digest_of_the_content_and_not_of_the_pointer() {
        let sha1 = "ab".repeat(20);
        let sha256 = "cd".repeat(32);
        let read =
            |json: serde_json::Value| remote_file(serde_json::from_value(json).unwrap()).unwrap();
        let large = read(
            serde_json::json!({"rfilename": "m.gguf", "size": 7, "blobId": sha1, "lfs": {"sha256": sha256, "size": 7, "pointerSize": 1}}),
        );
        assert_eq!(
            (large.size, large.digest),
            (Some(7), FileDigest::parse(&sha256))
        );
        let small = read(
            serde_json::json!({"rfilename": "config.json", "size": 3, "blobId": sha1, "lfs": null}),
        );
        assert_eq!(
            (small.size, small.digest),
            (Some(3), FileDigest::parse(&sha1))
        );
        let bare = read(serde_json::json!({"rfilename": "x"}));
        assert_eq!((bare.size, bare.digest), (None, None));
    }

    #[test]
    fn reads_digests_from_etags() {
        let sha256 = "cd".repeat(32);
        for etag in [
            format!("\"{sha256}\""),
            format!("W/\"{sha256}\""),
            sha256.clone(),
        ] {
            assert_eq!(etag_digest(&etag), FileDigest::parse(&sha256), "{etag}");
        }
        assert_eq!(etag_digest("\"65a1-5d9e\""), None);
    }

    #[test]
    fn escapes_every_part_of_an_address() {
        let endpoint = Url::parse("https://mirror.example/hf").unwrap();
        let client = Client::new(endpoint.clone(), None, None).unwrap();
        let hub = HuggingFace::new(
            client,
            endpoint,
            Credentials::NotAsked,
            Patience(std::time::Duration::ZERO),
        );
        assert_eq!(
            hub.url(["a", "refs/pr/1", "x y?#%.json"]).as_str(),
            "https://mirror.example/hf/a/refs%2Fpr%2F1/x%20y%3F%23%25.json"
        );
    }
}
