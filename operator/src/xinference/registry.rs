//! Xinference's registry file as it is written: a list of families, each with specs, each with one source a hub.
//!
//! Read leniently: one bad entry, spec or source never costs the others. What a field means for us is decided in `card`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::{Ability, ModelFormat};

/// One model: an entry of `llm_family.json`, or the file of a custom model.
#[derive(Deserialize, Debug)]
pub struct Family {
    /// Name for launching.
    pub model_name: String,
    /// Text for lists.
    pub model_description: Option<String>,
    /// Longest context in tokens.
    pub context_length: Option<i64>,
    /// Languages.
    #[serde(default)]
    pub model_lang: Vec<String>,
    /// What the model can do.
    #[serde(default)]
    pub model_ability: Vec<Ability>,
    /// Architectures as in `config.json`.
    pub architectures: Option<Vec<String>>,
    /// One per format and size; each is read by itself.
    pub model_specs: Vec<Value>,
    /// Jinja, or the name of a family whose template is meant.
    pub chat_template: Option<String>,
    /// Texts that end an answer.
    pub stop: Option<Vec<String>>,
    /// Token ids that end an answer.
    pub stop_token_ids: Option<Vec<i64>>,
}

/// One format and size of a model.
#[derive(Deserialize, Debug)]
pub struct Spec {
    /// How the weights are stored.
    pub model_format: ModelFormat,
    /// A number, or text such as `1_5`.
    pub model_size_in_billions: Value,
    /// Hub → source; each is read by itself. Custom models write one source into the spec instead.
    pub model_src: Option<BTreeMap<String, Value>>,
    /// Hub of the source that stands in the spec.
    pub model_hub: Option<String>,
    /// A path on a worker, in custom models.
    pub model_uri: Option<String>,
}

/// Where one hub keeps the weights.
#[derive(Deserialize, Debug)]
pub struct Source {
    /// Repository; `{quantization}` may stand in it.
    pub model_id: String,
    /// Quantizations, the default first.
    pub quantizations: Option<Vec<String>>,
    /// The one quantization, in custom models.
    pub quantization: Option<String>,
    /// Branch, tag or commit.
    pub model_revision: Option<String>,
    /// GGUF: file of a quantization that is one file.
    pub model_file_name_template: Option<String>,
    /// GGUF: file of a part.
    pub model_file_name_split_template: Option<String>,
    /// GGUF: the parts of quantizations that are several files.
    pub quantization_parts: Option<BTreeMap<String, Vec<String>>>,
    /// GGUF: files of the part that sees, the default first.
    pub multimodal_projectors: Option<Vec<String>>,
}

/// Fields that a card has no place for, on purpose; docs/from-xinference.md says why for each.
const DROPPED: [&str; 22] = [
    "version",
    "updated_at",
    "featured",
    "is_builtin",
    "is_built_in",
    "model_family",
    "model_type",
    "prompt_style",
    "virtualenv",
    "cache_config",
    "tool_parser",
    "reasoning_start_tag",
    "reasoning_end_tag",
    "activated_size_in_billions",
    "draft_model_id",
    "draft_quantizations",
    "draft_model_revision",
    "draft_model_file_name_template",
    // Beside `model_src` these only repeat what the sources say.
    "quantizations",
    "quantization",
    "model_id",
    "model_revision",
];

const FAMILY: [&str; 10] = [
    "model_name",
    "model_description",
    "context_length",
    "model_lang",
    "model_ability",
    "architectures",
    "model_specs",
    "chat_template",
    "stop",
    "stop_token_ids",
];

const SPEC: [&str; 5] = [
    "model_format",
    "model_size_in_billions",
    "model_src",
    "model_hub",
    "model_uri",
];

const SOURCE: [&str; 8] = [
    "model_id",
    "quantizations",
    "quantization",
    "model_revision",
    "model_file_name_template",
    "model_file_name_split_template",
    "quantization_parts",
    "multimodal_projectors",
];

/// What a part of the registry is read as.
pub trait Part: DeserializeOwned {
    /// Whether the field is read, or left out on purpose.
    fn knows(field: &str) -> bool;
}

impl Part for Family {
    fn knows(field: &str) -> bool {
        FAMILY.contains(&field) || DROPPED.contains(&field)
    }
}

impl Part for Spec {
    fn knows(field: &str) -> bool {
        SPEC.contains(&field) || SOURCE.contains(&field) || DROPPED.contains(&field)
    }
}

impl Part for Source {
    fn knows(field: &str) -> bool {
        SOURCE.contains(&field) || SPEC.contains(&field) || DROPPED.contains(&field)
    }
}

/// Reads one part, and names the fields that nobody here has heard of.
///
/// # Errors
///
/// When a field is missing or has a value that cannot be used; the text says which.
pub fn read<P: Part>(value: &Value) -> Result<(P, Vec<String>), String> {
    let unheard = value
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys())
        .filter(|field| !P::knows(field))
        .cloned()
        .collect();
    match serde_path_to_error::deserialize(value) {
        Ok(part) => Ok((part, unheard)),
        Err(error) => Err(match error.path().to_string().as_str() {
            "." => error.inner().to_string(),
            path => format!("{path}: {}", error.inner()),
        }),
    }
}
