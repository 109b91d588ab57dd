//! What `--model` names: one GGUF file, or a folder with a manifest or without.

use std::path::{Path, PathBuf};

use super::gguf::GgufFile;
use super::hub_files::HubFiles;
use super::{LoadError, Weights};
use crate::manifest::{MANIFEST_NAME, Manifest};
use crate::pictures::Preparation;
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
    /// How the model wants its pictures; absent where it looks at none.
    pub preparation: Option<Preparation>,
}

/// An opened model whose tokenizer has not been read.
pub struct Begun {
    /// As in [`Opened`].
    pub weights: Box<dyn Weights>,
    /// Reads the tokenizer, which takes as long as reading the weights of a small model.
    pub tokenizer: Box<dyn FnOnce() -> Result<Tokenizer, LoadError> + Send>,
    /// As in [`Opened`].
    pub template: Option<TemplateText>,
    /// As in [`Opened`].
    pub main_type: String,
    /// As in [`Opened`].
    pub preparation: Option<Preparation>,
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
    let begun = begin(path)?;
    Ok(Opened {
        tokenizer: (begun.tokenizer)()?,
        weights: begun.weights,
        template: begun.template,
        main_type: begun.main_type,
        preparation: begun.preparation,
    })
}

/// The same, and leaves the tokenizer to be read.
///
/// # Errors
/// As [`open`].
pub fn begin(path: &Path) -> Result<Begun, LoadError> {
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
            .check_heads(folder)
            .map_err(|error| damaged(error.to_string())),
        None => {
            tracing::warn!(folder = %folder.display(), "the folder has no {MANIFEST_NAME}; sizes are not checked");
            Ok(())
        }
    }
}

/// Reads every byte of a folder and compares it with the manifest.
///
/// # Errors
/// When a byte differs, or there is no manifest to compare with.
pub fn verify(folder: &Path) -> Result<(), LoadError> {
    let damaged = |detail: String| LoadError::Damaged {
        path: folder.join(MANIFEST_NAME),
        detail,
    };
    let Some(stored) = Manifest::load(folder).map_err(|error| damaged(error.to_string()))? else {
        return Err(damaged(
            "it is not there, so the weights cannot be verified; fetch them, or serve without --verify-weights".into(),
        ));
    };
    let manifest = stored.manifest;
    manifest
        .check_digests(folder)
        .map_err(|error| damaged(error.to_string()))?;
    tracing::info!(
        files = manifest.files.len(),
        bytes = manifest.bytes(),
        digest = stored.digest,
        "every byte is what the manifest lists"
    );
    Ok(())
}

/// The size of the files that hold tensors, in bytes; 0 where there are none.
pub fn tensor_bytes(path: &Path) -> u64 {
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if path.is_file() {
        return size(path);
    }
    let mut total = gguf_files(path)
        .unwrap_or_default()
        .iter()
        .map(|file| size(file))
        .sum();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let path = entry.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "safetensors")
        {
            total += size(&path);
        }
    }
    total
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

fn open_gguf(path: &Path) -> Result<Begun, LoadError> {
    let mut file = GgufFile::open(path)?;
    let described = file.take_tokenizer();
    let template = match described.value("tokenizer.chat_template") {
        Some(_) => Some(TemplateText {
            text: described.text("tokenizer.chat_template")?.to_owned(),
            path: path.to_owned(),
        }),
        None => None,
    };
    Ok(Begun {
        tokenizer: Box::new(move || Tokenizer::from_gguf(&described)),
        template,
        main_type: file.main_type(),
        preparation: None,
        weights: Box::new(file),
    })
}

fn open_hub_files(folder: &Path) -> Result<Begun, LoadError> {
    let files = HubFiles::open(folder)?;
    let separate = folder.join("chat_template.jinja");
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
        // Models that look at pictures have it in a file of its own, too.
        ["tokenizer_config.json", "chat_template.json"]
            .iter()
            .map(|name| folder.join(name))
            .find_map(|path| {
                let json = std::fs::read(&path).ok()?;
                let json: serde_json::Value = serde_json::from_slice(&json).ok()?;
                let text = json.get("chat_template")?.as_str()?.to_owned();
                Some(TemplateText { text, path })
            })
    };
    let preparation = match files.sight()? {
        Some(sight) => Some(Preparation::read(
            &folder.join("preprocessor_config.json"),
            &sight,
        )?),
        None => None,
    };
    let folder = folder.to_owned();
    Ok(Begun {
        tokenizer: Box::new(move || Tokenizer::from_folder(&folder)),
        template,
        main_type: files.main_type(),
        preparation,
        weights: Box::new(files),
    })
}
