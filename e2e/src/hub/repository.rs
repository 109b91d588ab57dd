//! A repository as the hub knows it: files with their digests, a commit, and who may read them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Files from this size on are kept as Git LFS objects, as the real hub asks of its users.
const LFS_FROM_BYTES: u64 = 10 * 1024 * 1024;

/// Files with these endings are LFS objects of any size: the `.gitattributes` that the hub gives to new repositories.
const LFS_ENDINGS: [&str; 10] = [
    ".gguf",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".onnx",
    ".model",
    ".ckpt",
    ".h5",
    ".msgpack",
];

/// The file beside a repository's files that says who may read it. It is not served.
pub(crate) const SETTINGS_FILE: &str = "hub.json";

/// `ORG/NAME`, with nothing in it that could leave the folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryId {
    organisation: String,
    name: String,
}

impl RepositoryId {
    /// `None` where a part holds anything but letters, digits, `-`, `_` and `.`, or begins with a dot.
    #[must_use]
    pub fn new(organisation: &str, name: &str) -> Option<Self> {
        let sound = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with('.')
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        (sound(organisation) && sound(name)).then(|| Self {
            organisation: organisation.to_owned(),
            name: name.to_owned(),
        })
    }

    /// The part before the slash.
    #[must_use]
    pub fn organisation(&self) -> &str {
        &self.organisation
    }

    /// The part after the slash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl std::fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.organisation, self.name)
    }
}

/// Who may read a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Everybody.
    #[default]
    Public,
    /// Everybody sees that it exists and what files it has; only accounts that accepted the licence may read them.
    Gated,
    /// Only its own accounts know of it.
    Private,
}

/// `hub.json`, and the body of `PUT /_repositories/ORG/NAME`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// Who may read it.
    pub access: Access,
    /// Tokens of accounts that may read it.
    pub tokens: Vec<String>,
    /// Tokens of accounts that exist but have not accepted the licence.
    pub other_tokens: Vec<String>,
    /// Names of the one revision beside `main` and the commit itself.
    pub revisions: Vec<String>,
    /// The commit, instead of the digest of the contents: 40 hexadecimal digits.
    pub commit: Option<String>,
    /// Fields added to the model's metadata, for example `gguf` or `config`.
    pub extra: serde_json::Map<String, serde_json::Value>,
    /// Only in `PUT /_repositories`: take the files of this repository, `ORG/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<String>,
    /// Only in `PUT /_repositories`: serve only so many bytes of a file; size and digests are those of what is left.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub truncate: BTreeMap<String, u64>,
    /// Only in `PUT /_repositories`: files that are there under a further name, by that name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub copies: BTreeMap<String, String>,
}

/// One file and what the hub says about it.
#[derive(Debug, Clone)]
pub(crate) struct StoredFile {
    pub(crate) source: PathBuf,
    /// May be less than the source has: then only the beginning is served.
    pub(crate) size: u64,
    pub(crate) sha256: String,
    /// Git's id of the file, or of the pointer that stands for it.
    pub(crate) blob_id: String,
    /// The length of the pointer, for files kept as LFS objects.
    pub(crate) pointer_size: Option<usize>,
}

impl StoredFile {
    fn read(source: PathBuf, size: u64, path: &str) -> io::Result<Self> {
        let is_lfs =
            size >= LFS_FROM_BYTES || LFS_ENDINGS.iter().any(|ending| path.ends_with(ending));
        let digests = Digests::of(&source, size)?;
        let (blob_id, pointer_size) = if is_lfs {
            let pointer = format!(
                "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {size}\n",
                digests.sha256
            );
            let mut id = Sha1::new();
            id.update(format!("blob {}\0", pointer.len()));
            id.update(&pointer);
            (hex(&id.finalize()), Some(pointer.len()))
        } else {
            (digests.blob_id, None)
        };
        Ok(Self {
            source,
            size,
            sha256: digests.sha256,
            blob_id,
            pointer_size,
        })
    }

    /// The digest by which the hub names the file's contents.
    pub(crate) fn etag(&self) -> &str {
        if self.pointer_size.is_some() {
            &self.sha256
        } else {
            &self.blob_id
        }
    }
}

/// All of a repository at its one commit.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) settings: Settings,
    pub(crate) files: BTreeMap<String, StoredFile>,
    pub(crate) commit: String,
}

impl Repository {
    /// Reads every file once for its digests. `None` where there is no such folder.
    pub(crate) fn load(folder: &Path) -> io::Result<Option<Self>> {
        if !folder.is_dir() {
            return Ok(None);
        }
        let settings = match std::fs::read(folder.join(SETTINGS_FILE)) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                io::Error::other(format!("cannot read {SETTINGS_FILE}: {error}"))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Settings::default(),
            Err(error) => return Err(error),
        };
        let mut files = BTreeMap::new();
        collect(folder, folder, &mut files)?;
        Ok(Some(Self::new(settings, files)))
    }

    /// The same files under other settings, some under a further name; truncated ones are read again.
    pub(crate) fn derived(&self, settings: Settings) -> io::Result<Self> {
        let mut files = self.files.clone();
        for (path, bytes) in &settings.truncate {
            let file = files
                .get_mut(path)
                .ok_or_else(|| io::Error::other(format!("no file {path} to truncate")))?;
            *file = StoredFile::read(file.source.clone(), (*bytes).min(file.size), path)?;
        }
        for (copy, path) in &settings.copies {
            let file = files
                .get(path)
                .ok_or_else(|| io::Error::other(format!("no file {path} to copy")))?;
            files.insert(copy.clone(), file.clone());
        }
        Ok(Self::new(settings, files))
    }

    fn new(settings: Settings, files: BTreeMap<String, StoredFile>) -> Self {
        let commit = settings
            .commit
            .clone()
            .unwrap_or_else(|| content_digest(&files));
        Self {
            settings,
            files,
            commit,
        }
    }

    pub(crate) fn has_revision(&self, revision: &str) -> bool {
        revision == "main"
            || revision == self.commit
            || self.settings.revisions.iter().any(|name| name == revision)
    }
}

/// The same contents under the same names give the same commit, on any machine.
fn content_digest(files: &BTreeMap<String, StoredFile>) -> String {
    let mut digest = Sha1::new();
    for (path, file) in files {
        digest.update(format!("{path}\0{}\n", file.sha256));
    }
    hex(&digest.finalize())
}

fn collect(root: &Path, folder: &Path, files: &mut BTreeMap<String, StoredFile>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let source = entry?.path();
        let meta = std::fs::metadata(&source)?;
        if meta.is_dir() {
            collect(root, &source, files)?;
            continue;
        }
        let relative = source.strip_prefix(root).map_err(io::Error::other)?;
        let path = relative.to_string_lossy().into_owned();
        if path != SETTINGS_FILE {
            let file = StoredFile::read(source, meta.len(), &path)?;
            files.insert(path, file);
        }
    }
    Ok(())
}

struct Digests {
    sha256: String,
    blob_id: String,
}

impl Digests {
    fn of(source: &Path, size: u64) -> io::Result<Self> {
        let mut sha256 = Sha256::new();
        let mut blob_id = Sha1::new();
        blob_id.update(format!("blob {size}\0"));
        let mut rest = File::open(source)?.take(size);
        let mut buffer = vec![0; 1024 * 1024];
        loop {
            let read = rest.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            sha256.update(&buffer[..read]);
            blob_id.update(&buffer[..read]);
        }
        Ok(Self {
            sha256: hex(&sha256.finalize()),
            blob_id: hex(&blob_id.finalize()),
        })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}
