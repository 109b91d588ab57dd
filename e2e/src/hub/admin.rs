//! What a test may change while the hub runs: faults, repositories, files; and the log that it reads.

use std::path::Component;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use serde::Deserialize;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use super::fault::Fault;
use super::repository::{Repository, RepositoryId, Settings};
use super::{Hub, LoggedRequest, lock};

/// Which part of the log or of the faults is meant; absent: all.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Scope {
    repository: Option<String>,
}

pub(crate) async fn faults(State(hub): State<Arc<Hub>>) -> Json<Vec<Fault>> {
    Json(lock(&hub.faults).clone())
}

/// Replaces the whole list.
pub(crate) async fn put_faults(
    State(hub): State<Arc<Hub>>,
    Json(faults): Json<Vec<Fault>>,
) -> StatusCode {
    *lock(&hub.faults) = faults;
    StatusCode::NO_CONTENT
}

/// Puts one fault behind the others.
pub(crate) async fn add_fault(State(hub): State<Arc<Hub>>, Json(fault): Json<Fault>) -> StatusCode {
    lock(&hub.faults).push(fault);
    StatusCode::NO_CONTENT
}

/// Takes away the faults of one repository, or all.
pub(crate) async fn clear_faults(
    State(hub): State<Arc<Hub>>,
    Query(scope): Query<Scope>,
) -> StatusCode {
    lock(&hub.faults)
        .retain(|fault| scope.repository.is_some() && fault.repository != scope.repository);
    StatusCode::NO_CONTENT
}

pub(crate) async fn requests(
    State(hub): State<Arc<Hub>>,
    Query(scope): Query<Scope>,
) -> Json<Vec<LoggedRequest>> {
    let log = lock(&hub.log);
    let wanted = log
        .iter()
        .filter(|entry| scope.repository.is_none() || entry.repository == scope.repository);
    Json(wanted.cloned().collect())
}

/// Empties the log.
pub(crate) async fn forget_requests(State(hub): State<Arc<Hub>>) -> StatusCode {
    lock(&hub.log).clear();
    StatusCode::NO_CONTENT
}

/// `ORG/NAME` of every repository in the folder.
pub(crate) async fn repositories(State(hub): State<Arc<Hub>>) -> Response {
    let folder = hub.config.folder.clone();
    match tokio::task::spawn_blocking(move || list(&folder)).await {
        Ok(Ok(names)) => Json(names).into_response(),
        Ok(Err(error)) => refuse(&error.to_string()),
        Err(error) => refuse(&error.to_string()),
    }
}

fn list(folder: &std::path::Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for organisation in std::fs::read_dir(folder)? {
        let organisation = organisation?;
        if !organisation.path().is_dir() {
            continue;
        }
        for repository in std::fs::read_dir(organisation.path())? {
            let name = repository?.file_name();
            names.push(format!(
                "{}/{}",
                organisation.file_name().display(),
                name.display()
            ));
        }
    }
    names.sort();
    Ok(names)
}

/// Makes a repository, or gives one that exists other settings. `copyOf` takes the files of another one, without copying them.
pub(crate) async fn put_repository(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name)): Path<(String, String)>,
    Json(settings): Json<Settings>,
) -> Response {
    let Some(id) = RepositoryId::new(&organisation, &name) else {
        return refuse("not a repository's name");
    };
    let origin = match &settings.copy_of {
        None => Some(id.clone()),
        Some(text) => text
            .split_once('/')
            .and_then(|(organisation, name)| RepositoryId::new(organisation, name)),
    };
    let Some(origin) = origin else {
        return refuse("copyOf is not ORG/NAME");
    };
    let original = match hub.repository(&origin).await {
        Ok(Some(original)) => original,
        Ok(None) => return refuse(&format!("there is no repository {origin}")),
        Err(error) => return refuse(&error.to_string()),
    };
    // Truncated files are read again for their digests, which takes a while.
    let derived = tokio::task::spawn_blocking(move || original.derived(settings)).await;
    let derived: Repository = match derived {
        Ok(Ok(derived)) => derived,
        Ok(Err(error)) => return refuse(&error.to_string()),
        Err(error) => return refuse(&error.to_string()),
    };
    let commit = derived.commit.clone();
    hub.keep(id, Arc::new(derived));
    Json(json!({ "commit": commit })).into_response()
}

/// Takes a repository out of memory; it is read from the folder again when asked for.
pub(crate) async fn forget_repository(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name)): Path<(String, String)>,
) -> Response {
    let Some(id) = RepositoryId::new(&organisation, &name) else {
        return refuse("not a repository's name");
    };
    hub.forget(&id);
    StatusCode::NO_CONTENT.into_response()
}

/// Writes one file into the folder.
pub(crate) async fn put_file(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name, path)): Path<(String, String, String)>,
    body: Body,
) -> Response {
    let Some(id) = RepositoryId::new(&organisation, &name) else {
        return refuse("not a repository's name");
    };
    let relative = std::path::PathBuf::from(&path);
    if !relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        return refuse("the path may not leave the repository");
    }
    let target = hub.repository_folder(&id).join(relative);
    match write(&target, body).await {
        Ok(()) => {
            hub.forget(&id);
            StatusCode::CREATED.into_response()
        }
        Err(error) => refuse(&format!("cannot write {}: {error}", target.display())),
    }
}

async fn write(target: &std::path::Path, body: Body) -> std::io::Result<()> {
    if let Some(folder) = target.parent() {
        tokio::fs::create_dir_all(folder).await?;
    }
    let mut file = tokio::fs::File::create(target).await?;
    let mut chunks = body.into_data_stream().map_err(std::io::Error::other);
    while let Some(chunk) = chunks.try_next().await? {
        file.write_all(&chunk).await?;
    }
    file.flush().await
}

fn refuse(why: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": why }))).into_response()
}
