//! The manifest: which files a folder of weights holds, with sizes and digests. It is written last, so a folder that has one is complete.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::hub::listing::Hex;
use crate::hub::source::HubKind;
use crate::hub::{Commit, Format, RepoPath, RepositoryId};

/// The manifest's name in a folder of weights.
pub const MANIFEST_NAME: &str = "chandler.json";

/// The version of the manifest's form that is written and understood.
const VERSION: u32 = 1;

/// 20,000 files of a listing fit easily; more is no manifest.
const MANIFEST_LIMIT: u64 = 64 << 20;

/// How much is read at a time when digests are checked.
const READ_BYTES: usize = 1 << 20;

/// What a folder of weights holds, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of this form.
    pub version: u32,
    /// Where the files came from; nothing where they were found without a manifest.
    #[serde(flatten)]
    pub origin: Option<Origin>,
    /// Every file, sorted by path.
    pub files: Vec<ManifestFile>,
}

/// Where files came from, and what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The hub's kind.
    pub hub: HubKind,
    /// The hub's address.
    pub endpoint: String,
    /// The repository.
    pub id: RepositoryId,
    /// The commit.
    pub commit: Commit,
    /// How the weights are stored.
    pub format: Format,
    /// The patterns that chose the files; empty where the format did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<String>,
}

/// One file of a folder of weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestFile {
    /// Where it is, relative to the manifest.
    pub path: RepoPath,
    /// Its size in bytes.
    pub size: u64,
    /// SHA-256 of its content, 64 hexadecimal digits.
    pub sha256: String,
    /// SHA-256 of its first 64 KiB, or of all where it has less: quickly compared at every start. Absent in manifests of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_sha256: Option<String>,
}

/// How much of a file's beginning has a digest of its own: the header of a GGUF file with its sizes, and every small file as a whole.
pub const HEAD_BYTES: u64 = 64 << 10;

/// A manifest as it lies in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredManifest {
    /// What it says.
    pub manifest: Manifest,
    /// `sha256:` and the digest of its bytes.
    pub digest: String,
}

/// A manifest that does not hold what it promises.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The file is there and cannot be read.
    #[error("failed to read {}: {source}", path.display())]
    Read {
        /// The manifest.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is no manifest.
    #[error("{} is no manifest: {why}", path.display())]
    Malformed {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A file is absent or of another size.
    #[error("{} {why}, although the manifest lists it with {size} bytes", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
        /// The size that the manifest lists.
        size: u64,
    },
}

impl Manifest {
    /// A manifest of the version written here.
    pub fn new(origin: Option<Origin>, mut files: Vec<ManifestFile>) -> Self {
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Self {
            version: VERSION,
            origin,
            files,
        }
    }

    /// The size of all files together.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Puts the manifest into its folder: a temporary name beside `staging`, fsync, rename, fsync of the folder. Returns its digest.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn store(&self, folder: &Path, staging: &Path) -> io::Result<String> {
        let bytes = serde_json::to_vec(self).map_err(io::Error::other)?;
        let mut file = File::create(staging)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(staging, folder.join(MANIFEST_NAME))?;
        File::open(folder)?.sync_all()?;
        Ok(digest_of(&bytes))
    }

    /// Reads the manifest of a folder. `None` when there is none: the folder is not complete.
    ///
    /// # Errors
    /// When there is something that is no manifest.
    pub fn load(folder: &Path) -> Result<Option<StoredManifest>, ManifestError> {
        let path = folder.join(MANIFEST_NAME);
        let read = |source| ManifestError::Read {
            path: path.clone(),
            source,
        };
        let malformed = |why: String| ManifestError::Malformed {
            path: path.clone(),
            why,
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(read(error)),
        };
        let mut bytes = Vec::new();
        file.take(MANIFEST_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(read)?;
        if bytes.len() as u64 > MANIFEST_LIMIT {
            return Err(malformed(format!(
                "it has more than {MANIFEST_LIMIT} bytes"
            )));
        }
        let value: Value =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let manifest = Self::deserialize(&value).map_err(|error| malformed(error.to_string()))?;
        // One that cannot be read counts as none, unless it is asked for by itself.
        if manifest.origin.is_none() && value.get("commit").is_some() {
            Origin::deserialize(&value).map_err(|error| malformed(error.to_string()))?;
        }
        if manifest.version != VERSION {
            return Err(malformed(format!(
                "its version is {}, this runtime understands {VERSION}",
                manifest.version
            )));
        }
        if manifest.files.is_empty() {
            return Err(malformed("it lists no files".into()));
        }
        Ok(Some(StoredManifest {
            manifest,
            digest: digest_of(&bytes),
        }))
    }

    /// The check of every start: sizes, and the digest of each file's first 64 KiB.
    ///
    /// # Errors
    /// Names the first file that is not what is listed.
    pub fn check_heads(&self, folder: &Path) -> Result<(), ManifestError> {
        self.check_sizes(folder)?;
        for file in &self.files {
            if let Some(promised) = &file.head_sha256 {
                check_digest(folder, file, HEAD_BYTES, promised)?;
            }
        }
        Ok(())
    }

    /// The whole check: sizes, and the digest of every byte. It reads everything.
    ///
    /// # Errors
    /// Names the first file that is not what is listed.
    pub fn check_digests(&self, folder: &Path) -> Result<(), ManifestError> {
        self.check_sizes(folder)?;
        self.files
            .iter()
            .try_for_each(|file| check_digest(folder, file, file.size, &file.sha256))
    }

    /// Whether every file is there with its size. Digests are not read.
    ///
    /// # Errors
    /// Names the first file that is not.
    pub fn check_sizes(&self, folder: &Path) -> Result<(), ManifestError> {
        for file in &self.files {
            let path = folder.join(file.path.as_str());
            let why = match fs::symlink_metadata(&path) {
                Ok(metadata) if !metadata.is_file() => "is no file".to_owned(),
                Ok(metadata) if metadata.len() != file.size => {
                    format!("has {} bytes", metadata.len())
                }
                Ok(_) => continue,
                Err(error) => format!("cannot be read ({error})"),
            };
            return Err(ManifestError::File {
                path,
                why,
                size: file.size,
            });
        }
        Ok(())
    }
}

/// Compares the digest of a file's first bytes with the promised one.
fn check_digest(
    folder: &Path,
    file: &ManifestFile,
    bytes: u64,
    promised: &str,
) -> Result<(), ManifestError> {
    let path = folder.join(file.path.as_str());
    let why = match digest_of_file(&path, bytes) {
        Err(error) => format!("cannot be read ({error})"),
        Ok(found) if found.eq_ignore_ascii_case(promised) => return Ok(()),
        Ok(found) => {
            format!("has other bytes (sha256 of the first {bytes}: {found}, expected {promised})")
        }
    };
    Err(ManifestError::File {
        path,
        why,
        size: file.size,
    })
}

/// SHA-256 of a file's first bytes, as hexadecimal digits.
fn digest_of_file(path: &Path, bytes: u64) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut content = File::open(path)?.take(bytes);
    let size = usize::try_from(bytes).unwrap_or(READ_BYTES);
    let mut buffer = vec![0; READ_BYTES.min(size).max(1)];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(Hex(&digest.finalize()).to_string()),
            Ok(count) => digest.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl ManifestFile {
    /// Describes a file that lies in a folder; it is read whole.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(folder: &Path, path: RepoPath) -> io::Result<Self> {
        let file = folder.join(path.as_str());
        Ok(Self {
            size: fs::metadata(&file)?.len(),
            sha256: digest_of_file(&file, u64::MAX)?,
            head_sha256: Some(digest_of_file(&file, HEAD_BYTES)?),
            path,
        })
    }
}

fn digest_of(bytes: &[u8]) -> String {
    format!("sha256:{}", Hex(&Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |path: &str, size| ManifestFile {
            path: RepoPath::parse(path).unwrap(),
            size,
            sha256: "0".repeat(64),
            head_sha256: None,
        };
        let commit = Commit::parse(&"a".repeat(40)).unwrap();
        let id = RepositoryId::parse("o/n").unwrap();
        let origin = Origin {
            hub: HubKind::Huggingface,
            endpoint: "https://h/".into(),
            id,
            commit,
            format: Format::Ggufv2,
            patterns: Vec::new(),
        };
        Manifest::new(Some(origin), vec![file("b/x.gguf", 2), file("a", 1)])
    }

    #[test]
    fn comes_back_as_it_was_stored() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Manifest::load(folder.path()).unwrap().is_none());
        let digest = manifest()
            .store(folder.path(), &folder.path().join("staging"))
            .unwrap();
        let stored = Manifest::load(folder.path()).unwrap().unwrap();
        assert_eq!((stored.manifest, stored.digest), (manifest(), digest));
        let text = fs::read_to_string(folder.path().join(MANIFEST_NAME)).unwrap();
        assert!(text.starts_with(r#"{"version":1,"hub":"huggingface","endpoint":"https://h/","id":"o/n","commit":"aaaa"#), "{text}");
        assert!(
            text.contains(r#""format":"ggufv2","files":[{"path":"a","size":1,"#),
            "{text}"
        );
    }

    #[test]
    fn says_which_file_is_not_what_it_lists() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), b"1").unwrap();
        let error = manifest()
            .check_sizes(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("b/x.gguf"), "{error}");
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b/x.gguf"), b"1").unwrap();
        let error = manifest()
            .check_sizes(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("has 1 bytes"), "{error}");
        fs::write(folder.path().join("b/x.gguf"), b"12").unwrap();
        manifest().check_sizes(folder.path()).unwrap();
    }

    #[test]
    fn finds_other_bytes_in_the_beginning_and_anywhere_when_all_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let head = usize::try_from(HEAD_BYTES).unwrap();
        let mut content = vec![7; head + 10];
        let sha256 = |bytes: &[u8]| Hex(&Sha256::digest(bytes)).to_string();
        let mut manifest = manifest();
        manifest.files = vec![ManifestFile {
            path: RepoPath::parse("a").unwrap(),
            size: content.len() as u64,
            sha256: sha256(&content),
            head_sha256: Some(sha256(&content[..head])),
        }];
        let path = folder.path().join("a");
        fs::write(&path, &content).unwrap();
        manifest.check_heads(folder.path()).unwrap();
        manifest.check_digests(folder.path()).unwrap();
        content[head + 1] = 8;
        fs::write(&path, &content).unwrap();
        manifest.check_heads(folder.path()).unwrap();
        let error = manifest
            .check_digests(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains("has other bytes"), "{error}");
        content[head - 1] = 8;
        fs::write(&path, &content).unwrap();
        let error = manifest.check_heads(folder.path()).unwrap_err().to_string();
        assert!(error.contains("65536"), "{error}");
        manifest.files[0].head_sha256 = None;
        manifest.check_heads(folder.path()).unwrap();
    }

    #[test]
    fn refuses_what_is_no_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let good = serde_json::to_value(manifest()).unwrap();
        let changed = |at: &str, value: Value| {
            let mut changed = good.clone();
            *changed.pointer_mut(at).unwrap() = value;
            changed.to_string()
        };
        for text in [
            String::new(),
            "{".into(),
            changed("/version", 2.into()),
            changed("/files", serde_json::json!([])),
            changed("/files/0/path", "../x".into()),
            changed("/files/0/path", "/etc/passwd".into()),
            changed("/commit", "main".into()),
        ] {
            fs::write(folder.path().join(MANIFEST_NAME), &text).unwrap();
            assert!(
                matches!(
                    Manifest::load(folder.path()),
                    Err(ManifestError::Malformed { .. })
                ),
                "{text} was taken"
            );
        }
    }
}
