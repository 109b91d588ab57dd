//! What `--model` names: one GGUF file, or a folder with a manifest or without.

use std::path::{Path, PathBuf};

use super::gguf::GgufFile;
use super::hub_files::HubFiles;
use super::{LoadError, Weights};
use crate::manifest::{MANIFEST_NAME, Manifest};
use crate::tokenizer::Tokenizer;

/// An opened model with everything that belongs to it.
pub struct Opened {
    /// The tensors.
    pub weights: Box<dyn Weights>,
    /// Text to tokens and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt; absent for models that are not made for chat.
    pub template: Option<TemplateText>,
    /// What most of the weights are stored as.
    pub main_type: String,
}

/// A chat template as it stands beside the weights.
pub struct TemplateText {
    /// Jinja, unchecked.
    pub text: String,
    /// The file that errors name.
    pub path: PathBuf,
}

/// Opens a model and checks that its files are whole.
///
/// # Errors
/// When there is no model, more than one, or its files are damaged.
pub fn open(path: &Path) -> Result<Opened, LoadError> {
    let metadata = std::fs::metadata(path).map_err(|source| LoadError::Open {
        path: path.to_owned(),
        source,
    })?;
    if metadata.is_file() {
        return open_gguf(path);
    }
    check_manifest(path)?;
    let ggufs = gguf_files(path)?;
    match ggufs.as_slice() {
        [file] => open_gguf(file),
        [] if path.join("config.json").is_file() => open_hub_files(path),
        [] => {
            let detail = "it has neither a .gguf file nor a config.json".to_owned();
            Err(LoadError::Folder {
                path: path.to_owned(),
                detail,
            })
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            let detail = format!(
                "it has {} GGUF files, name one of them: {}",
                several.len(),
                names.join(", ")
            );
            Err(LoadError::Folder {
                path: path.to_owned(),
                detail,
            })
        }
    }
}

/// Compares the files with the manifest, where there is one.
fn check_manifest(folder: &Path) -> Result<(), LoadError> {
    let damaged = |detail: String| LoadError::Damaged {
        path: folder.join(MANIFEST_NAME),
        detail,
    };
    match Manifest::load(folder).map_err(|error| damaged(error.to_string()))? {
        Some(stored) => stored
            .manifest
            .check_sizes(folder)
            .map_err(|error| damaged(error.to_string())),
        None => {
            tracing::warn!(folder = %folder.display(), "the folder has no {MANIFEST_NAME}; sizes are not checked");
            Ok(())
        }
    }
}

/// The GGUF files of a folder and its subfolders, two levels deep as repositories have them.
fn gguf_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let mut files = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let open = |source| LoadError::Open {
            path: folder.clone(),
            source,
        };
        for entry in std::fs::read_dir(&folder).map_err(open)? {
            let path = entry.map_err(open)?.path();
            if path.is_dir() && depth < 2 {
                folders.push((path, depth + 1));
            } else if path
                .extension()
                .is_some_and(|extension| extension == "gguf")
            {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn open_gguf(path: &Path) -> Result<Opened, LoadError> {
    let file = GgufFile::open(path)?;
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let template = match file.value("tokenizer.chat_template") {
        Some(_) => Some(TemplateText {
            text: file.text("tokenizer.chat_template")?.to_owned(),
            path: path.to_owned(),
        }),
        None => None,
    };
    Ok(Opened {
        tokenizer,
        template,
        main_type: file.main_type(),
        weights: Box::new(file),
    })
}

fn open_hub_files(folder: &Path) -> Result<Opened, LoadError> {
    let files = HubFiles::open(folder)?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    let separate = folder.join("chat_template.jinja");
    let config = folder.join("tokenizer_config.json");
    let template = if separate.is_file() {
        let text = std::fs::read_to_string(&separate).map_err(|source| LoadError::Open {
            path: separate.clone(),
            source,
        })?;
        Some(TemplateText {
            text,
            path: separate,
        })
    } else {
        std::fs::read(&config)
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
            .and_then(|json| Some(json.get("chat_template")?.as_str()?.to_owned()))
            .map(|text| TemplateText { text, path: config })
    };
    Ok(Opened {
        tokenizer,
        template,
        main_type: files.main_type(),
        weights: Box::new(files),
    })
}
