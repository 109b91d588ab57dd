//! How `resolve`, `fetch` and `verify` say how they ended: one line of JSON, small enough for a container's termination message.
//!
//! The line goes to standard output and to the result file, nothing else ever goes to standard output.
//! It never holds a credential: messages are made from names, addresses without query, and numbers.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

/// The most bytes that the kubelet keeps of a termination message.
pub const ANSWER_LIMIT: usize = 4096;

/// Where the kubelet looks for a termination message unless the pod says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome")]
pub enum Answer {
    /// The hub said what the model is.
    Resolved(Resolved),
    /// Every file is in its place and checked.
    Fetched(Fetched),
    /// Every byte of a folder is what its manifest lists.
    Verified(Verified),
    /// The command gave up.
    Failed(Failure),
}

/// What a model is on its hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resolved {
    /// The repository that answered: the id asked for, or one of its aliases.
    pub id: String,
    /// The commit that the revision means now.
    pub commit: String,
    /// How many files were chosen.
    pub files: usize,
    /// Their size together.
    pub bytes: u64,
    /// The architecture's name in the model's own files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// Whether `serve` runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub supported: Option<bool>,
    /// How large its parts are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<Dimensions>,
}

/// How large a model's parts are: what a plan of its memory needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dimensions {
    /// Layers in which text attends to text.
    pub layers: u64,
    /// Layers in which text attends to pictures; 0 for models that read text only.
    pub cross_attention_layers: u64,
    /// Heads of keys and values in each layer.
    pub key_value_heads: u64,
    /// Numbers in one head.
    pub head_size: u64,
    /// Numbers in the state between layers.
    pub hidden_size: u64,
    /// Tokens known.
    pub vocabulary_size: u64,
    /// Tokens that the model was made for.
    pub context_length: u64,
    /// Keys of one picture in cross attention; 0 where there is none.
    pub image_tokens: u64,
    /// What `serve` allocates, where it runs the model and its description tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

/// What `serve` allocates for a model on a processor, in parts from which the sum for any context, any number of sequences
/// and of pictures is made.
///
/// A sequence of `n` tokens with `p` pictures takes `ceil(n / block_tokens) + 1 + p * image_blocks` blocks of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Bytes of the packed weights.
    pub weights_bytes: u64,
    /// Tokens of one block of the arena.
    pub block_tokens: u64,
    /// Numbers of keys and values in one block.
    pub block_numbers: u64,
    /// Blocks of one picture with as many tiles as there may be; 0 for models that read text only.
    pub image_blocks: u64,
    /// Rows of one step; there are at least as many as sequences.
    pub step_rows: u64,
    /// Bytes of buffers for one row.
    pub row_bytes: u64,
    /// Rows whose logits can be wanted beside one for each sequence.
    pub extra_logits_rows: u64,
    /// Bytes of buffers for one of them.
    pub logits_row_bytes: u64,
    /// Bytes of buffers for the picture under way; 0 for models that read text only.
    pub image_bytes: u64,
}

impl Memory {
    /// Bytes of all buffers where so many sequences run at once.
    #[must_use]
    pub fn buffers(&self, sequences: u64) -> u64 {
        self.step_rows.max(sequences) * self.row_bytes
            + (sequences + self.extra_logits_rows) * self.logits_row_bytes
            + self.image_bytes
    }
}

/// What a completed folder of weights holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetched {
    /// The repository that the files came from.
    pub id: String,
    /// The commit that they belong to.
    pub commit: String,
    /// How many files the manifest lists.
    pub files: usize,
    /// Their size together.
    pub bytes: u64,
    /// `sha256:` and the digest of the manifest's bytes.
    pub manifest_digest: String,
}

/// What lies in a folder of weights that was there already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verified {
    /// How many files there are.
    pub files: usize,
    /// Their size together.
    pub bytes: u64,
    /// `sha256:` and the digest of the manifest's bytes; absent where none is there and none can be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifest_digest: Option<String>,
}

/// Why a command gave up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// One stable word for conditions, events and metrics.
    pub reason: Reason,
    /// What was tried, on what, and what to do.
    pub message: String,
    /// How long the hub asked to be left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
}

/// The stable words for why a command gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub enum Reason {
    /// No such repository, revision or file.
    NotFoundOnHub,
    /// The hub wants a token and got none, or refused the one it got.
    CredentialsMissing,
    /// A person must accept the model's licence first.
    LicenceNotAccepted,
    /// Too many requests from this address.
    HubRateLimited,
    /// No answer, a cut answer, or a server error.
    HubUnreachable,
    /// The hub's bytes are not the bytes that its listing promises.
    DigestMismatch,
    /// The volume has no room.
    StorageFull,
    /// Nothing in `serve` runs such files.
    RuntimeUnsupported,
    /// What was asked for makes no sense, or the hub's listing does not.
    InvalidSource,
    /// The model's files are there and cannot be loaded as asked.
    LoadFailed,
    /// A port, a thread or a signal handler cannot be had.
    StartFailed,
    /// The thread that owns the model died.
    EngineFailed,
    /// The device failed while it computed.
    DeviceLost,
}

impl Failure {
    /// A failure without advice on when to come back.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            retry_after_seconds: None,
        }
    }

    /// The same failure with the pause that the hub asked for, rounded up to whole seconds.
    #[must_use]
    pub fn after(mut self, pause: Option<Duration>) -> Self {
        self.retry_after_seconds = pause.map(|pause| {
            pause
                .as_millis()
                .div_ceil(1000)
                .try_into()
                .unwrap_or(u64::MAX)
        });
        self
    }
}

impl Answer {
    /// The exit code that belongs to this answer.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Resolved(_) | Self::Fetched(_) | Self::Verified(_) => ExitCode::SUCCESS,
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }

    /// The answer as one line of at most [`ANSWER_LIMIT`] bytes; too long a message is cut between characters and ends with `…`.
    pub fn line(&self) -> String {
        let json = |answer: &Self| {
            serde_json::to_string(answer).expect("an answer holds nothing but text and numbers")
        };
        let line = json(self);
        let Self::Failed(failure) = self else {
            return line;
        };
        if line.len() <= ANSWER_LIMIT {
            return line;
        }
        let mut shorter = Failure {
            message: "…".to_owned(),
            ..failure.clone()
        };
        // The mark that ends the shortened message is in the line already.
        let room = ANSWER_LIMIT + '…'.len_utf8() - json(&Self::Failed(shorter.clone())).len();
        shorter.message = shortened(&failure.message, room);
        json(&Self::Failed(shorter))
    }

    /// Writes the answer to standard output and to the result file.
    ///
    /// # Errors
    /// When a result file that was asked for cannot be written, or standard output is closed.
    pub fn deliver(&self, result_file: Option<&Path>) -> Result<(), DeliverError> {
        let line = self.line();
        match result_file {
            Some(path) => {
                write_result(path, &line, true).map_err(|source| DeliverError::ResultFile {
                    path: path.to_path_buf(),
                    source,
                })?;
            }
            // Outside a pod there is no such file, and nobody asked for one.
            None => drop(write_result(Path::new(TERMINATION_LOG), &line, false)),
        }
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}")
            .and_then(|()| stdout.flush())
            .map_err(DeliverError::StandardOutput)
    }
}

/// The answer could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// The file named by `--result-file` took no answer.
    #[error("failed to write the answer to {}", path.display())]
    ResultFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Standard output took no answer.
    #[error("failed to write the answer to standard output")]
    StandardOutput(#[source] io::Error),
}

fn write_result(path: &Path, line: &str, create: bool) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .truncate(true)
        .create(create)
        .open(path)?
        .write_all(line.as_bytes())
}

/// A text of at most so many bytes inside a JSON string: cut between characters, and then ended by `…`.
pub(crate) fn shortened(text: &str, bytes: usize) -> String {
    if text.chars().map(json_width).sum::<usize>() <= bytes {
        return text.to_owned();
    }
    let mut room = bytes.saturating_sub('…'.len_utf8());
    let kept = text.chars().take_while(|character| {
        // Escaped characters take more room in the line than in the message.
        let width = json_width(*character);
        let fits = width <= room;
        room = room.saturating_sub(width);
        fits
    });
    kept.chain(['…']).collect()
}

/// Bytes that a character takes inside a JSON string.
fn json_width(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_a_long_message_between_characters() {
        for unit in ["a", "ü", "漢", "\u{1F600}", "\"", "\n", "\u{1}"] {
            for length in [10, 4000, 4096, 5000, 100_000] {
                let message = unit.repeat(length / unit.len());
                let line =
                    Answer::Failed(Failure::new(Reason::HubUnreachable, message.clone())).line();
                assert!(
                    line.len() <= ANSWER_LIMIT,
                    "{unit:?} {length}: {}",
                    line.len()
                );
                let back: serde_json::Value = serde_json::from_str(&line).unwrap();
                let kept = back["message"].as_str().unwrap();
                assert!(
                    message.starts_with(kept.trim_end_matches('…')),
                    "{unit:?} {length}"
                );
                if length >= 4096 {
                    assert!(
                        kept.ends_with('…') && line.len() > ANSWER_LIMIT - 8,
                        "{unit:?} {length}: {}",
                        line.len()
                    );
                }
            }
        }
    }

    #[test]
    fn leaves_out_what_the_hub_did_not_tell() {
        let answer = Answer::Resolved(Resolved {
            id: "a/b".into(),
            commit: "c".into(),
            files: 1,
            bytes: 2,
            architecture: None,
            supported: None,
            dimensions: None,
        });
        assert_eq!(
            answer.line(),
            r#"{"outcome":"Resolved","id":"a/b","commit":"c","files":1,"bytes":2}"#
        );
    }

    #[test]
    fn dimensions_have_the_contract_s_names_and_the_largest_answer_fits() {
        let dimensions = Dimensions {
            layers: u64::MAX,
            cross_attention_layers: u64::MAX,
            key_value_heads: u64::MAX,
            head_size: u64::MAX,
            hidden_size: u64::MAX,
            vocabulary_size: u64::MAX,
            context_length: u64::MAX,
            image_tokens: u64::MAX,
            memory: Some(Memory {
                weights_bytes: u64::MAX,
                block_tokens: u64::MAX,
                block_numbers: u64::MAX,
                image_blocks: u64::MAX,
                step_rows: u64::MAX,
                row_bytes: u64::MAX,
                extra_logits_rows: u64::MAX,
                logits_row_bytes: u64::MAX,
                image_bytes: u64::MAX,
            }),
        };
        let line = Answer::Resolved(Resolved {
            id: "a".repeat(200),
            commit: "c".repeat(40),
            files: usize::MAX,
            bytes: u64::MAX,
            architecture: Some("x".repeat(128)),
            supported: Some(false),
            dimensions: Some(dimensions),
        })
        .line();
        assert!(line.len() < ANSWER_LIMIT, "{}", line.len());
        let back: serde_json::Value = serde_json::from_str(&line).unwrap();
        let names = |at: &str| {
            let fields = back
                .pointer(at)
                .and_then(|value| value.as_object())
                .unwrap();
            let mut names: Vec<String> = fields.keys().cloned().collect();
            names.sort();
            names
        };
        assert_eq!(
            names("/dimensions"),
            [
                "contextLength",
                "crossAttentionLayers",
                "headSize",
                "hiddenSize",
                "imageTokens",
                "keyValueHeads",
                "layers",
                "memory",
                "vocabularySize",
            ]
        );
        assert_eq!(
            names("/dimensions/memory"),
            [
                "blockNumbers",
                "blockTokens",
                "extraLogitsRows",
                "imageBlocks",
                "imageBytes",
                "logitsRowBytes",
                "rowBytes",
                "stepRows",
                "weightsBytes",
            ]
        );
    }

    #[test]
    fn rounds_a_pause_up_to_whole_seconds() {
        let failure =
            Failure::new(Reason::HubRateLimited, "m").after(Some(Duration::from_millis(1001)));
        assert_eq!(failure.retry_after_seconds, Some(2));
    }
}
