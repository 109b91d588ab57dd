//! What a hub says about a repository at one commit, checked: nothing that a hub sends becomes a path or a number before it has passed here.

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// More files than any repository of one model has; a listing beyond it is refused.
pub const FILES_LIMIT: usize = 20_000;

/// The longest path in a repository, in bytes.
pub const PATH_LIMIT: usize = 1024;

/// The longest name that Linux file systems take, in bytes, less the room that `.partial` needs.
const NAME_LIMIT: usize = 255 - ".partial".len();

/// 64 TiB: no single file of a model is larger, and sums of so many stay far from overflowing.
pub const SIZE_LIMIT: u64 = 1 << 46;

/// A repository on a hub: `NAME` or `ORG/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct RepositoryId(String);

/// A commit: 40 hexadecimal digits, or 64 for repositories that hash with SHA-256. It is safe as the name of a folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Commit(String);

/// A relative path inside a repository that cannot leave the folder it is joined to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct RepoPath(String);

/// The digest that a hub promises for a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum FileDigest {
    /// SHA-256 of the content: what Git LFS names objects by.
    Sha256([u8; 32]),
    /// SHA-1 over `blob SIZE\0` and the content: what Git names objects by.
    GitBlob([u8; 20]),
}

/// One file of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Where it is.
    pub path: RepoPath,
    /// Its size in bytes, where the hub tells.
    pub size: Option<u64>,
    /// Its digest, where the hub tells.
    pub digest: Option<FileDigest>,
}

/// A repository at one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The repository that answered.
    pub id: RepositoryId,
    /// The commit.
    pub commit: Commit,
    /// Every file, in the hub's order.
    pub files: Vec<RemoteFile>,
}

/// What is wrong with something that a hub or a user named.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// The id of a repository.
    #[error("{0:?} is no repository: write ORG/NAME with letters, digits, '.', '_' and '-'")]
    Id(String),
    /// The name of a commit.
    #[error("{0:?} is no commit: 40 or 64 hexadecimal digits are expected")]
    Commit(String),
    /// A path.
    #[error("the path {path:?} {why}")]
    Path {
        /// The path, cut to a length that fits a message.
        path: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The number of files.
    #[error("{0} files are listed, more than the {FILES_LIMIT} that a model may have")]
    TooMany(usize),
    /// A size.
    #[error("{path} is said to have {size} bytes, more than any file of a model")]
    TooLarge {
        /// The file.
        path: RepoPath,
        /// The size that the hub claims.
        size: u64,
    },
}

impl RepositoryId {
    /// # Errors
    /// When the text is not one or two names made of letters, digits, `.`, `_` and `-`.
    pub fn parse(text: &str) -> Result<Self, ListingError> {
        let name = |name: &str| {
            (1..=96).contains(&name.len())
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
                && !name.starts_with(['.', '-'])
                && !name.contains("..")
        };
        let names: Vec<&str> = text.split('/').collect();
        if names.len() <= 2 && names.iter().all(|part| name(part)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ListingError::Id(shorten(text)))
        }
    }

    /// The names between the slashes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Commit {
    /// # Errors
    /// When the text is not 40 or 64 hexadecimal digits. Capital letters become small ones.
    pub fn parse(text: &str) -> Result<Self, ListingError> {
        if matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            Err(ListingError::Commit(shorten(text)))
        }
    }

    /// The commit as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl RepoPath {
    /// # Errors
    /// When joining the path to a folder could leave that folder, or the path could not be a file's.
    pub fn parse(text: &str) -> Result<Self, ListingError> {
        let refuse = |why| {
            Err(ListingError::Path {
                path: shorten(text),
                why,
            })
        };
        if text.is_empty() {
            return refuse("is empty");
        }
        if text.len() > PATH_LIMIT {
            return refuse("is longer than 1024 bytes");
        }
        if text.starts_with('/') {
            return refuse("is absolute");
        }
        if text.contains('\\') {
            return refuse("holds a backslash");
        }
        if text.contains(char::is_control) {
            return refuse("holds a control character");
        }
        for name in text.split('/') {
            match name {
                "" => return refuse("holds an empty name"),
                "." | ".." => return refuse("holds a '.' or '..' name and could leave its folder"),
                _ if name.len() > NAME_LIMIT => {
                    return refuse("holds a name longer than 247 bytes");
                }
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    /// The path as text, names separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names between the slashes.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The last name.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

/// Reads a path and refuses what [`RepoPath::parse`] refuses, so that a manifest on a volume is trusted no more than a hub.
impl<'de> Deserialize<'de> for RepoPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for RepositoryId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Commit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RepoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FileDigest {
    /// Reads 64 digits as SHA-256 and 40 as a Git blob; anything else is no digest that could be checked.
    pub fn parse(hex: &str) -> Option<Self> {
        match hex.len() {
            64 => parse_hex(hex).map(Self::Sha256),
            40 => parse_hex(hex).map(Self::GitBlob),
            _ => None,
        }
    }
}

impl fmt::Display for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(bytes) => write!(f, "sha256:{}", Hex(bytes)),
            Self::GitBlob(bytes) => write!(f, "git-blob-sha1:{}", Hex(bytes)),
        }
    }
}

impl fmt::Debug for FileDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Bytes shown and stored as small hexadecimal digits.
#[derive(Debug, Clone, Copy)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Exactly `N` bytes from twice as many hexadecimal digits.
pub fn parse_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * N || !hex.is_ascii() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: u8| char::from(at).to_digit(16).map(|digit| digit as u8);
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

impl Snapshot {
    /// Checks a listing as a whole.
    ///
    /// # Errors
    /// When there are too many files, one twice, one that is also a folder, or one of impossible size.
    pub fn new(
        id: RepositoryId,
        commit: Commit,
        files: Vec<RemoteFile>,
    ) -> Result<Self, ListingError> {
        if files.len() > FILES_LIMIT {
            return Err(ListingError::TooMany(files.len()));
        }
        let mut paths = HashSet::with_capacity(files.len());
        for file in &files {
            if let Some(size) = file.size.filter(|size| *size > SIZE_LIMIT) {
                return Err(ListingError::TooLarge {
                    path: file.path.clone(),
                    size,
                });
            }
            if !paths.insert(file.path.as_str()) {
                return Err(ListingError::Path {
                    path: shorten(file.path.as_str()),
                    why: "is listed twice",
                });
            }
        }
        for path in &paths {
            let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
            if let Some(folder) = folders.into_iter().find(|folder| paths.contains(folder)) {
                return Err(ListingError::Path {
                    path: shorten(folder),
                    why: "is listed both as a file and as a folder",
                });
            }
        }
        Ok(Self { id, commit, files })
    }
}

/// The first 120 characters, for messages about text that may be of any length.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_paths_that_could_leave_their_folder() {
        for path in [
            "",
            "/etc/passwd",
            "..",
            "../x",
            "a/../../x",
            "a/..",
            "./x",
            "a/./b",
            "a//b",
            "a/",
            "a\\..\\b",
            "\\x",
            "C:\\x",
            "a\0b",
            "a\nb",
            "a\u{7f}",
        ] {
            assert!(RepoPath::parse(path).is_err(), "{path:?} was taken");
        }
        assert!(RepoPath::parse(&"x/".repeat(600)).is_err());
        assert!(RepoPath::parse(&"n".repeat(248)).is_err());
        for path in [
            "x",
            "a/b.gguf",
            "..x",
            "x..",
            "...",
            ".gitattributes",
            "ü/漢.json",
            "with space",
            &"n".repeat(247),
        ] {
            assert_eq!(RepoPath::parse(path).unwrap().as_str(), path);
        }
    }

    #[test]
    fn takes_the_ids_that_hubs_have() {
        for id in [
            "gpt2",
            "meta-llama/Llama-3.2-11B-Vision-Instruct",
            "a/b_c.d",
            "0x/1",
        ] {
            assert!(RepositoryId::parse(id).is_ok(), "{id}");
        }
        for id in [
            "", "/", "a/", "/b", "a/b/c", "../x", "a/..", "a b/c", "a/b?c", "a/b#c", "a/b%2f",
            "ü/b", ".x/y",
        ] {
            assert!(RepositoryId::parse(id).is_err(), "{id:?} was taken");
        }
    }

    #[test]
    fn refuses_a_listing_with_a_file_twice_or_as_a_folder() {
        let snapshot = |paths: &[&str]| {
            let files = paths
                .iter()
                .map(|path| RemoteFile {
                    path: RepoPath::parse(path).unwrap(),
                    size: Some(1),
                    digest: None,
                })
                .collect();
            Snapshot::new(
                RepositoryId::parse("a/b").unwrap(),
                Commit::parse(&"0".repeat(40)).unwrap(),
                files,
            )
        };
        assert!(snapshot(&["a", "b/a", "b/c"]).is_ok());
        assert!(
            snapshot(&["a", "a"])
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
        assert!(
            snapshot(&["a/b/c", "a"])
                .unwrap_err()
                .to_string()
                .contains("folder")
        );
    }

    #[test]
    fn reads_digests_by_their_length() {
        assert!(
            matches!(FileDigest::parse(&"aB".repeat(32)), Some(FileDigest::Sha256(bytes)) if bytes == [0xab; 32])
        );
        assert!(
            matches!(FileDigest::parse(&"01".repeat(20)), Some(FileDigest::GitBlob(bytes)) if bytes == [1; 20])
        );
        for text in ["", "ab", &"g".repeat(64), &"ü".repeat(20)] {
            assert_eq!(FileDigest::parse(text), None, "{text}");
        }
    }
}
