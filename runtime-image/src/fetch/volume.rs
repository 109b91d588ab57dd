//! The volume that files are fetched to: names, lock, room, and the order in which things become durable.
//!
//! `/to/COMMIT/…` holds finished files, `/to/.chandler/COMMIT/….partial` those in the making, `/to/.chandler/lock` keeps a second writer waiting.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::FetchError;
use crate::hub::{Commit, RemoteFile, RepoPath};
use crate::manifest::Manifest;

/// Room for the manifest and the file system's own books.
const HEADROOM: u64 = 1 << 20;

/// How often a taken lock is tried again.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);

/// How often waiting for the lock is said.
const LOCK_NOTICE: Duration = Duration::from_secs(10);

/// For opening files: a symbolic link in place of the file is an error and is not followed.
#[expect(clippy::cast_possible_wrap, reason = "the flag is one low bit")]
pub(super) const NO_LINKS: i32 = rustix::fs::OFlags::NOFOLLOW.bits() as i32;

/// A volume, as the user named it.
#[derive(Debug)]
pub(super) struct Volume {
    root: PathBuf,
}

/// The right to write to a volume; given back when dropped, and by the kernel when the process dies.
#[derive(Debug)]
pub(super) enum Lock {
    /// Nobody else writes.
    Held(#[expect(dead_code, reason = "closing the file gives the lock back")] File),
    /// The file system knows no locks: files in the making get names of their own.
    Unsupported,
}

/// Where the files of one commit go.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    folder: PathBuf,
    staging: PathBuf,
}

impl Volume {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// The folder of a commit.
    pub(super) fn folder(&self, commit: &Commit) -> PathBuf {
        self.root.join(commit.as_str())
    }

    fn staging(&self) -> PathBuf {
        self.root.join(".chandler")
    }

    /// Waits until nobody else writes to this volume. There is no deadline: the other one is at work, and its work is ours.
    pub(super) async fn lock(&self) -> Result<Lock, FetchError> {
        let staging = self.staging();
        make_folder(&self.root, &staging)?;
        let path = staging.join("lock");
        let failed = |source| FetchError::storage("lock", &path, source);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .custom_flags(NO_LINKS)
            .open(&path)
            .map_err(failed)?;
        let mut noticed: Option<Instant> = None;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock::Held(file)),
                Err(TryLockError::WouldBlock) => {
                    if noticed.is_none_or(|at| at.elapsed() >= LOCK_NOTICE) {
                        tracing::info!(volume = %self.root.display(), "another fetch is writing to this volume; waiting for it to end");
                        noticed = Some(Instant::now());
                    }
                    sleep(LOCK_INTERVAL).await;
                }
                Err(TryLockError::Error(error)) if cannot_lock(&error) => {
                    tracing::warn!(volume = %self.root.display(), %error, "this file system has no locks: an interrupted fetch begins anew");
                    return Ok(Lock::Unsupported);
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }

    /// Makes the folders of a commit.
    pub(super) fn prepare(&self, commit: &Commit, lock: &Lock) -> Result<Place, FetchError> {
        let name = match lock {
            Lock::Held(_) => commit.to_string(),
            Lock::Unsupported => format!("{commit}-{}", uuid::Uuid::new_v4()),
        };
        let place = Place {
            root: self.root.clone(),
            folder: self.folder(commit),
            staging: self.staging().join(name),
        };
        make_folder(&self.root, &place.folder)?;
        make_folder(&self.root, &place.staging)?;
        Ok(place)
    }
}

impl Place {
    /// The folder of finished files.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a finished file is.
    pub(super) fn final_path(&self, path: &RepoPath) -> PathBuf {
        self.folder.join(path.as_str())
    }

    /// Where a file is while it is made.
    pub(super) fn partial_path(&self, path: &RepoPath) -> PathBuf {
        self.staging.join(format!("{path}.partial"))
    }

    /// Refuses to begin what cannot end.
    pub(super) fn check_room(&self, chosen: &[RemoteFile]) -> Result<(), FetchError> {
        let (missing, total) = self.missing(chosen);
        let free = self
            .free()
            .map_err(|source| FetchError::storage("ask for the room on", &self.root, source))?;
        if missing > 0 && missing + HEADROOM > free {
            return Err(FetchError::StorageFull {
                volume: self.root.clone(),
                free,
                missing,
                total,
            });
        }
        Ok(())
    }

    /// Puts the numbers of the moment into an error that says that the volume is full.
    pub(super) fn with_numbers(&self, error: FetchError, chosen: &[RemoteFile]) -> FetchError {
        match error {
            FetchError::StorageFull { .. } => {
                let (missing, total) = self.missing(chosen);
                FetchError::StorageFull {
                    volume: self.root.clone(),
                    free: self.free().unwrap_or(0),
                    missing,
                    total,
                }
            }
            other => other,
        }
    }

    /// Makes the folders that a file of this volume lies in.
    pub(super) fn make_parent(&self, file: &Path) -> Result<(), FetchError> {
        file.parent()
            .map_or(Ok(()), |parent| make_folder(&self.root, parent))
    }

    /// Moves a file that is complete, checked and on the disk to its final name.
    pub(super) fn install(&self, path: &RepoPath) -> Result<(), FetchError> {
        let to = self.final_path(path);
        self.make_parent(&to)?;
        fs::rename(self.partial_path(path), &to)
            .map_err(|source| FetchError::storage("rename a finished file to", &to, source))
    }

    /// Makes the files' names durable, then writes the manifest; what was left in the making goes away. Returns the manifest's digest.
    pub(super) fn finish(&self, manifest: &Manifest) -> Result<String, FetchError> {
        let mut folders = BTreeSet::from([self.folder.clone()]);
        for file in &manifest.files {
            let path = self.final_path(&file.path);
            folders.extend(
                path.ancestors()
                    .skip(1)
                    .take_while(|folder| *folder != self.folder)
                    .map(Path::to_path_buf),
            );
        }
        // The deepest first, so that each name is durable before what leads to it; all of it before the manifest.
        for folder in folders.iter().rev() {
            sync_folder(folder)?;
        }
        let staging = self.staging.join("manifest.partial");
        let digest = manifest
            .store(&self.folder, &staging)
            .map_err(|source| FetchError::storage("write the manifest in", &self.folder, source))?;
        sync_folder(&self.root)?;
        if let Err(error) = fs::remove_dir_all(&self.staging) {
            tracing::warn!(folder = %self.staging.display(), %error, "files in the making could not be removed; they do no harm");
        }
        Ok(digest)
    }

    /// Bytes that are not there yet, and bytes of all files, as far as the hub tells.
    fn missing(&self, chosen: &[RemoteFile]) -> (u64, u64) {
        let length = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
        let mut missing = 0;
        let mut total = 0;
        for file in chosen {
            let Some(size) = file.size else { continue };
            total += size;
            if length(self.final_path(&file.path)) != size {
                missing += size.saturating_sub(length(self.partial_path(&file.path)));
            }
        }
        (missing, total)
    }

    fn free(&self) -> io::Result<u64> {
        let room = rustix::fs::statvfs(&self.root)?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize))
    }
}

/// Makes a folder below the volume's root, step by step: a symbolic link on the way could lead out of the volume.
fn make_folder(root: &Path, folder: &Path) -> Result<(), FetchError> {
    let failed = |path: &Path, source| FetchError::storage("make the folder", path, source);
    let below = folder.strip_prefix(root).unwrap_or(Path::new(""));
    fs::create_dir_all(root).map_err(|source| failed(root, source))?;
    let mut path = root.to_path_buf();
    for name in below {
        path.push(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(&path, error));
            }
            _ => {}
        }
        let metadata = fs::symlink_metadata(&path).map_err(|source| failed(&path, source))?;
        if !metadata.is_dir() {
            let what = if metadata.is_symlink() {
                "a symbolic link is in its place, which could lead out of the volume; remove it"
            } else {
                "a file is in its place; remove it"
            };
            return Err(failed(&path, io::Error::other(what)));
        }
    }
    Ok(())
}

fn sync_folder(path: &Path) -> Result<(), FetchError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(|source| FetchError::storage("make durable", path, source))
}

/// Some network file systems have no locks, and say so in one of these ways.
fn cannot_lock(error: &io::Error) -> bool {
    let errno = error
        .raw_os_error()
        .map(rustix::io::Errno::from_raw_os_error);
    matches!(
        errno,
        Some(rustix::io::Errno::NOLCK | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP)
    )
}
