//! A file in the making: bytes are appended and digested in one go, and what a killed process left is digested again before it is continued.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::progress::Counter;
use super::volume::NO_LINKS;
use crate::hub::FileDigest;
use crate::manifest::HEAD_BYTES;

/// How much is read at a time when an existing file is digested.
const READ_SIZE: usize = 1 << 20;

/// From so many bytes on, they are digested while they are written: either takes many times as long as a thread's start.
const WORTH_A_THREAD: usize = 1 << 20;

/// A file in the making.
#[derive(Debug)]
pub(super) struct Assembly {
    file: File,
    size: Option<u64>,
    sums: Summing,
    counter: Arc<Counter>,
}

/// What a finished file turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sums {
    /// Its size in bytes.
    pub(super) size: u64,
    /// SHA-256 of its content.
    pub(super) sha256: [u8; 32],
    /// SHA-256 of its first 64 KiB.
    pub(super) head_sha256: [u8; 32],
    /// Git's name for it, where its size was known from the beginning.
    git_blob: Option<[u8; 20]>,
}

#[derive(Debug, Clone)]
struct Summing {
    size: u64,
    sha256: Sha256,
    head_sha256: Sha256,
    git_blob: Option<Sha1>,
}

impl Assembly {
    /// Continues the file at `path`, or begins it.
    pub(super) fn open(
        path: &Path,
        size: Option<u64>,
        digest: Option<FileDigest>,
        counter: Arc<Counter>,
    ) -> io::Result<Self> {
        // Whoever else writes to the volume could put a link here that leads anywhere.
        if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink()) {
            fs::remove_file(path)?;
        }
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .custom_flags(NO_LINKS)
            .open(path)?;
        let mut sums = Summing::new(size, digest);
        // What nothing promises a digest for must come in one piece: a crash of the machine may have left holes in it.
        let there = file.metadata()?.len();
        if there > 0 && (digest.is_none() || size.is_none_or(|size| there > size)) {
            file.set_len(0)?;
        } else {
            sums.read(&mut file, &counter)?;
        }
        Ok(Self {
            file,
            size,
            sums,
            counter,
        })
    }

    /// Bytes that are there.
    pub(super) fn written(&self) -> u64 {
        self.sums.size
    }

    /// Whether every byte that was announced is there.
    pub(super) fn is_complete(&self) -> bool {
        self.size == Some(self.sums.size)
    }

    /// Appends bytes. After an error only the file is right: whoever goes on opens it again.
    pub(super) fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() < WORTH_A_THREAD {
            self.file.write_all(bytes)?;
            self.sums.update(bytes);
        } else {
            let (file, sums) = (&mut self.file, &mut self.sums);
            std::thread::scope(|scope| {
                scope.spawn(|| sums.update(bytes));
                file.write_all(bytes)
            })?;
        }
        self.counter.fetched(bytes.len() as u64);
        Ok(())
    }

    /// Throws away what is there.
    pub(super) fn restart(&mut self, digest: Option<FileDigest>) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.counter.lost(self.sums.size);
        self.sums = Summing::new(self.size, digest);
        Ok(())
    }

    /// Puts everything onto the disk and says what the file is.
    pub(super) fn finish(self) -> io::Result<Sums> {
        self.file.sync_all()?;
        Ok(self.sums.finish())
    }
}

/// Digests a file that is there under its final name.
pub(super) fn sums_of(
    path: &Path,
    size: Option<u64>,
    digest: Option<FileDigest>,
    counter: &Counter,
) -> io::Result<Sums> {
    let mut sums = Summing::new(size, digest);
    sums.read(&mut File::open(path)?, counter)?;
    Ok(sums.finish())
}

impl Sums {
    /// Says how a file differs from what was promised.
    pub(super) fn check(
        &self,
        size: Option<u64>,
        digest: Option<FileDigest>,
    ) -> Result<(), String> {
        if let Some(size) = size.filter(|size| *size != self.size) {
            return Err(format!("{} bytes were promised, {} came", size, self.size));
        }
        let found = match digest {
            Some(FileDigest::Sha256(_)) => Some(FileDigest::Sha256(self.sha256)),
            Some(FileDigest::GitBlob(_)) => self.git_blob.map(FileDigest::GitBlob),
            None => return Ok(()),
        };
        match (digest, found) {
            (Some(promised), Some(found)) if promised != found => {
                Err(format!("{promised} was promised, {found} came"))
            }
            _ => Ok(()),
        }
    }
}

impl Summing {
    fn new(size: Option<u64>, digest: Option<FileDigest>) -> Self {
        let git_blob = match (size, digest) {
            (Some(size), Some(FileDigest::GitBlob(_))) => {
                Some(Sha1::new_with_prefix(format!("blob {size}\0")))
            }
            _ => None,
        };
        Self {
            size: 0,
            sha256: Sha256::new(),
            head_sha256: Sha256::new(),
            git_blob,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        let of_head = HEAD_BYTES.saturating_sub(self.size).min(bytes.len() as u64);
        self.head_sha256.update(&bytes[..of_head as usize]);
        self.size += bytes.len() as u64;
        self.sha256.update(bytes);
        if let Some(git_blob) = &mut self.git_blob {
            git_blob.update(bytes);
        }
    }

    fn read(&mut self, file: &mut File, counter: &Counter) -> io::Result<()> {
        let mut buffer = vec![0; READ_SIZE];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.update(&buffer[..count]);
                    counter.found(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn finish(self) -> Sums {
        Sums {
            size: self.size,
            sha256: self.sha256.finalize().into(),
            head_sha256: self.head_sha256.finalize().into(),
            git_blob: self.git_blob.map(|git_blob| git_blob.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: FileDigest = FileDigest::GitBlob([0; 20]);

    #[test]
    fn continues_what_is_there_and_digests_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.partial");
        // `printf hello | git hash-object --stdin` and `printf hello | sha256sum`.
        let git = FileDigest::parse("b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0").unwrap();
        let sha256 =
            FileDigest::parse("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
                .unwrap();
        let counter = Arc::new(Counter::default());
        let mut first = Assembly::open(&path, Some(5), Some(git), counter.clone()).unwrap();
        first.push(b"he").unwrap();
        drop(first);
        let mut second = Assembly::open(&path, Some(5), Some(git), counter.clone()).unwrap();
        assert_eq!(second.written(), 2);
        second.push(b"llo").unwrap();
        assert!(second.is_complete());
        let sums = second.finish().unwrap();
        sums.check(Some(5), Some(git)).unwrap();
        sums.check(Some(5), Some(sha256)).unwrap();
        assert!(
            sums.check(Some(6), None)
                .unwrap_err()
                .contains("6 bytes were promised, 5 came")
        );
        assert!(sums.check(Some(5), Some(EMPTY)).is_err());
        assert_eq!(sums_of(&path, Some(5), Some(git), &counter).unwrap(), sums);
    }

    #[test]
    fn begins_anew_when_too_much_is_there_or_nothing_could_tell_holes() {
        let folder = tempfile::tempdir().unwrap();
        for (size, digest) in [(Some(2), Some(EMPTY)), (Some(9), None), (None, None)] {
            let path = folder.path().join("x.partial");
            fs::write(&path, b"abc").unwrap();
            let assembly =
                Assembly::open(&path, size, digest, Arc::new(Counter::default())).unwrap();
            assert_eq!(
                (assembly.written(), fs::metadata(&path).unwrap().len()),
                (0, 0),
                "{size:?} {digest:?}"
            );
        }
    }

    #[test]
    fn restarting_forgets_bytes_and_digests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.partial");
        let counter = Arc::new(Counter::default());
        let mut assembly = Assembly::open(&path, Some(1), None, counter.clone()).unwrap();
        assembly.push(b"wrong").unwrap();
        assembly.restart(None).unwrap();
        assembly.push(b"a").unwrap();
        assert_eq!(counter.done(), 1);
        let sums = assembly.finish().unwrap();
        assert_eq!(sums.sha256, <[u8; 32]>::from(Sha256::digest(b"a")));
        assert_eq!(fs::read(&path).unwrap(), b"a");
    }
}
