//! The files themselves: redirects from the hub, bytes from the small-file route and from the CDN.

use std::io::SeekFrom;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::Hub;
use super::metadata::find;
use super::refusal::{Refusal, Wish};
use super::repository::{Repository, RepositoryId, StoredFile, hex};

/// How much of a file is read and sent at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// `GET /ORG/NAME/resolve/REV/PATH`: never the bytes, always a redirect.
/// Small files stay on the hub's host; LFS objects go to the CDN.
pub(crate) async fn resolve(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name, revision, path)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let (id, repository) = find(
        &hub,
        &organisation,
        &name,
        &revision,
        &headers,
        Wish::Contents,
    )
    .await?;
    let file = stored(&repository, &path)?;
    let (status, location) = if file.pointer_size.is_some() {
        (
            StatusCode::FOUND,
            signed_link(&hub, &id, file, &path, &headers),
        )
    } else {
        let location = format!(
            "/api/resolve-cache/models/{id}/{}/{}?etag=%22{}%22",
            repository.commit,
            percent_encoded(&path),
            file.etag()
        );
        (StatusCode::TEMPORARY_REDIRECT, location)
    };
    let note = format!(
        "{}. Redirecting to {location}",
        status.canonical_reason().unwrap_or("Found")
    );
    let mut response = Response::builder()
        .status(status)
        .header(header::LOCATION, location)
        .header("x-repo-commit", &repository.commit)
        .header("x-linked-etag", quoted(file.etag()))
        .header("x-linked-size", file.size)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "text/plain; charset=utf-8");
    if file.pointer_size.is_none() {
        response = response.header(header::ETAG, quoted(file.etag()));
    }
    response.body(Body::from(note)).map_err(broken)
}

/// `GET /api/resolve-cache/…`: the bytes of a file that is small enough to stand in Git.
pub(crate) async fn small_file(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name, revision, path)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let (_, repository) = find(
        &hub,
        &organisation,
        &name,
        &revision,
        &headers,
        Wish::Contents,
    )
    .await?;
    let file = stored(&repository, &path)?;
    let mut response = bytes_of(file, &headers).await?;
    let commit = repository.commit.parse().map_err(broken)?;
    response.headers_mut().insert("x-repo-commit", commit);
    Ok(response)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct LinkQuery {
    expires: u64,
    signature: String,
}

/// `GET /repos/ORG/NAME/SHA256?Expires=…&Signature=…` on the CDN: whoever has the link may read.
pub(crate) async fn large_file(
    State(hub): State<Arc<Hub>>,
    Path((organisation, name, sha256)): Path<(String, String, String)>,
    Query(link): Query<LinkQuery>,
    headers: HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let id = RepositoryId::new(&organisation, &name).ok_or(Refusal::EntryNotFound)?;
    let is_signed = link.signature == signature(&hub, &id, &sha256, link.expires);
    if !is_signed || link.expires <= unix_seconds(SystemTime::now()) {
        return Err(Refusal::LinkExpired);
    }
    let repository = hub
        .repository(&id)
        .await?
        .ok_or(Refusal::RepositoryNotFound)?;
    let file = repository
        .files
        .values()
        .find(|file| file.sha256 == sha256)
        .ok_or(Refusal::EntryNotFound)?;
    bytes_of(file, &headers).await
}

fn stored<'a>(repository: &'a Repository, path: &str) -> Result<&'a StoredFile, Refusal> {
    repository.files.get(path).ok_or(Refusal::EntryNotFound)
}

pub(super) fn signed_link(
    hub: &Hub,
    id: &RepositoryId,
    file: &StoredFile,
    path: &str,
    headers: &HeaderMap,
) -> String {
    let base = hub.config.cdn.clone().unwrap_or_else(|| {
        let called = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .unwrap_or("localhost");
        let host = called.rsplit_once(':').map_or(called, |(host, _)| host);
        format!("http://{host}:{}", hub.cdn_port)
    });
    let expires = unix_seconds(SystemTime::now() + hub.config.link_lifetime);
    let name = path.rsplit('/').next().unwrap_or(path);
    format!(
        "{base}/repos/{id}/{sha256}?response-content-disposition=inline%3B+filename%3D{name}&Expires={expires}&Signature={signature}",
        sha256 = file.sha256,
        name = percent_encoded(name),
        signature = signature(hub, id, &file.sha256, expires),
    )
}

fn signature(hub: &Hub, id: &RepositoryId, sha256: &str, expires: u64) -> String {
    let mut digest = Sha256::new();
    digest.update(hub.secret);
    digest.update(format!("{id}/{sha256}?{expires}"));
    hex(&digest.finalize())
}

/// 200 with all, or 206 with the one range that was asked for. Several ranges at once are answered with all, as HTTP allows.
pub(super) async fn bytes_of(
    file: &StoredFile,
    headers: &HeaderMap,
) -> Result<Response<Body>, Refusal> {
    let range = match headers
        .get(header::RANGE)
        .and_then(|range| range.to_str().ok())
    {
        Some(text) => requested_range(text, file.size)?,
        None => None,
    };
    let (first, end) = range.unwrap_or((0, file.size));
    let mut source = File::open(&file.source).await?;
    source.seek(SeekFrom::Start(first)).await?;
    let stream = ReaderStream::with_capacity(source.take(end - first), CHUNK_BYTES);
    let mut response = Response::builder()
        .header(header::CONTENT_LENGTH, end - first)
        .header(header::ETAG, quoted(file.etag()))
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_TYPE, "application/octet-stream");
    if range.is_some() {
        response = response.status(StatusCode::PARTIAL_CONTENT).header(
            header::CONTENT_RANGE,
            format!("bytes {first}-{}/{}", end - 1, file.size),
        );
    }
    response.body(Body::from_stream(stream)).map_err(broken)
}

/// First byte and the byte after the last. `None` where the header is to be ignored.
fn requested_range(text: &str, size: u64) -> Result<Option<(u64, u64)>, Refusal> {
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
    else {
        return Ok(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, size.min(last.saturating_add(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, size),
        (Err(_), Ok(suffix)) if first.is_empty() => (size.saturating_sub(suffix), size),
        _ => return Ok(None),
    };
    if range.0 >= range.1 {
        return Err(Refusal::RangeNotSatisfiable(size));
    }
    Ok(Some(range))
}

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// Everything but letters, digits and `-._~/` as `%XX`.
fn percent_encoded(path: &str) -> String {
    use std::fmt::Write;
    path.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").expect("a String takes every write");
        }
        text
    })
}

fn broken(error: impl std::fmt::Display) -> Refusal {
    Refusal::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &Result<Option<(u64, u64)>, Refusal>) {
        assert_eq!(&requested_range(text, 100), expected, "{text}");
    }

    #[test]
    fn ranges_are_read_as_http_defines_them() {
        check("bytes=0-9", &Ok(Some((0, 10))));
        check("bytes=90-", &Ok(Some((90, 100))));
        check("bytes=-10", &Ok(Some((90, 100))));
        check("bytes=50-500", &Ok(Some((50, 100))));
        check("bytes=100-", &Err(Refusal::RangeNotSatisfiable(100)));
        check("bytes=9-0", &Ok(None));
        check("lines=0-9", &Ok(None));
    }
}
