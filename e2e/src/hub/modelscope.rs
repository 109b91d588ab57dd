//! ModelScope's URLs over the same repositories: `/api/v1/models/…`, as its Python client asks them.
//!
//! Every answer is wrapped; every file has its SHA-256; a listing tells its commit by its first digits and the files' own `Revision` has the rest.
//! The hub itself answers a range with status 200 and a `Content-Range`, which its clients take for a part; LFS objects are on the CDN.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Hub;
use super::content::{bytes_of, signed_link};
use super::repository::{Access, Repository, RepositoryId, StoredFile};

/// The hub lists no more entries than this, and does not say that there are more.
const LISTING_BOUND: usize = 3000;

/// The branch that every repository has.
const DEFAULT_BRANCH: &str = "master";

/// Why a request is refused; the texts are the hub's.
pub(crate) enum Refusal {
    NoSuchModel,
    NoSuchRevision,
    NoSuchFile,
    Denied,
    Broken(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> axum::response::Response {
        let (status, code, message) = match self {
            Self::NoSuchModel => (
                StatusCode::NOT_FOUND,
                10_010_205_001_i64,
                "模型不存在".into(),
            ),
            Self::NoSuchRevision => (
                StatusCode::NOT_FOUND,
                10_010_205_002,
                "revision not found".into(),
            ),
            Self::NoSuchFile => (
                StatusCode::NOT_FOUND,
                10_010_205_003,
                "file not found".into(),
            ),
            Self::Denied => (
                StatusCode::FORBIDDEN,
                10_010_103_001,
                "access denied".into(),
            ),
            Self::Broken(message) => (StatusCode::INTERNAL_SERVER_ERROR, 500, message),
        };
        let body =
            json!({ "Code": code, "Message": message, "RequestId": "stand-in", "Success": false });
        (status, Json(body)).into_response()
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<super::refusal::Refusal> for Refusal {
    fn from(refusal: super::refusal::Refusal) -> Self {
        Self::Broken(format!("{refusal:?}"))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct FilesQuery {
    revision: Option<String>,
    recursive: Option<String>,
    root: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct FileQuery {
    revision: Option<String>,
    file_path: String,
}

/// `GET /api/v1/models/ORG/NAME`.
pub(crate) async fn model(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let (id, _) = find(&hub, &organisation, &name, None, &headers).await?;
    Ok(wrapped(
        json!({ "Id": 1, "Path": id.organisation(), "Name": id.name(), "Revision": DEFAULT_BRANCH }),
    ))
}

/// `GET /api/v1/models/ORG/NAME/revisions`.
pub(crate) async fn revisions(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let (_, repository) = find(&hub, &organisation, &name, None, &headers).await?;
    let named = |name: &str| json!({ "Revision": name, "CreatedAt": 1_767_225_600 });
    let tags: Vec<Value> = repository
        .settings
        .revisions
        .iter()
        .map(|name| named(name))
        .collect();
    Ok(wrapped(
        json!({ "RevisionMap": { "Branches": [named(DEFAULT_BRANCH)], "Tags": tags } }),
    ))
}

/// `GET /api/v1/models/ORG/NAME/repo/files?Revision=…&Recursive=…&Root=…`.
pub(crate) async fn files(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name)): Path<(String, String)>,
    Query(query): Query<FilesQuery>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let revision = query.revision.as_deref().unwrap_or(DEFAULT_BRANCH);
    let (_, repository) = find(&hub, &organisation, &name, Some(revision), &headers).await?;
    let is_recursive = query
        .recursive
        .is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let root = query.root.unwrap_or_default();
    let root = root.trim_matches('/');
    let mut folders = BTreeSet::new();
    let mut entries = Vec::new();
    for (path, file) in &repository.files {
        let Some(below) = below(path, root) else {
            continue;
        };
        for (end, _) in below
            .match_indices('/')
            .take(if is_recursive { usize::MAX } else { 1 })
        {
            let folder = &path[..path.len() - below.len() + end];
            if folders.insert(folder) {
                entries.push(entry(folder, "tree", &repository, None));
            }
        }
        if is_recursive || !below.contains('/') {
            entries.push(entry(path, "blob", &repository, Some(file)));
        }
    }
    entries.truncate(LISTING_BOUND);
    let commit = &repository.commit;
    Ok(wrapped(json!({
        "Files": entries,
        "IsVisual": 0,
        "LatestCommitter": { "Id": "", "ShortId": &commit[..8.min(commit.len())], "CommittedDate": 1_767_225_600 },
    })))
}

/// The path from `root` on, for files that are below it.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a str> {
    if root.is_empty() {
        return Some(path);
    }
    path.strip_prefix(root)?.strip_prefix('/')
}

fn entry(path: &str, kind: &str, repository: &Repository, file: Option<&StoredFile>) -> Value {
    json!({
        "CommitMessage": "",
        "CommittedDate": 1_767_225_600,
        "CommitterName": "stand-in",
        "InCheck": false,
        "IsLFS": file.is_some_and(|file| file.pointer_size.is_some()),
        "Mode": if file.is_some() { "33188" } else { "16384" },
        "Name": path.rsplit('/').next(),
        "Path": path,
        "Revision": repository.commit,
        "Sha256": file.map_or("", |file| &file.sha256),
        "Size": file.map_or(0, |file| file.size),
        "Type": kind,
    })
}

/// `GET /api/v1/models/ORG/NAME/repo?Revision=…&FilePath=…`: small files themselves, LFS objects by a redirect to the CDN.
pub(crate) async fn file(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name)): Path<(String, String)>,
    Query(query): Query<FileQuery>,
    headers: HeaderMap,
) -> Result<Response<Body>, axum::response::Response> {
    let refuse = |refusal: Refusal| refusal.into_response();
    let revision = query.revision.as_deref().unwrap_or(DEFAULT_BRANCH);
    let (id, repository) = find(&hub, &organisation, &name, Some(revision), &headers)
        .await
        .map_err(refuse)?;
    let path = query.file_path.as_str();
    let file = repository
        .files
        .get(path)
        .ok_or_else(|| refuse(Refusal::NoSuchFile))?;
    if file.pointer_size.is_some() {
        return Response::builder()
            .status(StatusCode::FOUND)
            .header(
                header::LOCATION,
                signed_link(&hub, &id, file, path, &headers),
            )
            .body(Body::empty())
            .map_err(|error| refuse(Refusal::Broken(error.to_string())));
    }
    let mut response = bytes_of(file, &headers)
        .await
        .map_err(IntoResponse::into_response)?;
    // As the real one answers a range: a part, under the status of a whole.
    if response.status() == StatusCode::PARTIAL_CONTENT {
        *response.status_mut() = StatusCode::OK;
    }
    Ok(response)
}

fn wrapped(data: Value) -> Json<Value> {
    Json(
        json!({ "Code": 200, "Data": data, "Message": "success", "RequestId": "stand-in", "Success": true }),
    )
}

/// The repository, if it exists, the caller may read it, and it holds the revision.
async fn find(
    hub: &Hub,
    organisation: &str,
    name: &str,
    revision: Option<&str>,
    headers: &HeaderMap,
) -> Result<(RepositoryId, Arc<Repository>), Refusal> {
    let id = RepositoryId::new(organisation, name).ok_or(Refusal::NoSuchModel)?;
    let repository = hub.repository(&id).await?.ok_or(Refusal::NoSuchModel)?;
    let settings = &repository.settings;
    let is_member = token(headers).is_some_and(|token| settings.tokens.contains(&token));
    if settings.access != Access::Public && !is_member {
        return Err(Refusal::Denied);
    }
    // The other hub's default branch is not one here.
    let is_known = |revision: &str| {
        revision == DEFAULT_BRANCH || (revision != "main" && repository.has_revision(revision))
    };
    if revision.is_some_and(|revision| !is_known(revision)) {
        return Err(Refusal::NoSuchRevision);
    }
    Ok((id, repository))
}

/// The token of the header or of the session's cookie: the client sends both.
fn token(headers: &HeaderMap) -> Option<String> {
    let text = |name| {
        headers
            .get(name)
            .and_then(|value: &header::HeaderValue| value.to_str().ok())
    };
    let bearer = text(header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    let cookie = text(header::COOKIE).and_then(|cookies| {
        cookies
            .split(';')
            .find_map(|cookie| cookie.trim().strip_prefix("m_session_id="))
    });
    bearer.or(cookie).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_folder_and_not_the_beginning_of_a_name() {
        assert_eq!(below("a/b/c", ""), Some("a/b/c"));
        assert_eq!(below("a/b/c", "a"), Some("b/c"));
        assert_eq!(below("ab/c", "a"), None);
    }
}
