//! ModelCard: what a model is, and where its weights are published.

#![expect(
    unreachable_pub,
    reason = "KubeSchema expands to a public type inside a function"
)]

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One entry of the catalogue of models, as a platform team publishes it.
///
/// A card says what a model can do and which variants exist (format, size, quantization) on which hubs.
/// It starts nothing by itself; ModelDeployments refer to it by name.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "chandler.dev",
    version = "v1alpha1",
    kind = "ModelCard",
    plural = "modelcards",
    category = "chandler",
    derive = "PartialEq",
    doc = "A ModelCard is one entry of the catalogue of models: what a model is, which variants exist, and where their weights are published.",
    printcolumn(
        name = "Context",
        type_ = "integer",
        json_path = ".spec.contextLength",
        description = "Longest context, in tokens"
    ),
    printcolumn(
        name = "Abilities",
        type_ = "string",
        json_path = ".spec.abilities",
        description = "What the model can do"
    ),
    printcolumn(
        name = "Sizes",
        type_ = "string",
        json_path = ".spec.variants[*].sizeInBillions",
        description = "Billions of parameters of the variants"
    ),
    printcolumn(
        name = "Licence",
        type_ = "string",
        json_path = ".spec.license.name",
        description = "Licence of the weights"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ModelCardSpec {
    /// What the model is, in a few sentences for people. Default: none.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,

    /// Longest context that the model was made for, in tokens. Default: what the weights say.
    #[schemars(range(min = 1, max = 16_777_216))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_length: Option<i64>,

    /// Languages that the model was made for, as BCP 47 tags such as `en`.
    #[schemars(length(max = 256), inner(length(min = 1, max = 35)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub languages: Vec<String>,

    /// What the model can do.
    #[schemars(length(max = 16))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub abilities: Vec<Ability>,

    /// Architecture names as in the weights' `config.json`, such as `LlamaForCausalLM`.
    #[schemars(length(max = 16), inner(length(min = 1, max = 128)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,

    /// Licence of the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<License>,

    /// How a chat becomes a prompt and where an answer ends. Default: what the weights bring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<Chat>,

    /// Values that a ModelDeployment takes where it gives none itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Defaults>,

    /// The forms in which the weights exist. A ModelDeployment picks one.
    #[schemars(length(min = 1, max = 64))]
    pub variants: Vec<Variant>,
}

/// What a model can do.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words of the API say it")]
pub enum Ability {
    Chat,
    Generate,
    Vision,
    Tools,
    Reasoning,
    Hybrid,
    Embed,
    Rerank,
    Audio,
    Omni,
}

/// Licence of a model's weights.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct License {
    /// Short name of the licence, such as `apache-2.0` or `llama3.2`.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,

    /// Where the licence can be read. Default: none.
    #[schemars(length(max = 2048))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,

    /// Whether the hub hands out the weights only to accounts that accepted the licence. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gated: bool,
}

/// How a chat becomes a prompt and where an answer ends.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Chat {
    /// Chat template in Jinja. Default: what the weights bring.
    #[schemars(length(max = 65_536))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,

    /// Texts that end an answer, each of at most 1,024 bytes.
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    #[x_kube(validation = Rule::new("self.all(text, size(bytes(text)) <= 1024)").message("a stop text has at most 1024 bytes"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,

    /// Token ids that end an answer.
    #[schemars(length(max = 64), inner(range(min = 0, max = 4_294_967_295_i64)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop_token_ids: Vec<i64>,
}

/// Values that a ModelDeployment takes where it gives none itself.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Defaults {
    /// Sequences that are worked on at the same time. Default: the runtime's.
    #[schemars(range(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<i32>,

    /// Pictures in one prompt. Default: the runtime's.
    #[schemars(range(min = 0, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_per_prompt: Option<i32>,
}

/// One form of the weights: a format and a size, in one or more quantizations.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Variant {
    /// How the weights are stored.
    pub format: ModelFormat,

    /// Billions of parameters as text, such as `11`, `1.5` or `0.135`; `1_5` is read as `1.5`.
    #[schemars(length(max = 13), regex(pattern = r"^[0-9]{1,6}([._][0-9]{1,6})?$"))]
    pub size_in_billions: String,

    /// Quantizations that exist, the default first. Default: `none`.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 64)))]
    #[serde(default = "unquantized", skip_serializing_if = "is_unquantized")]
    pub quantizations: Vec<String>,

    /// Where the weights are published, the preferred hub first.
    #[schemars(length(min = 1, max = 8))]
    pub sources: Vec<Source>,
}

fn unquantized() -> Vec<String> {
    vec!["none".to_owned()]
}

/// What is left out when written stands in no schema either: a default inside a list makes `kubectl apply` see a change each time.
fn is_unquantized(quantizations: &[String]) -> bool {
    quantizations == ["none"]
}

/// How weights are stored.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words of the API say it")]
pub enum ModelFormat {
    Pytorch,
    Ggufv2,
    Gptq,
    Awq,
    Fp8,
    Fp4,
    Bnb,
    Mlx,
}

impl ModelFormat {
    /// The word in the API and on the runtime's command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pytorch => "pytorch",
            Self::Ggufv2 => "ggufv2",
            Self::Gptq => "gptq",
            Self::Awq => "awq",
            Self::Fp8 => "fp8",
            Self::Fp4 => "fp4",
            Self::Bnb => "bnb",
            Self::Mlx => "mlx",
        }
    }
}

/// A place that publishes models.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the words of the API say it")]
pub enum Hub {
    Huggingface,
    Modelscope,
    #[serde(rename = "openmind_hub")]
    OpenmindHub,
    Csghub,
}

impl Hub {
    /// Every hub that a card may name.
    pub const ALL: [Self; 4] = [
        Self::Huggingface,
        Self::Modelscope,
        Self::OpenmindHub,
        Self::Csghub,
    ];

    /// The word in the API and on the runtime's command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Huggingface => "huggingface",
            Self::Modelscope => "modelscope",
            Self::OpenmindHub => "openmind_hub",
            Self::Csghub => "csghub",
        }
    }
}

/// Where one hub keeps a variant.
///
/// `{quantization}` in `id`, `aliases` or `files` stands for the chosen quantization.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The hub.
    pub hub: Hub,

    /// Repository on the hub, such as `meta-llama/Llama-3.2-11B-Vision-Instruct`.
    #[schemars(
        length(min = 3, max = 256),
        regex(
            pattern = r"^([A-Za-z0-9]|\{quantization\})([A-Za-z0-9._-]|\{quantization\})*/([A-Za-z0-9]|\{quantization\})([A-Za-z0-9._-]|\{quantization\})*$"
        )
    )]
    pub id: String,

    /// Other names of the same repository, tried in order when the hub does not know the first.
    #[schemars(
        length(max = 4),
        inner(
            length(min = 3, max = 256),
            regex(
                pattern = r"^([A-Za-z0-9]|\{quantization\})([A-Za-z0-9._-]|\{quantization\})*/([A-Za-z0-9]|\{quantization\})([A-Za-z0-9._-]|\{quantization\})*$"
            )
        )
    )]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,

    /// Branch, tag or commit. Default: `main`, which on ModelScope means `master`.
    #[schemars(length(min = 1, max = 256))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,

    /// Patterns of the files to fetch (`*`, `?` and `[…]` as in a shell). Default: what the format needs.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 256)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<String>>,
}
