//! One file from the hub to its final name: continue, verify, install.
//!
//! A file comes in one stream, a large one in parts over several connections; either way the beginning of it grows on the disk.
//! A cut connection is continued where it ended, a server without ranges begins anew, wrong bytes are deleted and asked for again a few times.

use std::path::{Path, PathBuf};
use std::time::Instant;

use futures::StreamExt;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};
use url::Url;

use super::FetchError;
use super::assembly::{Assembly, Sums, sums_of};
use super::buffers::{Buffer, Buffers, CONNECTIONS};
use super::pace::Pace;
use super::parts::{Link, Trouble, parts};
use super::progress::Progress;
use super::volume::Place;
use crate::hub::client::shown;
use crate::hub::error::cause_of;
use crate::hub::listing::Hex;
use crate::hub::retry::Tries;
use crate::hub::{Hub, HubError, RemoteFile, Snapshot};
use crate::manifest::ManifestFile;

/// How often a file with wrong bytes is fetched before the hub is believed to have no right ones.
const WRONG_LIMIT: u32 = 3;

/// Chunks on their way from the socket to the disk, at most about 16 KiB to 400 KiB each: enough to keep both busy, small beside a model.
const CHUNKS_IN_FLIGHT: usize = 8;

/// A file of this many parts is fetched in parts: below, requests would cost more than connections gain.
const PARTS_WORTH_WHILE: u64 = 64;

/// One file to bring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) snapshot: &'a Snapshot,
    pub(super) file: &'a RemoteFile,
    pub(super) place: &'a Place,
    pub(super) progress: &'a Progress,
    pub(super) buffers: &'a Buffers,
    /// Bytes of one part.
    pub(super) part_size: u64,
}

/// The file in the making, given back by the thread that wrote to it.
type Writing = JoinHandle<(Assembly, std::io::Result<()>)>;

/// How a try to bring a whole file ended, when neither hub nor volume failed.
enum Brought {
    /// As many bytes as were promised, on the disk.
    Whole(Sums),
    /// The hub has a file of another size, or sends more than it promised.
    OtherSize(String),
}

/// What an answer to a request for a file gives.
pub(super) enum Answered {
    /// The file from its first byte.
    Whole(Response),
    /// The file from the byte that was asked for.
    Part(Response),
    /// Another file.
    OtherSize(String),
}

/// How a body ended.
enum End {
    Complete,
    TooLong,
    TooSlow(String),
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
        self.place.make_parent(&partial)?;
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
        let link = Link::default();
        if let Some(size) = self.file.size
            && size / self.part_size >= PARTS_WORTH_WHILE
        {
            let (returned, trouble) = self.bring_parts(assembly, size, &link, partial).await?;
            assembly = returned;
            match trouble {
                None => {}
                Some(Trouble::Hub(error)) => return Err(self.failed(error)),
                Some(Trouble::OtherSize(why)) => return Ok(self.other_size(&assembly, why)),
                Some(Trouble::NoRanges) => {
                    tracing::info!(path = %self.file.path, "the hub gives no ranges: the file comes in one stream");
                }
            }
        }
        let mut tries = self.hub.patience().start();
        // Only bytes never seen before are progress: a server without ranges that always cuts would be asked forever.
        let mut furthest = assembly.written();
        while !assembly.is_complete() {
            let from = assembly.written();
            let range = (from, None);
            // Held as long as the answer is read: it counts as a connection.
            let _buffer = self.buffers.take().await;
            let answered = if from > 0 {
                self.ask(None, range).await
            } else {
                self.ask_whole().await
            };
            let response = match answered {
                Ok(Answered::OtherSize(why)) => return Ok(self.other_size(&assembly, why)),
                Ok(Answered::Part(response)) => response,
                Ok(Answered::Whole(response)) => {
                    if from > 0 {
                        tracing::info!(path = %self.file.path, "the hub gives no ranges: from the beginning again");
                        assembly
                            .restart(digest)
                            .map_err(|source| FetchError::storage("empty", partial, source))?;
                    }
                    response
                }
                Err(error) => {
                    self.wait(&mut tries, error).await?;
                    continue;
                }
            };
            let (returned, end) = self.receive(assembly, response, partial).await?;
            assembly = returned;
            if assembly.written() > furthest && !matches!(end, End::TooSlow(_)) {
                tries.progressed();
            }
            furthest = furthest.max(assembly.written());
            match end {
                End::Complete if size.is_none() => break,
                End::Complete if assembly.is_complete() => {}
                End::Complete => {
                    self.wait(&mut tries, self.short(assembly.written()))
                        .await?;
                }
                End::TooLong => {
                    let why = format!(
                        "more than the {} promised bytes came",
                        size.unwrap_or_default()
                    );
                    return Ok(self.other_size(&assembly, why));
                }
                End::TooSlow(why) => self.wait(&mut tries, self.slow(why)).await?,
                End::Cut(error) => self.wait(&mut tries, error).await?,
            }
        }
        blocking(partial, "write", move |_| assembly.finish())
            .await
            .map(Brought::Whole)
    }

    /// Brings what is missing of a large file over several connections, as far as it comes.
    async fn bring_parts(
        self,
        assembly: Assembly,
        size: u64,
        link: &Link,
        partial: &Path,
    ) -> Result<(Assembly, Option<Trouble>), FetchError> {
        let mut parts = std::pin::pin!(parts(self, link, assembly.written()..size));
        // As many as there are buffers, so that sending never waits and the answers behind are read meanwhile.
        let (sender, mut arriving) = mpsc::channel::<Buffer>(CONNECTIONS);
        let writing: Writing = spawn_blocking(move || {
            let mut assembly = assembly;
            while let Some(part) = arriving.blocking_recv() {
                if let Err(error) = assembly.push(&part) {
                    return (assembly, Err(error));
                }
            }
            (assembly, Ok(()))
        });
        let trouble = loop {
            match parts.next().await {
                None => break None,
                Some(Err(trouble)) => break Some(trouble),
                Some(Ok(part)) => {
                    if sender.send(part).await.is_err() {
                        // The writer has ended, and says why.
                        break None;
                    }
                }
            }
        };
        drop(sender);
        Ok((written(writing, partial).await?, trouble))
    }

    /// Asks for the file from its first byte.
    async fn ask_whole(&self) -> Result<Answered, HubError> {
        let response = self.hub.open(self.snapshot, &self.file.path, None).await?;
        Ok(self.whole(response))
    }

    /// Asks for bytes from one on, and believes only an answer that says the same.
    pub(super) async fn ask(
        &self,
        link: Option<Url>,
        range: (u64, Option<u64>),
    ) -> Result<Answered, HubError> {
        let (from, last) = range;
        let response = self
            .hub
            .open_at(link, self.snapshot, &self.file.path, Some(range))
            .await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(Answered::OtherSize(format!(
                "the hub has no byte {from}, although more were promised"
            )));
        }
        // ModelScope answers a range with status 200 and says in the header which part it is.
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT
            || response.headers().contains_key(CONTENT_RANGE);
        if !is_part {
            return Ok(self.whole(response));
        }
        match content_range(&response) {
            Some(told) if told.first == from && last.is_none_or(|last| told.last == last) => {
                Ok(match told.total.and_then(|total| self.differs(total)) {
                    Some(why) => Answered::OtherSize(why),
                    None => Answered::Part(response),
                })
            }
            _ => self.ask_whole().await,
        }
    }

    fn whole(&self, response: Response) -> Answered {
        match response
            .content_length()
            .and_then(|said| self.differs(said))
        {
            Some(why) => Answered::OtherSize(why),
            None => Answered::Whole(response),
        }
    }

    /// How a size that an answer tells differs from the promised one.
    fn differs(&self, said: u64) -> Option<String> {
        self.file
            .size
            .filter(|size| *size != said)
            .map(|size| format!("{size} bytes were promised, the hub has {said}"))
    }

    fn other_size(&self, assembly: &Assembly, why: String) -> Brought {
        self.progress.counter().lost(assembly.written());
        Brought::OtherSize(why)
    }

    async fn wait(&self, tries: &mut Tries, error: HubError) -> Result<(), FetchError> {
        tries.pause(error).await.map_err(|error| self.failed(error))
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
        let mut pace = Pace::start(self.hub.patience().0, Instant::now());
        let url = response.url().clone();
        let (chunks, mut arriving) = mpsc::channel::<bytes::Bytes>(CHUNKS_IN_FLIGHT);
        let writing: Writing = spawn_blocking(move || {
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
                Some(Err(error)) => break End::Cut(self.cut(Some(&url), &error)),
                Some(Ok(chunk)) => {
                    let length = chunk.len();
                    if room.is_some_and(|room| length as u64 > room) {
                        break End::TooLong;
                    }
                    room = room.map(|room| room - length as u64);
                    if chunks.send(chunk).await.is_err() {
                        // The writer has ended, and says why.
                        break End::Complete;
                    }
                    if let Err(why) = pace.count(length, Instant::now()) {
                        break End::TooSlow(why);
                    }
                }
            }
        };
        drop(chunks);
        Ok((written(writing, partial).await?, end))
    }

    pub(super) fn slow(&self, cause: String) -> HubError {
        self.no_answer(self.hub.page(&self.snapshot.id), cause)
    }

    pub(super) fn cut(&self, url: Option<&Url>, error: &reqwest::Error) -> HubError {
        let url = url.map_or_else(|| self.hub.page(&self.snapshot.id), shown);
        self.no_answer(url, cause_of(error))
    }

    pub(super) fn short(&self, written: u64) -> HubError {
        let cause = format!(
            "the answer ended after {written} of {} bytes",
            self.file.size.unwrap_or_default()
        );
        self.no_answer(self.hub.page(&self.snapshot.id), cause)
    }

    fn no_answer(&self, url: String, cause: String) -> HubError {
        HubError::NoAnswer {
            what: format!(
                "read {} of {} at {}",
                self.file.path, self.snapshot.id, self.snapshot.commit
            ),
            url,
            cause,
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
            head_sha256: Some(Hex(&sums.head_sha256).to_string()),
        }
    }
}

/// What `Content-Range: bytes FIRST-LAST/TOTAL` says.
struct Told {
    first: u64,
    last: u64,
    total: Option<u64>,
}

fn content_range(response: &Response) -> Option<Told> {
    let (range, total) = response
        .headers()
        .get(CONTENT_RANGE)?
        .to_str()
        .ok()?
        .trim()
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some(Told {
        first: first.trim().parse().ok()?,
        last: last.trim().parse().ok()?,
        total: total.trim().parse().ok(),
    })
}

/// Waits for a file's writer and takes the file back.
async fn written(writing: Writing, partial: &Path) -> Result<Assembly, FetchError> {
    let (assembly, written) = writing.await.map_err(|error| ended(error, partial))?;
    written.map_err(|source| FetchError::storage("write", partial, source))?;
    Ok(assembly)
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
