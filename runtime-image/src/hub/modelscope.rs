//! ModelScope's URLs and answers, as its own Python client (PyPI `modelscope-hub`) uses them.
//!
//! `/api/v1/models/ID/repo/files?Revision=…&Recursive=True` lists a repository with size and SHA-256 of every file,
//! `/api/v1/models/ID/repo?Revision=…&FilePath=…` gives a file, itself or by a redirect to another host.
//! Answers are wrapped: `{"Code":200,"Data":…,"Message":"…","Success":true}`.
//! A listing may tell its commit in full, or by its first digits only while a file's own last commit has the rest.

use reqwest::{Response, StatusCode};
use serde::Deserialize;
use url::Url;

use super::About;
use super::client::{Follow, read_beginning};
use super::error::HubError;
use super::listing::{
    Commit, FileDigest, ListingError, RemoteFile, RepoPath, RepositoryId, Snapshot,
};
use super::site::{Site, agreed_commit, not_a_hub, words};

/// The branch that every repository has; what is called `main` elsewhere.
const DEFAULT_BRANCH: &str = "master";

/// The hub cuts a listing after so many entries and does not say so.
const CUT_AFTER: usize = 3000;

/// Where the official client puts the token beside the `Authorization` header.
const SESSION_COOKIE: &str = "m_session_id";

/// The most that is read of a refusal's body.
const REFUSAL_LIMIT: usize = 16 << 10;

/// A hub that speaks ModelScope's language.
#[derive(Debug, Clone)]
pub(super) struct ModelScope {
    site: Site,
}

/// The wrapping of every answer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", bound = "T: Deserialize<'de>")]
struct Wrapped<T> {
    code: Option<i64>,
    #[serde(default = "Option::default")]
    data: Option<T>,
    message: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listing {
    files: Option<Vec<Entry>>,
    latest_committer: Option<LatestCommitter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    path: String,
    #[serde(default)]
    r#type: String,
    size: Option<u64>,
    sha256: Option<String>,
    /// The commit that changed it last.
    revision: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LatestCommitter {
    id: Option<String>,
    short_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Revisions {
    revision_map: RevisionMap,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RevisionMap {
    branches: Option<Vec<Revision>>,
    tags: Option<Vec<Revision>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Revision {
    revision: String,
    commit_id: Option<String>,
}

impl ModelScope {
    pub(super) fn new(site: Site) -> Self {
        let client = site.client.with_session_cookie(SESSION_COOKIE);
        Self {
            site: Site { client, ..site },
        }
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn page(&self, id: &RepositoryId) -> String {
        self.site
            .url(["models"].into_iter().chain(id.names()))
            .to_string()
    }

    /// `main`, which means the default branch to whoever asks for no revision, is called `master` here.
    pub(super) async fn list(
        &self,
        id: &RepositoryId,
        revision: &str,
    ) -> Result<Snapshot, HubError> {
        match self.list_exactly(id, revision).await {
            Err(HubError::NoRevision { .. }) if revision == "main" => {
                self.list_exactly(id, DEFAULT_BRANCH).await
            }
            other => other,
        }
    }

    async fn list_exactly(&self, id: &RepositoryId, revision: &str) -> Result<Snapshot, HubError> {
        let what = format!("list {id} at {}", super::listing::shorten(revision));
        let mut url = self.repository_url(id, &["repo", "files"]);
        url.query_pairs_mut()
            .append_pair("Revision", revision)
            .append_pair("Recursive", "True");
        let listing: Listing = self
            .ask(url.clone(), &what, About::Repository { id, revision })
            .await?;
        let entries = listing
            .files
            .ok_or_else(|| not_a_hub(&what, &url, "the listing names no files"))?;
        if entries.len() >= CUT_AFTER {
            let why = format!(
                "it lists {} entries, and such listings are cut without a word after {CUT_AFTER}",
                entries.len()
            );
            return Err(not_a_hub(&what, &url, &why));
        }
        let told = match listing.latest_committer {
            Some(committer) => committer.commit(&entries, revision),
            None => None,
        };
        let told = match told {
            None if Commit::parse(revision).is_err() => self.commit_of(id, revision).await?,
            told => told,
        };
        let commit = agreed_commit(told, revision).map_err(|why| {
            let why = format!("{why}; pin the revision to a commit of 40 digits");
            not_a_hub(&what, &url, &why)
        })?;
        let files = entries
            .into_iter()
            .filter(|entry| entry.r#type != "tree")
            .map(remote_file)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| self.site.refused_listing(id, source))?;
        Snapshot::new(id.clone(), commit, files)
            .map_err(|source| self.site.refused_listing(id, source))
    }

    /// The commit of a branch or tag, where the list of them tells.
    async fn commit_of(&self, id: &RepositoryId, name: &str) -> Result<Option<Commit>, HubError> {
        let what = format!("ask for the commit of {}", super::listing::shorten(name));
        let url = self.repository_url(id, &["revisions"]);
        let about = About::Repository { id, revision: name };
        let RevisionMap { branches, tags } =
            self.ask::<Revisions>(url, &what, about).await?.revision_map;
        Ok(branches
            .into_iter()
            .chain(tags)
            .flatten()
            .find(|revision| revision.revision == name)
            .and_then(|revision| Commit::parse(&revision.commit_id?).ok()))
    }

    pub(super) fn file_url(&self, snapshot: &Snapshot, path: &RepoPath) -> Url {
        let mut url = self.repository_url(&snapshot.id, &["repo"]);
        url.query_pairs_mut()
            .append_pair("Revision", snapshot.commit.as_str())
            .append_pair("FilePath", path.as_str());
        url
    }

    fn repository_url(&self, id: &RepositoryId, rest: &[&str]) -> Url {
        self.site.url(
            ["api", "v1", "models"]
                .into_iter()
                .chain(id.names())
                .chain(rest.iter().copied()),
        )
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        url: Url,
        what: &str,
        about: About<'_>,
    ) -> Result<T, HubError> {
        let response = self
            .site
            .get(url.clone(), None, Follow::Everywhere, what)
            .await?;
        if !response.status().is_success() {
            return Err(self.refusal(response, what, about).await);
        }
        let status = response.status().as_u16();
        let wrapped: Wrapped<T> = self.site.json(response, what).await?;
        match wrapped {
            Wrapped {
                code: None | Some(200),
                data: Some(data),
                ..
            } => Ok(data),
            // A refusal with a status that says success.
            Wrapped { message, .. } => Err(HubError::Unexpected {
                what: what.to_owned(),
                url: super::client::shown(&url),
                status,
                said: words(&message.unwrap_or_default()),
            }),
        }
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
        let url = super::client::shown(response.url());
        let said = said(response, what).await;
        let (id, token) = (about.id(), self.site.credentials.token().is_some());
        tracing::debug!(%url, %status, said, "refused");
        let what = what.to_owned();
        match status {
            // Private repositories are refused to strangers with 403; only a token's refusal is about its owner's rights.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN
                if !token || status == StatusCode::UNAUTHORIZED =>
            {
                HubError::Credentials {
                    what,
                    status: status.as_u16(),
                    explanation: format!(
                        "the repository may be private or gated: see {}; {}",
                        self.page(id),
                        self.site.credentials.explain()
                    ),
                    said,
                }
            }
            StatusCode::FORBIDDEN => HubError::Licence {
                what,
                page: self.page(id),
                said,
                token,
            },
            StatusCode::NOT_FOUND | StatusCode::GONE => {
                self.site
                    .not_found(about, self.repository_url(id, &[]))
                    .await
            }
            _ => HubError::Unexpected {
                what,
                url,
                status: status.as_u16(),
                said,
            },
        }
    }
}

impl LatestCommitter {
    /// The commit in full, told or found among the commits that changed the files last.
    fn commit(self, entries: &[Entry], asked: &str) -> Option<Commit> {
        if let Some(commit) = self.id.and_then(|id| Commit::parse(&id).ok()) {
            return Some(commit);
        }
        let short = self
            .short_id
            .filter(|short| short.len() >= 7)?
            .to_ascii_lowercase();
        entries
            .iter()
            .filter_map(|entry| entry.revision.as_deref())
            .chain([asked])
            .filter_map(|revision| Commit::parse(revision).ok())
            .find(|commit| commit.as_str().starts_with(&short))
    }
}

fn remote_file(entry: Entry) -> Result<RemoteFile, ListingError> {
    Ok(RemoteFile {
        path: RepoPath::parse(&entry.path)?,
        size: entry.size,
        digest: entry.sha256.as_deref().and_then(FileDigest::parse),
    })
}

/// The hub's own words in the body of a refusal.
async fn said(response: Response, what: &str) -> String {
    let body = read_beginning(response, REFUSAL_LIMIT, what)
        .await
        .unwrap_or_default();
    let wrapped: Option<Wrapped<serde_json::Value>> = serde_json::from_slice(&body).ok();
    words(
        &wrapped
            .and_then(|wrapped| wrapped.message)
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit_of(listing: serde_json::Value, asked: &str) -> Option<Commit> {
        let listing: Listing = serde_json::from_value(listing).unwrap();
        listing
            .latest_committer
            .unwrap()
            .commit(&listing.files.unwrap(), asked)
    }

    #[test]
    fn finds_the_commit_that_a_listing_tells_in_full_or_by_its_first_digits() {
        let (head, older) = ("83ee97c6".repeat(5), "f194f509".repeat(5));
        let files = serde_json::json!([
            {"Path": "a", "Type": "blob", "Revision": older},
            {"Path": "b", "Type": "blob", "Revision": head},
        ]);
        let commit = |latest: serde_json::Value, asked: &str| {
            let listing = serde_json::json!({"Files": files, "LatestCommitter": latest});
            commit_of(listing, asked).map(|commit| commit.as_str().to_owned())
        };
        let full = serde_json::json!({"Id": head});
        assert_eq!(commit(full, "master"), Some(head.clone()));
        let short = serde_json::json!({"Id": "", "ShortId": "83EE97C6"});
        assert_eq!(commit(short.clone(), "master"), Some(head.clone()));
        let elsewhere = serde_json::json!({"Id": "", "ShortId": "00000000"});
        assert_eq!(commit(elsewhere.clone(), "master"), None);
        assert_eq!(commit(elsewhere, &"0".repeat(40)), Some("0".repeat(40)));
        let too_short = serde_json::json!({"ShortId": ""});
        assert_eq!(commit(too_short, "master"), None);
    }

    #[test]
    fn reads_digests_in_either_case_and_leaves_out_what_is_none() {
        let entry = |sha256: &str| {
            let json = serde_json::json!({"Path": "x", "Size": 3, "Sha256": sha256});
            remote_file(serde_json::from_value(json).unwrap()).unwrap()
        };
        assert_eq!(
            entry(&"AB".repeat(32)).digest,
            FileDigest::parse(&"ab".repeat(32))
        );
        assert_eq!(entry("").digest, None);
    }
}
