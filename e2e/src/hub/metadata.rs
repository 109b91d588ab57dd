//! What the hub tells about a repository: `/api/models/…`.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::{Form, Json};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Hub;
use super::refusal::{Refusal, Wish, check_access};
use super::repository::{Access, Repository, RepositoryId, StoredFile};

#[derive(Debug, Deserialize)]
pub(crate) struct ModelQuery {
    /// Sizes and digests are told only on request.
    #[serde(default)]
    blobs: bool,
}

pub(crate) async fn model(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name)): Path<(String, String)>,
    Query(query): Query<ModelQuery>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let (id, repository) =
        find(&hub, &organisation, &name, "main", &headers, Wish::Metadata).await?;
    Ok(Json(describe(&id, &repository, query.blobs)))
}

pub(crate) async fn model_at(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name, revision)): Path<(String, String, String)>,
    Query(query): Query<ModelQuery>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let (id, repository) = find(
        &hub,
        &organisation,
        &name,
        &revision,
        &headers,
        Wish::Metadata,
    )
    .await?;
    Ok(Json(describe(&id, &repository, query.blobs)))
}

/// Always recursive and in one page: the folders of models are small.
pub(crate) async fn tree(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Json<Vec<Value>>, Refusal> {
    let (_, repository) = find(
        &hub,
        &organisation,
        &name,
        &revision,
        &headers,
        Wish::Metadata,
    )
    .await?;
    let entries = repository
        .files
        .iter()
        .map(|(path, file)| tree_entry(path, file));
    Ok(Json(entries.collect()))
}

/// The entries of the paths in the form field `paths`, which may stand there several times. Unknown paths are left out.
pub(crate) async fn paths_info(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
    Form(fields): Form<Vec<(String, String)>>,
) -> Result<Json<Vec<Value>>, Refusal> {
    let (_, repository) = find(
        &hub,
        &organisation,
        &name,
        &revision,
        &headers,
        Wish::Metadata,
    )
    .await?;
    let entries = fields
        .iter()
        .filter(|(field, _)| field == "paths")
        .filter_map(|(_, path)| Some(tree_entry(path, repository.files.get(path)?)));
    Ok(Json(entries.collect()))
}

fn tree_entry(path: &str, file: &StoredFile) -> Value {
    let mut entry = json!({ "type": "file", "path": path, "size": file.size, "oid": file.blob_id });
    if let Some(pointer_size) = file.pointer_size {
        entry["lfs"] =
            json!({ "oid": file.sha256, "size": file.size, "pointerSize": pointer_size });
    }
    entry
}

/// The repository, if it exists, holds the revision, and the caller may have its wish.
pub(crate) async fn find(
    hub: &Hub,
    organisation: &str,
    name: &str,
    revision: &str,
    headers: &HeaderMap,
    wish: Wish,
) -> Result<(RepositoryId, Arc<Repository>), Refusal> {
    let id = RepositoryId::new(organisation, name).ok_or(Refusal::Anonymous)?;
    let repository = hub.repository(&id).await?;
    check_access(&id, repository.as_deref(), bearer(headers), wish)?;
    let repository = repository.ok_or(Refusal::Anonymous)?;
    if !repository.has_revision(revision) {
        return Err(Refusal::RevisionNotFound(revision.to_owned()));
    }
    Ok((id, repository))
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get("authorization")?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

fn describe(id: &RepositoryId, repository: &Repository, blobs: bool) -> Value {
    let siblings: Vec<Value> = repository
        .files
        .iter()
        .map(|(path, file)| {
            let mut sibling = json!({ "rfilename": path });
            if blobs {
                sibling["size"] = json!(file.size);
                sibling["blobId"] = json!(file.blob_id);
                if let Some(pointer_size) = file.pointer_size {
                    sibling["lfs"] = json!({
                        "sha256": file.sha256, "size": file.size, "pointerSize": pointer_size,
                    });
                }
            }
            sibling
        })
        .collect();
    let access = repository.settings.access;
    let mut model = json!({
        "_id": &repository.commit[..24.min(repository.commit.len())],
        "id": id.to_string(),
        "modelId": id.to_string(),
        "author": id.organisation(),
        "private": access == Access::Private,
        "gated": if access == Access::Gated { json!("manual") } else { json!(false) },
        "disabled": false,
        "sha": repository.commit,
        "lastModified": "2026-01-01T00:00:00.000Z",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
        "usedStorage": repository.files.values().map(|file| file.size).sum::<u64>(),
    });
    for (key, value) in &repository.settings.extra {
        model[key] = value.clone();
    }
    model
}
