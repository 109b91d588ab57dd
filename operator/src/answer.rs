//! What the runtime's programs say in their termination messages (the contract in ARCHITECTURE.md).

use serde::{Deserialize, Serialize};

use crate::api::{Dimensions, Reason};
use crate::conditions::shortened;

/// Longest message that is taken over from a container.
const MAX_MESSAGE: usize = 2_048;

/// One answer of `resolve`, `fetch`, `verify` or a failed `serve`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome")]
pub enum Answer {
    /// The hub named a commit and its bytes.
    Resolved(Resolved),
    /// Every file is on the volume and verified.
    Fetched(Fetched),
    /// What lay on the volume already is whole.
    Verified(Verified),
    /// It did not work.
    Failed(Failure),
}

/// What the hub said about a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// Repository that answered.
    pub id: String,
    /// Commit, 40 hexadecimal digits.
    pub commit: String,
    /// Number of files.
    pub files: i64,
    /// Bytes of all files.
    pub bytes: i64,
    /// Architecture, where the hub tells it.
    pub architecture: Option<String>,
    /// Whether the runtime can run it, where the hub tells enough.
    pub supported: Option<bool>,
    /// Dimensions of the model, where the hub tells them.
    pub dimensions: Option<Dimensions>,
}

/// What lies on the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetched {
    /// Repository that answered.
    pub id: String,
    /// Commit, 40 hexadecimal digits.
    pub commit: String,
    /// Number of files.
    pub files: i64,
    /// Bytes of all files.
    pub bytes: i64,
    /// Digest of the manifest.
    pub manifest_digest: String,
}

/// What lay on the volume already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// Number of files.
    pub files: i64,
    /// Bytes of all files.
    pub bytes: i64,
    /// Digest of the manifest; none where there is none and none can be written.
    pub manifest_digest: Option<String>,
}

/// Why it did not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One word of the contract.
    pub reason: String,
    /// What was tried, on what, and what to do.
    pub message: String,
}

impl Answer {
    /// Reads a termination message. With logs as fallback the answer may be the last of several lines.
    #[must_use]
    pub fn parse(message: &str) -> Option<Self> {
        let answer = message
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line.trim()).ok())?;
        match answer {
            Self::Resolved(Resolved {
                ref commit,
                bytes,
                files,
                ..
            })
            | Self::Fetched(Fetched {
                ref commit,
                bytes,
                files,
                ..
            }) => (is_commit(commit) && bytes >= 0 && files >= 0).then_some(answer),
            Self::Verified(Verified { bytes, files, .. }) => {
                (bytes >= 0 && files >= 0).then_some(answer)
            }
            Self::Failed(_) => Some(answer),
        }
    }
}

impl Failure {
    /// Reason and message for a condition; a word that is not in the contract becomes `CrashLooping`.
    #[must_use]
    pub fn verdict(&self) -> (Reason, String) {
        let message = shortened(self.message.clone(), MAX_MESSAGE);
        let reason = Reason::from_job(&self.reason).or_else(|| Reason::from_serve(&self.reason));
        match reason {
            Some(reason) => (reason, message),
            None => (Reason::CrashLooping, format!("{}: {message}", self.reason)),
        }
    }
}

/// Whether a revision is a whole commit, which never moves.
#[must_use]
pub fn is_commit(revision: &str) -> bool {
    revision.len() == 40
        && revision
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    #[test]
    fn the_contract_s_lines_are_read() {
        let line = format!(
            r#"{{"outcome":"Resolved","id":"a/b","commit":"{COMMIT}","files":1,"bytes":98362432,"architecture":"llama","supported":true}}"#
        );
        let Some(Answer::Resolved(resolved)) = Answer::parse(&line) else {
            panic!("{line}")
        };
        assert_eq!(resolved.bytes, 98_362_432);
        let line =
            r#"{"outcome":"Failed","reason":"NotFoundOnHub","message":"m","retryAfterSeconds":30}"#;
        let Some(Answer::Failed(failure)) = Answer::parse(line) else {
            panic!("{line}")
        };
        assert_eq!(failure.verdict().0, Reason::NotFoundOnHub);
    }

    #[test]
    fn the_answer_is_found_behind_log_lines_and_nonsense_is_none() {
        let log = format!(
            "starting\n{{\"outcome\":\"Fetched\",\"id\":\"a/b\",\"commit\":\"{COMMIT}\",\"files\":1,\"bytes\":1,\"manifestDigest\":\"sha256:x\"}}\n"
        );
        assert!(matches!(Answer::parse(&log), Some(Answer::Fetched(_))));
        assert_eq!(Answer::parse("panicked at"), None);
        assert_eq!(
            Answer::parse(
                r#"{"outcome":"Resolved","id":"a/b","commit":"main","files":1,"bytes":1}"#
            ),
            None
        );
    }
}
