//! `chandler-runtime fetch`: brings a model's files to a volume, each under its final name only when its size and digest are right.
//!
//! complete already? → lock the volume → list and choose, as `resolve` does → room enough? → files, a few at a time → manifest, last.
//! What never happens: a good file is overwritten, a file in the making is seen under a final name, a finished folder asks the hub.

mod assembly;
mod buffers;
mod download;
mod pace;
mod parts;
mod progress;
mod tell;
mod volume;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use indicatif::HumanBytes;

use crate::answer::{Answer, Failure, Fetched, Reason};
use crate::hub::{
    Commit, FileDigest, Hub, HubError, PARALLEL_FILES, RemoteFile, RepoPath, Snapshot, Source,
    SourceArgs, SourceError,
};
use crate::job;
use crate::manifest::{Manifest, ManifestFile, Origin, StoredManifest};
use crate::resolve::{ResolveError, choose, complete};

use buffers::Buffers;
use download::Download;
use progress::{Counter, Progress};
use volume::Volume;

/// What `fetch` is asked.
#[derive(Debug, Args)]
pub struct FetchArgs {
    /// Where the model comes from.
    #[command(flatten)]
    pub source: SourceArgs,
    /// The volume: the files go into a folder in it that bears the commit's name.
    #[arg(long, env = "CHANDLER_TO")]
    pub to: PathBuf,
    /// Address of `/status` and `/metrics`, which tell how far the fetch is. Without it, nobody can ask.
    #[arg(long, env = "CHANDLER_MANAGEMENT_LISTEN", value_name = "ADDRESS")]
    pub management_listen: Option<SocketAddr>,
    /// Bytes of one part of a large file; a file of 64 parts or more is fetched in parts.
    #[arg(long, env = "CHANDLER_PART_BYTES", default_value_t = PART_SIZE, hide = true, value_parser = clap::value_parser!(u64).range(1..=PART_SIZE))]
    pub part_bytes: u64,
}

/// Eight of them are the most that a fetch holds in memory.
const PART_SIZE: u64 = 4 << 20;

/// A model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// It could not even be resolved.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The hub stopped giving bytes.
    #[error("{error} ({} of {} are on the volume and stay there)", HumanBytes(*done), total.map_or("an unknown number".to_owned(), |total| HumanBytes(total).to_string()))]
    Hub {
        /// What went wrong last.
        error: HubError,
        /// Bytes that are there.
        done: u64,
        /// Bytes of all files.
        total: Option<u64>,
    },
    /// The volume has no room.
    #[error("the volume at {} is full: {} free, {} still to be fetched of {} in all; enlarge the claim or free some space", volume.display(), HumanBytes(*free), HumanBytes(*missing), HumanBytes(*total))]
    StorageFull {
        /// The volume.
        volume: PathBuf,
        /// Bytes free for an ordinary user.
        free: u64,
        /// Bytes that are not there yet.
        missing: u64,
        /// Bytes of all files.
        total: u64,
    },
    /// The volume refuses.
    #[error("failed to {what} {}: {source}; check that the volume is mounted and writable for this user", path.display())]
    Storage {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The hub's bytes are not what its listing promises.
    #[error(
        "{path} of {id} at {commit} is not what the hub's listing promises: {why}; fetched {times} times and deleted each time; the mirror or a proxy on the way damages it"
    )]
    Digest {
        /// The repository.
        id: String,
        /// The commit.
        commit: Commit,
        /// The file.
        path: RepoPath,
        /// What was promised and what came.
        why: String,
        /// How often.
        times: u32,
    },
    /// The folder holds something else.
    #[error("{} holds {found}, and {wanted} is wanted; use another volume or remove that folder", folder.display())]
    OtherChoice {
        /// The commit's folder.
        folder: PathBuf,
        /// What its manifest says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
}

/// Runs `fetch` to its exit code.
pub fn run(args: FetchArgs) -> ExitCode {
    let result_file = args.source.result_file.clone();
    job::run(result_file.as_deref(), async {
        match answer(args).await {
            Ok(fetched) => Answer::Fetched(fetched),
            Err(error) => Answer::Failed(Failure::from(&error)),
        }
    })
}

async fn answer(args: FetchArgs) -> Result<Fetched, FetchError> {
    let FetchArgs {
        source,
        to,
        management_listen,
        part_bytes,
    } = args;
    let source = source.check().map_err(ResolveError::Source)?;
    let counter = Arc::new(Counter::default());
    let _telling = match management_listen {
        Some(address) => tell::tell(address, counter.clone()).await,
        None => None,
    };
    fetch(&source, &to, counter, part_bytes).await
}

/// Brings the files of a source to a volume, large ones in parts of `part_size` bytes.
///
/// # Errors
/// When the hub refuses or stops, the volume is full or refuses, or the bytes are wrong.
async fn fetch(
    source: &Source,
    to: &Path,
    counter: Arc<Counter>,
    part_size: u64,
) -> Result<Fetched, FetchError> {
    let volume = Volume::new(to);
    let asked = Commit::parse(&source.revision).ok();
    if let Some(finished) = asked
        .as_ref()
        .map_or(Ok(None), |commit| finished(&volume, source, commit))?
    {
        return Ok(finished);
    }
    let lock = volume.lock().await?;
    // Whoever held the lock before may have done the work.
    if let Some(finished) = asked
        .as_ref()
        .map_or(Ok(None), |commit| finished(&volume, source, commit))?
    {
        return Ok(finished);
    }
    let hub = source
        .connect()
        .map_err(|error| ResolveError::Source(SourceError::Client(error)))?;
    let (snapshot, mut chosen) = choose(&hub, source, &source.revision).await?;
    if asked.is_none()
        && let Some(finished) = finished(&volume, source, &snapshot.commit)?
    {
        return Ok(finished);
    }
    complete(&hub, &snapshot, &mut chosen, |file| {
        file.size.is_none() || file.digest.is_none()
    })
    .await
    .map_err(ResolveError::Hub)?;
    for file in &mut chosen {
        note_what_cannot_be_checked(file);
    }
    let place = volume.prepare(&snapshot.commit, &lock)?;
    let total = chosen.iter().map(|file| file.size).sum::<Option<u64>>();
    place.check_room(&chosen)?;
    let progress = Progress::start(counter, total);
    let files = fetch_files(&hub, &snapshot, &chosen, &place, &progress, part_size).await?;
    drop(progress);
    let origin = Origin {
        hub: source.hub,
        endpoint: source.endpoint.to_string(),
        id: snapshot.id.clone(),
        commit: snapshot.commit.clone(),
        format: source.choice.format(),
        patterns: source.choice.patterns().to_vec(),
    };
    let manifest = Manifest::new(Some(origin.clone()), files);
    let digest = place.finish(&manifest)?;
    tracing::info!(folder = %place.folder().display(), files = manifest.files.len(), bytes = manifest.bytes(), digest, "the folder is complete");
    Ok(fetched(&origin, &StoredManifest { manifest, digest }))
}

async fn fetch_files(
    hub: &Hub,
    snapshot: &Snapshot,
    chosen: &[RemoteFile],
    place: &volume::Place,
    progress: &Progress,
    part_size: u64,
) -> Result<Vec<ManifestFile>, FetchError> {
    let buffers = Buffers::new();
    let buffers = &buffers;
    stream::iter(chosen)
        .map(|file| {
            Download {
                hub,
                snapshot,
                file,
                place,
                progress,
                buffers,
                part_size,
            }
            .run()
        })
        .buffer_unordered(PARALLEL_FILES)
        .try_collect()
        .await
        .map_err(|error| place.with_numbers(error, chosen))
}

/// The answer of a folder that is complete already, found without asking the hub.
fn finished(
    volume: &Volume,
    source: &Source,
    commit: &Commit,
) -> Result<Option<Fetched>, FetchError> {
    let folder = volume.folder(commit);
    let stored = match Manifest::load(&folder) {
        Ok(Some(stored)) => stored,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::warn!(%error, "the manifest is made anew");
            return Ok(None);
        }
    };
    let manifest = &stored.manifest;
    let Some(origin) = &manifest.origin else {
        tracing::warn!(folder = %folder.display(), "the manifest does not say where its files are from; it is made anew");
        return Ok(None);
    };
    let (format, patterns) = (source.choice.format(), source.choice.patterns());
    if origin.commit != *commit
        || !source.ids.contains(&origin.id)
        || origin.format != format
        || origin.patterns != patterns
    {
        let say = |id: &str, format: &str, patterns: &[String]| match patterns {
            [] => format!("{id} in format {format}"),
            patterns => format!("{id} in format {format}, files {}", patterns.join(" ")),
        };
        let found = say(origin.id.as_str(), origin.format.as_str(), &origin.patterns);
        return Err(FetchError::OtherChoice {
            folder,
            found,
            wanted: say(source.ids[0].as_str(), format.as_str(), patterns),
        });
    }
    if let Err(error) = manifest.check_sizes(&folder) {
        tracing::warn!(%error, "the folder is mended");
        return Ok(None);
    }
    tracing::info!(folder = %folder.display(), "the folder is complete already");
    Ok(Some(fetched(origin, &stored)))
}

fn fetched(origin: &Origin, stored: &StoredManifest) -> Fetched {
    let manifest = &stored.manifest;
    Fetched {
        id: origin.id.to_string(),
        commit: origin.commit.to_string(),
        files: manifest.files.len(),
        bytes: manifest.bytes(),
        manifest_digest: stored.digest.clone(),
    }
}

/// Says once per file when a mirror gives nothing to check it by.
fn note_what_cannot_be_checked(file: &mut RemoteFile) {
    // Git's digest begins with the size, so without a size it cannot be made while bytes arrive.
    if file.size.is_none() && matches!(file.digest, Some(FileDigest::GitBlob(_))) {
        file.digest = None;
    }
    match (file.size, file.digest) {
        (_, Some(_)) => {}
        (Some(size), None) => {
            tracing::warn!(path = %file.path, size, "this hub gives no digest for the file: only its size is checked");
        }
        (None, None) => {
            tracing::warn!(path = %file.path, "this hub gives neither digest nor size for the file: it cannot be checked");
        }
    }
}

impl FetchError {
    /// An error of the file system; one that says that there is no room is told apart, its numbers are filled in later.
    fn storage(what: &'static str, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::StorageFull {
                volume: path.to_path_buf(),
                free: 0,
                missing: 0,
                total: 0,
            },
            _ => Self::Storage {
                what,
                path: path.to_path_buf(),
                source,
            },
        }
    }
}

impl From<&FetchError> for Failure {
    fn from(error: &FetchError) -> Self {
        let reason = match error {
            FetchError::Resolve(error) => return error.into(),
            FetchError::Hub { error: cause, .. } => {
                return Self::new(cause.reason(), error.to_string()).after(cause.retry_after());
            }
            FetchError::StorageFull { .. } => Reason::StorageFull,
            FetchError::Digest { .. } => Reason::DigestMismatch,
            FetchError::OtherChoice { .. } | FetchError::Storage { .. } => Reason::InvalidSource,
        };
        Self::new(reason, error.to_string())
    }
}
