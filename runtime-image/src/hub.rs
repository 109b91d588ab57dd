//! A hub of models: which files a repository holds at a revision, and their bytes.
//!
//! [`source`] turns what was typed into what is meant; [`client`] speaks HTTP with limits, redirects and a token that never leaves the hub's own host;
//! [`huggingface`] knows the URLs and answers of one kind of hub; [`listing`] is what every kind gives, checked; [`choice`] picks the files that a format needs;
//! [`description`] reads what the model's own files say about it: [`dimensions`] from `config.json` or a GGUF file's first keys ([`gguf_header`]);
//! [`retry`] says how long to go on when a hub is in trouble; [`error`] says what went wrong in words for a person.
//! What never happens here: nothing is written to a disk.

pub mod choice;
pub mod client;
pub mod description;
mod dimensions;
pub mod error;
mod gguf_header;
pub mod huggingface;
pub mod listing;
pub mod retry;
pub mod source;
pub mod token;

use std::time::Duration;

pub use choice::{Choice, ChoiceError, Format};
pub use error::HubError;
pub use huggingface::HuggingFace;
pub use listing::{Commit, FileDigest, RemoteFile, RepoPath, RepositoryId, Snapshot};
pub use retry::Patience;
pub use source::{Source, SourceArgs, SourceError};
pub use token::Token;

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may stay silent before it counts as cut.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Files asked about or fetched at the same time; the real hub counts requests by address, so more would only meet its limits sooner.
pub const PARALLEL_FILES: usize = 4;
