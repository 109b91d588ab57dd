//! The way from Xinference: its registry of models becomes ModelCards, a launch command becomes a ModelDeployment.
//!
//! Nothing is dropped silently: what has no counterpart here is said on standard error or as a comment of the manifest.
//! Source of every fact about Xinference: its release 3.2.1, `model/llm/llm_family.{json,py}` and `deploy/cmdline.py`.

mod card;
mod files;
pub mod launch;
mod manifest;
mod no_counterpart;
pub mod registry;
mod values;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use crate::api::ModelCard;

pub use manifest::from_launch;

/// The largest registry that is read: twelve times the one of release 3.2.1.
const MAX_REGISTRY: u64 = 16 * 1024 * 1024;

/// What a registry became.
#[derive(Debug, Default)]
pub struct Import {
    /// One card an entry, as the CRD allows it.
    pub cards: Vec<ModelCard>,
    /// Entries that became no card, each with the reason.
    pub refused: Vec<String>,
    /// Parts of converted entries that a card cannot say, each with the reason.
    pub notes: Vec<String>,
}

/// Why a registry cannot be used at all.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Something is wrong with a file or a stream.
    #[error("failed to {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too large.
    #[error(
        "{0} has more than 16 MiB, which no registry of models has; give Xinference's llm_family.json"
    )]
    TooLarge(PathBuf),
    /// No JSON.
    #[error("failed to read the registry as JSON")]
    Json(#[from] serde_json::Error),
    /// Another kind of JSON.
    #[error(
        "the file is neither a list of models nor one model; give Xinference's llm_family.json or the file of a custom LLM"
    )]
    Shape,
    /// Nothing in it can be a card.
    #[error("none of the {} entries is an LLM that can become a card: {}", .0.len(), .0.join("; "))]
    NothingConverts(Vec<String>),
    /// The output cannot be written.
    #[error("failed to write the cards")]
    Write(#[from] std::io::Error),
    /// A card cannot be written as YAML.
    #[error("failed to write a card as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// `card import`: reads a registry, writes the cards (one file each below `folder`, else one stream) and reports what became of every entry.
///
/// # Errors
///
/// When the file is unusable or the output cannot be written. An entry that cannot be converted is no error.
pub fn import_file(
    file: &Path,
    folder: Option<&Path>,
    output: &mut impl Write,
    report: &mut impl Write,
) -> Result<(), ImportError> {
    let import = import(&read(file)?)?;
    for card in &import.cards {
        let text = serde_saphyr::to_string(card)?;
        match (folder, &card.metadata.name) {
            (Some(folder), Some(name)) => {
                let at = |what, path: &Path| {
                    let path = path.to_owned();
                    move |source| ImportError::File { what, path, source }
                };
                std::fs::create_dir_all(folder).map_err(at("create the folder", folder))?;
                let path = folder.join(format!("{name}.yaml"));
                std::fs::write(&path, text).map_err(at("write", &path))?;
            }
            _ => write!(output, "---\n{text}")?,
        }
    }
    for note in &import.notes {
        writeln!(report, "left out: {note}")?;
    }
    for reason in &import.refused {
        writeln!(report, "not converted: {reason}")?;
    }
    let (cards, refused) = (import.cards.len(), import.refused.len());
    writeln!(report, "{cards} of {} models became cards", cards + refused)?;
    writeln!(report, "figure cards_imported {cards} cards")?;
    writeln!(report, "figure cards_unconvertible {refused} cards")?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, ImportError> {
    let failed = |source| ImportError::File {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(failed)?
        .take(MAX_REGISTRY + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_REGISTRY {
        return Err(ImportError::TooLarge(path.to_owned()));
    }
    Ok(bytes)
}

/// Turns a registry into cards.
///
/// # Errors
///
/// When nothing of it can be used.
pub fn import(registry: &[u8]) -> Result<Import, ImportError> {
    let entries = match serde_json::from_slice(registry)? {
        Value::Array(entries) if !entries.is_empty() => entries,
        model @ Value::Object(_) => vec![model],
        _ => return Err(ImportError::Shape),
    };
    let converter = card::Converter::new();
    let mut import = Import::default();
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (at, entry) in entries.iter().enumerate() {
        let called = match entry["model_name"].as_str() {
            Some(name) => name.to_owned(),
            None => format!("entry {}", at + 1),
        };
        match converter.convert(entry) {
            Err(reason) => import.refused.push(format!("{called}: {reason}")),
            Ok(converted) => {
                let name = converted.card.metadata.name.clone().unwrap_or_default();
                if let Some(other) = taken.get(&name) {
                    import.refused.push(format!(
                        "{called}: its card would be {name}, which the card of {other} is called already; rename one of the models"
                    ));
                    continue;
                }
                let notes = converted.notes.into_iter();
                import
                    .notes
                    .extend(notes.map(|note| format!("{called}: {note}")));
                import.cards.push(converted.card);
                taken.insert(name, called);
            }
        }
    }
    if import.cards.is_empty() {
        return Err(ImportError::NothingConverts(import.refused));
    }
    Ok(import)
}
