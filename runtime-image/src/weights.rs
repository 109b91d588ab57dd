//! Files of weights: what a folder holds, what its tensors are called and how they are read.
//!
//! Tensors go by their names in GGUF files; the reader of hub files translates.
//! Files are read, not mapped: a file that changes or a disk that fails gives an error and never a signal.

use std::io;
use std::path::{Path, PathBuf};

use crate::compute::tensor::{Source, Tensor};
use crate::step::BLOCK_TOKENS;
use sight::Sight;

pub mod folder;
pub mod gguf;
pub mod hub_files;
pub mod rope;
pub mod sight;

/// Why a model cannot be loaded. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The path given by `--model` cannot be used.
    #[error("failed to open {}: {source}", path.display())]
    Open {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The folder has no model, or more than one.
    #[error("failed to find one model in {}: {detail}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is there.
        detail: String,
    },
    /// The file is damaged or no file of its kind.
    #[error("failed to read {}: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong, with numbers.
        detail: String,
    },
    /// A tensor is missing, misshapen or of a type that is not supported.
    #[error("failed to load tensor {tensor} from {}: {detail}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name in the file.
        tensor: String,
        /// What is wrong.
        detail: String,
    },
    /// The description of the model lacks something or asks for something that is not supported.
    #[error("failed to understand {}: {detail}", path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// Which key, and what is wrong.
        detail: String,
    },
    /// The architecture is not supported.
    #[error("failed to load {}: architecture {found} is not supported; supported are {known}", path.display())]
    Architecture {
        /// The file.
        path: PathBuf,
        /// What the file says.
        found: String,
        /// What works.
        known: String,
    },
    /// The configuration does not fit the model or this build.
    #[error("{0}")]
    Setup(String),
}

/// The sizes and constants of a dense decoder (Llama, Qwen).
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Layers in which text attends to text.
    pub layers: usize,
    /// Width of the state between layers.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub key_heads: usize,
    /// Width of one head.
    pub width: usize,
    /// Width inside the feed-forward layer.
    pub inner: usize,
    /// Tokens that may come next: logits in a row.
    pub vocabulary: usize,
    /// Tokens that a prompt may have, at least `vocabulary`: rows of the embedding.
    pub inputs: usize,
    /// Tokens that the model was made for.
    pub context_length: usize,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// Rotation per position of each pair, in radians; at most `width / 2` pairs, the others are not rotated.
    pub frequencies: Vec<f32>,
    /// Cosines and sines are multiplied by it; 1 but for YaRN.
    pub rotation_scale: f32,
    /// Whether pairs are neighbours (GGUF llama files) or half a head apart (hub files, other GGUF files).
    pub neighbours: bool,
}

impl Shape {
    /// Numbers of keys and values in one block of the arena.
    #[must_use]
    pub fn block_numbers(&self) -> usize {
        self.layers * 2 * self.key_heads * self.width * BLOCK_TOKENS
    }
}

/// An opened model: its description and its tensors.
pub trait Weights: Send {
    /// The file that errors name.
    fn path(&self) -> &Path;

    /// The architecture, as the file names it.
    fn architecture(&self) -> &str;

    /// The architectures that models can be made of, in the spelling of this kind of file.
    fn known_architectures(&self) -> &'static [&'static str];

    /// The sizes of the model.
    ///
    /// # Errors
    /// When a size is missing, out of bounds or contradicts another.
    fn shape(&self) -> Result<Shape, LoadError>;

    /// How it looks at pictures; absent for models that read text only.
    ///
    /// # Errors
    /// When a size is missing, out of bounds or contradicts another.
    fn sight(&self) -> Result<Option<Sight>, LoadError> {
        Ok(None)
    }

    /// Bytes that the weights take when they are packed for this processor.
    fn packed_bytes(&self) -> u64;

    /// Whether there is a tensor of this name.
    fn has(&self, name: &str) -> bool;

    /// Reads a matrix of this shape.
    ///
    /// # Errors
    /// When the tensor is missing, misshapen, of a type that is not read, or unreadable.
    fn tensor(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, LoadError>;

    /// Where a matrix of this shape lies, for whoever reads it by himself; none where it has to be read here.
    ///
    /// # Errors
    /// When the tensor is missing, misshapen or of a type that is not read.
    fn source(
        &self,
        _name: &str,
        _rows: usize,
        _columns: usize,
    ) -> Result<Option<Source>, LoadError> {
        Ok(None)
    }

    /// Reads a vector of this length.
    ///
    /// # Errors
    /// When the tensor is missing, misshapen or unreadable.
    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError>;

    /// Reads a vector if there is one of this name.
    ///
    /// # Errors
    /// When the tensor is misshapen or unreadable.
    fn optional_vector(
        &mut self,
        name: &str,
        length: usize,
    ) -> Result<Option<Vec<f32>>, LoadError> {
        if self.has(name) {
            self.vector(name, length).map(Some)
        } else {
            Ok(None)
        }
    }
}

/// The widest head that is read.
const MOST_WIDTH: usize = 1 << 10;

/// Checks the width of a head that came from a file before frequencies are computed for it.
pub(crate) fn check_width(path: &Path, width: usize) -> Result<(), LoadError> {
    if (1..=MOST_WIDTH).contains(&width) {
        return Ok(());
    }
    Err(LoadError::Description {
        path: path.to_owned(),
        detail: format!("width of a head is {width}, expected 1 to {MOST_WIDTH}"),
    })
}

/// Checks a shape that came from a file before anything is allocated by it.
pub(crate) fn check_shape(path: &Path, shape: &Shape) -> Result<(), LoadError> {
    let fail = |detail: String| {
        Err(LoadError::Description {
            path: path.to_owned(),
            detail,
        })
    };
    for (name, value, most) in [
        ("number of layers", shape.layers, 1 << 10),
        ("hidden size", shape.hidden, 1 << 16),
        ("number of heads", shape.heads, 1 << 10),
        ("number of key heads", shape.key_heads, 1 << 10),
        ("inner size", shape.inner, 1 << 18),
        ("vocabulary", shape.vocabulary, 1 << 22),
        ("context length", shape.context_length, 1 << 24),
    ] {
        if value == 0 || value > most {
            return fail(format!("{name} is {value}, expected 1 to {most}"));
        }
    }
    check_width(path, shape.width)?;
    if shape.inputs < shape.vocabulary || shape.inputs > shape.vocabulary + (1 << 10) {
        return fail(format!(
            "an embedding of {} rows for a vocabulary of {}",
            shape.inputs, shape.vocabulary
        ));
    }
    if !shape.heads.is_multiple_of(shape.key_heads) {
        return fail(format!(
            "{} heads cannot share {} key heads",
            shape.heads, shape.key_heads
        ));
    }
    if shape.frequencies.is_empty() || shape.frequencies.len() * 2 > shape.width {
        return fail(format!(
            "{} rotated pairs in heads of width {}",
            shape.frequencies.len(),
            shape.width
        ));
    }
    Ok(())
}
