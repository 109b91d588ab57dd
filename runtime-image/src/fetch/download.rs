//! One file from the hub to its final name: continue, verify, install.
//!
//! A cut connection is continued where it ended, a server without ranges begins anew, wrong bytes are deleted and asked for again a few times.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};

use super::FetchError;
use super::assembly::{Assembly, Sums, sums_of};
use super::progress::Progress;
use super::volume::{Place, make_folder};
use crate::hub::listing::Hex;
use crate::hub::{HubError, HuggingFace, RemoteFile, Snapshot};
use crate::manifest::ManifestFile;

/// How often a file with wrong bytes is fetched before the hub is believed to have no right ones.
const WRONG_LIMIT: u32 = 3;

/// Chunks on their way from the socket to the disk, at most about 16 KiB to 400 KiB each: enough to keep both busy, small beside a model.
const CHUNKS_IN_FLIGHT: usize = 16;

/// One file to bring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Download<'a> {
    pub(super) hub: &'a HuggingFace,
    pub(super) snapshot: &'a Snapshot,
    pub(super) file: &'a RemoteFile,
    pub(super) place: &'a Place,
    pub(super) progress: &'a Progress,
}

/// How a try to bring a whole file ended, when neither hub nor volume failed.
enum Brought {
    /// As many bytes as were promised, on the disk.
    Whole(Sums),
    /// The hub has a file of another size, or sends more than it promised.
    OtherSize(String),
}

/// What an answer gives.
enum Opened {
    /// The file from its first byte.
    FromStart(Response),
    /// The file from where it was cut.
    Continued(Response),
    /// Another file.
    OtherSize(String),
}

/// How a body ended.
enum End {
    Complete,
    TooLong,
    Cut(HubError),
}

impl Download<'_> {
    /// Brings the file, if it is not there already, and says what the manifest needs.
    pub(super) async fn run(self) -> Result<ManifestFile, FetchError> {
        let path = &self.file.path;
        if let Some(sums) = self.existing().await? {
            return Ok(self.entry(&sums));
        }
        let partial = self.place.partial_path(path);
        if let Some(parent) = partial.parent() {
            make_folder(parent)?;
        }
        for times in 1.. {
            let why = match self.bring(&partial).await? {
                Brought::Whole(sums) => match sums.check(self.file.size, self.file.digest) {
                    Ok(()) => {
                        self.place.install(path)?;
                        tracing::debug!(%path, bytes = sums.size, "fetched");
                        return Ok(self.entry(&sums));
                    }
                    Err(why) => {
                        self.progress.counter().lost(sums.size);
                        why
                    }
                },
                Brought::OtherSize(why) => why,
            };
            std::fs::remove_file(&partial)
                .map_err(|source| FetchError::storage("delete", &partial, source))?;
            tracing::warn!(%path, why, times, "wrong bytes, deleted");
            if times >= WRONG_LIMIT {
                let (id, commit) = (self.snapshot.id.to_string(), self.snapshot.commit.clone());
                return Err(FetchError::Digest {
                    id,
                    commit,
                    path: path.clone(),
                    why,
                    times,
                });
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// The file under its final name, if it is right; a killed fetch may have come that far.
    async fn existing(&self) -> Result<Option<Sums>, FetchError> {
        let path = self.place.final_path(&self.file.path);
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() && self.file.size == Some(metadata.len()) => {}
            _ => return Ok(None),
        }
        let (size, digest, counter) = (self.file.size, self.file.digest, self.progress.counter());
        let sums = blocking(&path, "read", move |path| {
            sums_of(path, size, digest, &counter)
        })
        .await?;
        match sums.check(size, digest) {
            Ok(()) => Ok(Some(sums)),
            Err(why) => {
                tracing::warn!(path = %self.file.path, why, "a file on the volume is damaged; it is replaced");
                self.progress.counter().lost(sums.size);
                Ok(None)
            }
        }
    }

    async fn bring(&self, partial: &Path) -> Result<Brought, FetchError> {
        let (size, digest, counter) = (self.file.size, self.file.digest, self.progress.counter());
        let mut assembly = blocking(partial, "continue", move |path| {
            Assembly::open(path, size, digest, counter)
        })
        .await?;
        if assembly.written() > 0 {
            tracing::info!(path = %self.file.path, bytes = assembly.written(), "continuing");
        }
        let mut tries = self.hub.patience().start();
        // Only bytes never seen before are progress: a server without ranges that always cuts would be asked forever.
        let mut furthest = assembly.written();
        while !assembly.is_complete() {
            let response = match self.open(assembly.written()).await {
                Ok(Opened::OtherSize(why)) => {
                    self.progress.counter().lost(assembly.written());
                    return Ok(Brought::OtherSize(why));
                }
                Ok(Opened::Continued(response)) => response,
                Ok(Opened::FromStart(response)) => {
                    if assembly.written() > 0 {
                        tracing::info!(path = %self.file.path, "the hub gives no ranges: from the beginning again");
                        assembly
                            .restart(digest)
                            .map_err(|source| FetchError::storage("empty", partial, source))?;
                    }
                    response
                }
                Err(error) => {
                    tries
                        .pause(error)
                        .await
                        .map_err(|error| self.failed(error))?;
                    continue;
                }
            };
            let (returned, end) = self.receive(assembly, response, partial).await?;
            assembly = returned;
            if assembly.written() > furthest {
                furthest = assembly.written();
                tries.progressed();
            }
            match end {
                End::Complete if size.is_none() => break,
                End::Complete if assembly.is_complete() => {}
                End::Complete => tries
                    .pause(self.short(assembly.written()))
                    .await
                    .map_err(|error| self.failed(error))?,
                End::TooLong => {
                    self.progress.counter().lost(assembly.written());
                    return Ok(Brought::OtherSize(format!(
                        "more than the {} promised bytes came",
                        size.unwrap_or_default()
                    )));
                }
                End::Cut(error) => tries
                    .pause(error)
                    .await
                    .map_err(|error| self.failed(error))?,
            }
        }
        blocking(partial, "write", move |_| assembly.finish())
            .await
            .map(Brought::Whole)
    }

    /// Asks for the file from a byte on, and believes only an answer that says the same.
    async fn open(&self, from: u64) -> Result<Opened, HubError> {
        let range = (from > 0).then_some((from, None));
        let response = self.hub.open(self.snapshot, &self.file.path, range).await?;
        let other_size = |said: u64| {
            self.file
                .size
                .filter(|size| *size != said)
                .map(|size| format!("{size} bytes were promised, the hub has {said}"))
        };
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Opened::OtherSize(format!(
                "the hub has no byte {from}, although more were promised"
            )));
        }
        if range.is_some() && response.status() == StatusCode::PARTIAL_CONTENT {
            return match content_range(&response) {
                Some((first, Some(total))) if first == from => {
                    Ok(other_size(total).map_or(Opened::Continued(response), Opened::OtherSize))
                }
                Some((first, None)) if first == from => Ok(Opened::Continued(response)),
                _ => Ok(Opened::FromStart(
                    self.hub.open(self.snapshot, &self.file.path, None).await?,
                )),
            };
        }
        Ok(response
            .content_length()
            .and_then(other_size)
            .map_or(Opened::FromStart(response), Opened::OtherSize))
    }

    /// Takes a body to the disk. The disk has a thread of its own, which returns the file with whatever arrived.
    async fn receive(
        &self,
        mut assembly: Assembly,
        response: Response,
        partial: &Path,
    ) -> Result<(Assembly, End), FetchError> {
        let mut room = self
            .file
            .size
            .map(|size| size.saturating_sub(assembly.written()));
        let url = response.url().clone();
        let (chunks, mut arriving) = mpsc::channel::<bytes::Bytes>(CHUNKS_IN_FLIGHT);
        let writer = spawn_blocking(move || {
            while let Some(chunk) = arriving.blocking_recv() {
                if let Err(error) = assembly.push(&chunk) {
                    return (assembly, Err(error));
                }
            }
            (assembly, Ok(()))
        });
        let mut body = response.bytes_stream();
        let end = loop {
            match body.next().await {
                None => break End::Complete,
                Some(Err(error)) => {
                    let what = format!(
                        "read {} of {} at {}",
                        self.file.path, self.snapshot.id, self.snapshot.commit
                    );
                    break End::Cut(HubError::no_answer(&what, &url, &error));
                }
                Some(Ok(chunk)) => {
                    let length = chunk.len() as u64;
                    if room.is_some_and(|room| length > room) {
                        break End::TooLong;
                    }
                    room = room.map(|room| room - length);
                    if chunks.send(chunk).await.is_err() {
                        // The writer has ended, and says why.
                        break End::Complete;
                    }
                }
            }
        };
        drop(chunks);
        let (assembly, written) = writer.await.map_err(|error| ended(error, partial))?;
        written.map_err(|source| FetchError::storage("write", partial, source))?;
        Ok((assembly, end))
    }

    fn short(&self, written: u64) -> HubError {
        HubError::NoAnswer {
            what: format!(
                "read {} of {} at {}",
                self.file.path, self.snapshot.id, self.snapshot.commit
            ),
            url: self.hub.page(&self.snapshot.id),
            cause: format!(
                "the answer ended after {written} of {} bytes",
                self.file.size.unwrap_or_default()
            ),
        }
    }

    fn failed(&self, error: HubError) -> FetchError {
        FetchError::Hub {
            error,
            done: self.progress.counter().done(),
            total: self.progress.total(),
        }
    }

    fn entry(&self, sums: &Sums) -> ManifestFile {
        ManifestFile {
            path: self.file.path.clone(),
            size: sums.size,
            sha256: Hex(&sums.sha256).to_string(),
        }
    }
}

/// First byte and total of `bytes FIRST-LAST/TOTAL`.
fn content_range(response: &Response) -> Option<(u64, Option<u64>)> {
    let (range, total) = response
        .headers()
        .get(CONTENT_RANGE)?
        .to_str()
        .ok()?
        .trim()
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, total.trim().parse().ok()))
}

/// Work on the disk that takes its time.
async fn blocking<T: Send + 'static>(
    path: &Path,
    what: &'static str,
    work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, FetchError> {
    let own: PathBuf = path.to_path_buf();
    let done = spawn_blocking(move || work(&own))
        .await
        .map_err(|error| ended(error, path))?;
    done.map_err(|source| FetchError::storage(what, path, source))
}

/// The disk's thread ended without a word, which only a shutdown or a defect brings about.
fn ended(error: JoinError, path: &Path) -> FetchError {
    FetchError::storage("write", path, std::io::Error::other(error))
}
