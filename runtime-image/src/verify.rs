//! `chandler-runtime verify`: compares a folder of weights with its manifest, byte by byte; one without a manifest gets one where it may be written.
//!
//! For weights that were brought by other means than `fetch`. A folder with links, or that cannot be written to, is taken as it is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::answer::{Answer, Failure, Reason, Verified};
use crate::hub::RepoPath;
use crate::job;
use crate::manifest::{MANIFEST_NAME, Manifest, ManifestError, ManifestFile};

/// Files of a folder: as many as a hub may list.
const FILES_LIMIT: usize = 20_000;

/// How deep folders are looked into.
const DEPTH_LIMIT: usize = 16;

/// What `verify` is asked.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Folder of weights, or one .gguf file.
    #[arg(long, env = "CHANDLER_MODEL")]
    pub model: PathBuf,

    /// File that gets the answer too, for a container its termination message.
    #[arg(long, env = "CHANDLER_RESULT_FILE")]
    pub result_file: Option<PathBuf>,
}

/// A folder that is not what it is taken for.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is nothing.
    #[error("cannot read {}: {source}; name a folder of weights or a .gguf file that is there", path.display())]
    Read {
        /// What was named, or something in it.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No folder of weights.
    #[error("{} {why}; name the folder of one model", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The manifest and the files differ.
    #[error("{0}; bring the files anew, or delete {MANIFEST_NAME} if they are right")]
    Manifest(#[from] ManifestError),
}

/// Runs `verify` to its exit code.
pub fn run(args: VerifyArgs) -> ExitCode {
    let VerifyArgs { model, result_file } = args;
    job::run(result_file.as_deref(), async {
        match tokio::task::spawn_blocking(move || verify(&model)).await {
            Ok(Ok(verified)) => Answer::Verified(verified),
            Ok(Err(error)) => Answer::Failed(Failure::from(&error)),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    })
}

/// Compares every byte with the manifest, or makes one.
///
/// # Errors
/// When there is nothing to read, or bytes are not what the manifest lists.
pub fn verify(model: &Path) -> Result<Verified, VerifyError> {
    let read = |source| VerifyError::Read {
        path: model.to_owned(),
        source,
    };
    let metadata = fs::metadata(model).map_err(read)?;
    if metadata.is_file() {
        // What else lies beside it belongs to others.
        return Ok(Verified {
            files: 1,
            bytes: metadata.len(),
            manifest_digest: None,
        });
    }
    if let Some(stored) = Manifest::load(model)? {
        stored.manifest.check_digests(model)?;
        return Ok(Verified {
            files: stored.manifest.files.len(),
            bytes: stored.manifest.bytes(),
            manifest_digest: Some(stored.digest),
        });
    }
    let mut found = Found::default();
    found.look_into(model, "", 0)?;
    if found.paths.is_empty() {
        return Err(VerifyError::Folder {
            path: model.to_owned(),
            why: "holds no files".to_owned(),
        });
    }
    let manifest_digest = match found.has_links {
        true => {
            tracing::warn!(folder = %model.display(), "the folder holds links, so it gets no manifest");
            None
        }
        false => make_manifest(model, &found.paths).map_err(read)?,
    };
    Ok(Verified {
        files: found.paths.len(),
        bytes: found.bytes,
        manifest_digest,
    })
}

/// Nothing where the folder cannot be written to.
fn make_manifest(folder: &Path, paths: &[RepoPath]) -> io::Result<Option<String>> {
    let staging = folder.join(format!(".{MANIFEST_NAME}.partial"));
    // Asked first: digests of what cannot be written down take as long.
    if let Err(error) = fs::File::create(&staging) {
        tracing::warn!(folder = %folder.display(), %error, "no manifest can be written here; the files are taken as they are");
        return Ok(None);
    }
    let files = paths
        .iter()
        .map(|path| ManifestFile::of(folder, path.clone()))
        .collect::<io::Result<Vec<_>>>()?;
    let digest = Manifest::new(None, files).store(folder, &staging)?;
    tracing::info!(folder = %folder.display(), files = paths.len(), digest, "a manifest was made");
    Ok(Some(digest))
}

/// The files of a folder.
#[derive(Default)]
struct Found {
    paths: Vec<RepoPath>,
    bytes: u64,
    has_links: bool,
}

impl Found {
    fn look_into(&mut self, root: &Path, below: &str, depth: usize) -> Result<(), VerifyError> {
        let folder = root.join(below);
        let too_much = |why: String| VerifyError::Folder {
            path: root.to_owned(),
            why,
        };
        if depth > DEPTH_LIMIT {
            return Err(too_much(format!("is deeper than {DEPTH_LIMIT} folders")));
        }
        let read = |source| VerifyError::Read {
            path: folder.clone(),
            source,
        };
        for entry in fs::read_dir(&folder).map_err(read)? {
            let entry = entry.map_err(read)?;
            let kind = entry.file_type().map_err(read)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
                // Names that no hub has: what tools keep beside the files.
                continue;
            };
            let path = match below {
                "" => name.to_owned(),
                below => format!("{below}/{name}"),
            };
            if kind.is_symlink() {
                self.has_links = true;
                let target = fs::metadata(entry.path()).map_err(read)?;
                if target.is_file() {
                    self.take(&path, target.len(), too_much)?;
                }
            } else if kind.is_dir() {
                self.look_into(root, &path, depth + 1)?;
            } else if kind.is_file() {
                let size = entry.metadata().map_err(read)?.len();
                self.take(&path, size, too_much)?;
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        path: &str,
        size: u64,
        too_much: impl Fn(String) -> VerifyError,
    ) -> Result<(), VerifyError> {
        if self.paths.len() == FILES_LIMIT {
            return Err(too_much(format!("holds more than {FILES_LIMIT} files")));
        }
        let path = RepoPath::parse(path).map_err(|error| too_much(error.to_string()))?;
        self.paths.push(path);
        self.bytes = self.bytes.saturating_add(size);
        Ok(())
    }
}

impl From<&VerifyError> for Failure {
    fn from(error: &VerifyError) -> Self {
        let reason = match error {
            VerifyError::Manifest(_) => Reason::DigestMismatch,
            VerifyError::Read { .. } | VerifyError::Folder { .. } => Reason::InvalidSource,
        };
        Self::new(reason, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("config.json"), b"{}").unwrap();
        fs::write(folder.path().join("sub/model.safetensors"), b"12345").unwrap();
        fs::write(folder.path().join(".lock"), b"x").unwrap();
        folder
    }

    #[test]
    fn a_manifest_is_made_once_and_compared_from_then_on() {
        let folder = folder();
        let made = verify(folder.path()).unwrap();
        assert_eq!((made.files, made.bytes), (2, 7));
        assert!(made.manifest_digest.is_some());
        assert_eq!(verify(folder.path()).unwrap(), made);
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert_eq!(names.len(), 4, "{names:?}");

        fs::write(folder.path().join("sub/model.safetensors"), b"12346").unwrap();
        let error = verify(folder.path()).unwrap_err();
        let told = Failure::from(&error);
        assert_eq!(told.reason, Reason::DigestMismatch);
        for word in ["sub/model.safetensors", "other bytes", MANIFEST_NAME] {
            assert!(told.message.contains(word), "{}", told.message);
        }
    }

    #[test]
    fn a_folder_with_links_and_a_single_file_are_taken_as_they_are() {
        let folder = folder();
        symlink("config.json", folder.path().join("link.json")).unwrap();
        let found = verify(folder.path()).unwrap();
        assert_eq!((found.files, found.manifest_digest), (3, None));
        let found = verify(&folder.path().join("sub/model.safetensors")).unwrap();
        assert_eq!(
            (found.files, found.bytes, found.manifest_digest),
            (1, 5, None)
        );
        assert!(!folder.path().join(MANIFEST_NAME).exists());
    }

    #[test]
    fn nothing_to_verify_is_told_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        for (path, word) in [
            (folder.path().to_owned(), "no files"),
            (folder.path().join("absent"), "absent"),
        ] {
            let told = Failure::from(&verify(&path).unwrap_err());
            assert_eq!(told.reason, Reason::InvalidSource);
            assert!(told.message.contains(word), "{}", told.message);
        }
        let folder = folder_with_a_loop();
        assert!(verify(folder.path()).is_ok());
    }

    /// A link to a folder is not followed.
    fn folder_with_a_loop() -> tempfile::TempDir {
        let folder = folder();
        symlink(".", folder.path().join("again")).unwrap();
        folder
    }
}
