//! What a model's own files say about it, from their beginning; a few kilobytes tell it, the weights stay where they are.
//!
//! Asking for a file's bytes has a second use: a gated repository may show its listing to everybody and refuse only its files,
//! and it is better to know before a volume is made.

use reqwest::StatusCode;
use serde_json::Value as Json;

use super::Hub;
use super::choice::Format;
use super::client::{read_beginning, read_body};
use super::dimensions;
use super::error::HubError;
use super::gguf_header::Header;
use super::listing::{RemoteFile, RepoPath, Snapshot};
use crate::answer::Dimensions;
use crate::support;
use crate::weights::hub_files::planned_memory;

/// `config.json` of the largest models is some ten kilobytes.
const CONFIG_LIMIT: usize = 1 << 20;

/// A GGUF file's sizes stand before its lists of tokens; what comes after 64 KiB is not worth reading.
const HEADER_LIMIT: usize = 64 << 10;

/// The longest name that is taken for one.
const NAME_LIMIT: usize = 128;

/// What a model's own files say about it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// `architectures[0]` of `config.json`, or `general.architecture` of a GGUF file.
    pub architecture: Option<String>,
    /// How large its parts are.
    pub dimensions: Option<Dimensions>,
    /// Whether `serve` runs it, where the files tell.
    pub supported: Option<bool>,
}

/// Asks for the beginning of the model's own description.
///
/// # Errors
/// When the hub refuses the file or does not answer. Files that say nothing, or nothing readable, are no error.
pub async fn describe(
    hub: &Hub,
    snapshot: &Snapshot,
    format: Format,
    chosen: &[RemoteFile],
) -> Result<Description, HubError> {
    if format == Format::Ggufv2 {
        let ggufs: Vec<&RemoteFile> = chosen
            .iter()
            .filter(|file| file.path.as_str().to_ascii_lowercase().ends_with(".gguf"))
            .collect();
        let bytes = match ggufs.first() {
            Some(file) => beginning(hub, snapshot, &file.path).await?,
            None => Vec::new(),
        };
        return Ok(gguf_description(&bytes, ggufs.len()));
    }
    let file = snapshot
        .files
        .iter()
        .find(|file| file.path.as_str() == "config.json");
    let json = match file {
        Some(file) => config(hub, snapshot, &file.path).await?,
        None => {
            if let Some(file) = chosen.first() {
                beginning(hub, snapshot, &file.path).await?;
            }
            Vec::new()
        }
    };
    Ok(config_description(&json, format))
}

/// The description of one model in so many GGUF files, from the first one's beginning.
#[must_use]
pub fn gguf_description(bytes: &[u8], files: usize) -> Description {
    let header = Header::read(bytes);
    let architecture = header
        .text("general.architecture")
        .filter(|name| is_name(name))
        .map(str::to_owned);
    let whole = header.whole("split.count").is_none_or(|count| count <= 1);
    let key = |part: &str| format!("{}.{part}", architecture.as_deref().unwrap_or_default());
    let runs = files <= 1
        && whole
        && header
            .whole(&key("expert_count"))
            .is_none_or(|experts| experts == 0)
        && support::reads_gguf_tokenizer(
            header.text("tokenizer.ggml.model"),
            header.text("tokenizer.ggml.pre"),
        )
        && support::rotates_gguf(header.text(&key("rope.scaling.type")));
    Description {
        supported: if runs {
            support::supports(Format::Ggufv2, architecture.as_deref())
        } else {
            Some(false)
        },
        dimensions: dimensions::of_gguf(&header),
        architecture,
    }
}

/// The description of a model by its `config.json`.
#[must_use]
pub fn config_description(json: &[u8], format: Format) -> Description {
    let config: Json = serde_json::from_slice(json).unwrap_or_default();
    let architecture = config
        .pointer("/architectures/0")
        .and_then(Json::as_str)
        .filter(|name| is_name(name))
        .map(str::to_owned);
    // Both spellings of each: files of transformers 4 and of transformers 5.
    let text = |places: &[&str]| {
        places
            .iter()
            .find_map(|place| config.pointer(place).and_then(Json::as_str))
    };
    let is_true = |key: &str| config.get(key).and_then(Json::as_bool) == Some(true);
    let runs = support::rotates_hub_files(text(&[
        "/rope_parameters/rope_type",
        "/rope_parameters/type",
        "/rope_scaling/rope_type",
        "/rope_scaling/type",
    ])) && support::reads_floats(text(&["/dtype", "/torch_dtype"]))
        && config.get("quantization_config").is_none_or(Json::is_null)
        && !is_true("attention_bias")
        && !is_true("mlp_bias");
    let supported = if runs {
        support::supports(format, architecture.as_deref())
    } else {
        Some(false)
    };
    let dimensions = dimensions::of_config(&config).map(|dimensions| Dimensions {
        memory: (supported == Some(true))
            .then(|| planned_memory(json))
            .flatten(),
        ..dimensions
    });
    Description {
        supported,
        dimensions,
        architecture,
    }
}

async fn beginning(hub: &Hub, snapshot: &Snapshot, path: &RepoPath) -> Result<Vec<u8>, HubError> {
    hub.patience()
        .ask(|| async {
            let response = hub
                .open(snapshot, path, Some((0, Some(HEADER_LIMIT as u64 - 1))))
                .await?;
            if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                return Ok(Vec::new());
            }
            read_beginning(
                response,
                HEADER_LIMIT,
                &format!("read the beginning of {path}"),
            )
            .await
        })
        .await
}

async fn config(hub: &Hub, snapshot: &Snapshot, path: &RepoPath) -> Result<Vec<u8>, HubError> {
    hub.patience()
        .ask(|| async {
            read_body(
                hub.open(snapshot, path, None).await?,
                CONFIG_LIMIT,
                "read config.json",
            )
            .await
        })
        .await
}

fn is_name(name: &str) -> bool {
    (1..=NAME_LIMIT).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::super::gguf_header::tests::{header, text};
    use super::*;

    fn llama(more: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
        let mut pairs = vec![("general.architecture", 8, text("llama"))];
        pairs.extend_from_slice(more);
        header(&pairs)
    }

    #[test]
    fn what_serve_would_refuse_is_not_supported_though_its_architecture_is() {
        let sentence_pieces = llama(&[("tokenizer.ggml.model", 8, text("llama"))]);
        let unknown_cut = llama(&[
            ("tokenizer.ggml.model", 8, text("gpt2")),
            ("tokenizer.ggml.pre", 8, text("tekken")),
        ]);
        let known = llama(&[
            ("tokenizer.ggml.model", 8, text("gpt2")),
            ("tokenizer.ggml.pre", 8, text("llama-bpe")),
        ]);
        let split = llama(&[("split.count", 2, vec![3, 0])]);
        for (bytes, files, supported) in [
            (&known, 1, true),
            (&llama(&[]), 1, true),
            (&known, 2, false),
            (&split, 1, false),
            (
                &llama(&[("llama.expert_count", 4, vec![8, 0, 0, 0])]),
                1,
                false,
            ),
            (
                &llama(&[("llama.rope.scaling.type", 8, text("longrope"))]),
                1,
                false,
            ),
            (&sentence_pieces, 1, false),
            (&unknown_cut, 1, false),
        ] {
            let found = gguf_description(bytes, files);
            assert_eq!(found.architecture.as_deref(), Some("llama"));
            assert_eq!(found.supported, Some(supported), "{found:?}");
        }
        assert_eq!(gguf_description(b"<html>", 1), Description::default());
    }

    #[test]
    fn a_llama_in_safetensors_is_supported_unless_its_config_asks_for_more() {
        for (more, supported) in [
            ("", true),
            (r#","dtype":"bfloat16""#, true),
            (r#","torch_dtype":"float16","rope_scaling":null"#, true),
            (
                r#","rope_scaling":{"rope_type":"llama3","factor":8.0}"#,
                true,
            ),
            (r#","rope_parameters":{"rope_type":"longrope"}"#, false),
            (r#","rope_scaling":{"type":"dynamic"}"#, false),
            (r#","torch_dtype":"float64""#, false),
            (r#","quantization_config":{"quant_method":"fp8"}"#, false),
            (r#","attention_bias":true"#, false),
        ] {
            let json = format!(r#"{{"architectures":["LlamaForCausalLM"]{more}}}"#);
            let found = config_description(json.as_bytes(), Format::Pytorch);
            assert_eq!(found.supported, Some(supported), "{json}");
        }
        let nothing = config_description(b"", Format::Pytorch);
        assert_eq!(nothing.supported, None);
    }

    #[test]
    fn reads_the_first_architecture_of_a_config() {
        let named = |json: &[u8]| config_description(json, Format::Pytorch).architecture;
        assert_eq!(
            named(br#"{"architectures":["MllamaForConditionalGeneration","x"],"y":1}"#).as_deref(),
            Some("MllamaForConditionalGeneration")
        );
        for json in [
            br#"{}"#.as_slice(),
            br#"{"architectures":[]}"#,
            b"[",
            b"",
            br#"{"architectures":"x"}"#,
            br#"{"architectures":["a b"]}"#,
        ] {
            assert_eq!(named(json), None);
        }
        assert!(!is_name("a b") && !is_name("") && !is_name(&"x".repeat(129)));
    }
}
