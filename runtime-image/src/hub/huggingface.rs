//! Hugging Face's URLs and answers, as its own clients and its mirrors use them.
//!
//! `/api/models/ID/revision/REV?blobs=true` lists a repository, `/ID/resolve/COMMIT/PATH` gives a file, often by a redirect to another host.
//! Refusals carry `X-Error-Code`; without it, as on many mirrors, one more question tells an absent repository from an absent revision.

use reqwest::header::{CONTENT_LENGTH, ETAG, HeaderMap};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::client::{Follow, Request};
use super::error::{Hidden, HubError};
use super::listing::{
    Commit, FileDigest, ListingError, RemoteFile, RepoPath, RepositoryId, SIZE_LIMIT, Snapshot,
    shorten,
};
use super::site::{Site, agreed_commit, not_a_hub, words};
use super::{About, FileFacts};

/// A hub that speaks Hugging Face's language.
#[derive(Debug, Clone)]
pub(super) struct HuggingFace {
    site: Site,
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
    pub(super) fn new(site: Site) -> Self {
        Self { site }
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn page(&self, id: &RepositoryId) -> String {
        self.site.url(id.names()).to_string()
    }

    /// Size and digest from the headers of the file's own address. `None` where the hub answers no HEAD.
    pub(super) async fn describe(
        &self,
        snapshot: &Snapshot,
        path: &RepoPath,
    ) -> Result<Option<FileFacts>, HubError> {
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
        let mut response = self.site.client.send(request.clone()).await?;
        if response.status().is_redirection() && linked(response.headers()).is_none() {
            // The bytes are elsewhere and the hub itself tells nothing about them: their host may.
            response = self
                .site
                .client
                .send(Request {
                    follow: Follow::Everywhere,
                    ..request
                })
                .await?;
        }
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(Some(self.facts(&response)));
        }
        if matches!(
            status,
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        ) {
            return Ok(None);
        }
        let about = About::File {
            id: &snapshot.id,
            commit: &snapshot.commit,
            path,
        };
        Err(self.refusal(response, &what, about).await)
    }

    /// What the headers of an answer tell about the file.
    pub(super) fn facts(&self, response: &Response) -> FileFacts {
        let headers = response.headers();
        let linked = linked(headers).unwrap_or_default();
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let own_size = text(CONTENT_LENGTH)
            .filter(|_| response.status().is_success())
            .and_then(|size| size.parse().ok())
            .filter(|size| *size <= SIZE_LIMIT);
        // An ETag is a digest only where the hub made it: other hosts put there what they like.
        let from_hub = self.site.client.is_hub(response.url());
        let own_digest = text(ETAG)
            .filter(|_| from_hub && response.status().is_success())
            .and_then(etag_digest);
        FileFacts {
            size: linked.size.or(own_size),
            digest: linked.digest.or(own_digest),
        }
    }

    pub(super) async fn list(
        &self,
        id: &RepositoryId,
        revision: &str,
    ) -> Result<Snapshot, HubError> {
        let what = format!("list {id} at {}", shorten(revision));
        let mut url = self.repository_url(id, &["revision", revision]);
        url.set_query(Some("blobs=true"));
        let response = self.site.get(url, None, Follow::Everywhere, &what).await?;
        if !response.status().is_success() {
            return Err(self
                .refusal(response, &what, About::Repository { id, revision })
                .await);
        }
        let url = response.url().clone();
        let info: ModelInfo = self.site.json(response, &what).await?;
        let siblings = info
            .siblings
            .ok_or_else(|| not_a_hub(&what, &url, "the listing names no files"))?;
        let refused = |source| self.site.refused_listing(id, source);
        let told = info.sha.as_deref().map(Commit::parse).transpose();
        let commit = agreed_commit(told.map_err(refused)?, revision)
            .map_err(|why| not_a_hub(&what, &url, &why))?;
        let files = siblings
            .into_iter()
            .map(remote_file)
            .collect::<Result<Vec<_>, _>>()
            .map_err(refused)?;
        Snapshot::new(id.clone(), commit, files).map_err(refused)
    }

    pub(super) fn file_url(&self, snapshot: &Snapshot, path: &RepoPath) -> Url {
        self.site.url(
            snapshot
                .id
                .names()
                .chain(["resolve", snapshot.commit.as_str()])
                .chain(path.names()),
        )
    }

    fn repository_url(&self, id: &RepositoryId, rest: &[&str]) -> Url {
        self.site.url(
            ["api", "models"]
                .into_iter()
                .chain(id.names())
                .chain(rest.iter().copied()),
        )
    }

    /// What a status that is no success means.
    pub(super) async fn refusal(
        &self,
        response: Response,
        what: &str,
        about: About<'_>,
    ) -> HubError {
        if let Some(error) = self.site.common_refusal(&response, what) {
            return error;
        }
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
        let url = super::client::shown(response.url());
        let credentials = &self.site.credentials;
        let (id, token) = (about.id(), credentials.token().is_some());
        tracing::debug!(%url, %status, code, said, "refused");
        drop(response);
        match status {
            // Without a token the real hub says 401 for what does not exist, so that nobody can guess names of private repositories.
            StatusCode::UNAUTHORIZED if code == "RepoNotFound" && !token => {
                HubError::NoRepository {
                    tried: vec![id.clone()],
                    endpoint: self.site.endpoint.to_string(),
                    hidden: Some(Hidden::FromStrangers(credentials.explain())),
                }
            }
            StatusCode::UNAUTHORIZED => {
                let gated = (code == "GatedRepo").then(|| {
                    format!(
                        "the repository is gated: accept its licence at {}; ",
                        self.page(id)
                    )
                });
                HubError::Credentials {
                    what,
                    status: status.as_u16(),
                    explanation: gated.unwrap_or_default() + &credentials.explain(),
                    said,
                }
            }
            StatusCode::FORBIDDEN => HubError::Licence {
                what,
                page: self.page(id),
                said,
                token,
            },
            StatusCode::NOT_FOUND | StatusCode::GONE => match (code.as_str(), about) {
                ("RepoNotFound", _) => self.site.no_repository(id),
                ("RevisionNotFound", About::Repository { revision, .. }) => {
                    self.site.no_revision(id, revision)
                }
                _ => {
                    self.site
                        .not_found(about, self.repository_url(id, &[]))
                        .await
                }
            },
            _ => HubError::Unexpected {
                what,
                url,
                status: status.as_u16(),
                said,
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

fn etag_digest(etag: &str) -> Option<FileDigest> {
    FileDigest::parse(etag.trim().trim_start_matches("W/").trim_matches('"'))
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
}
