//! A model's dimensions, from its own description; they say how much memory it will take.
//!
//! Descriptions come from strangers: every number has a bound, and where one is missing or absurd there are no dimensions at all.
//! A plan made from half of them would be worse than none.

use serde_json::Value as Json;

use super::gguf_header::{Header, Value};
use crate::answer::Dimensions;

/// Largest values that are believed; each is far above every model known.
const MOST_LAYERS: u64 = 1 << 10;
const MOST_HEADS: u64 = 1 << 10;
const WIDEST_HEAD: u64 = 1 << 10;
const WIDEST_STATE: u64 = 1 << 16;
const LARGEST_VOCABULARY: u64 = 1 << 22;
const LONGEST_CONTEXT: u64 = 1 << 24;
const MOST_IMAGE_TOKENS: u64 = 1 << 20;
const LARGEST_IMAGE: u64 = 1 << 14;
const MOST_TILES: u64 = 1 << 8;

/// The dimensions that a GGUF file's keys tell.
pub(super) fn of_gguf(header: &Header) -> Option<Dimensions> {
    let architecture = header.text("general.architecture")?;
    let key = |part: &str| format!("{architecture}.{part}");
    let whole = |part: &str| header.whole(&key(part));
    if header
        .value(&key("attention.cross_attention_layers"))
        .is_some()
    {
        // Such files do not tell what a picture takes.
        return None;
    }
    let (hidden, heads) = (
        whole("embedding_length")?,
        whole("attention.head_count").unwrap_or(0),
    );
    let head_size = match whole("attention.key_length") {
        Some(width) => width,
        None => hidden.checked_div(heads)?,
    };
    if whole("attention.value_length").is_some_and(|width| width != head_size) {
        return None;
    }
    let key_value_heads = match header.value(&key("attention.head_count_kv")) {
        Some(Value::Whole(number)) => *number,
        // A number for each layer.
        Some(_) => return None,
        None => heads,
    };
    let vocabulary = match header.value("tokenizer.ggml.tokens") {
        Some(Value::List(count)) => *count,
        _ => whole("vocab_size")?,
    };
    checked(Dimensions {
        layers: whole("block_count")?,
        cross_attention_layers: 0,
        key_value_heads,
        head_size,
        hidden_size: hidden,
        vocabulary_size: vocabulary,
        context_length: whole("context_length")?,
        image_tokens: 0,
        memory: None,
    })
}

/// The dimensions that a `config.json` tells. Models that read pictures describe their text part under `text_config`.
pub(super) fn of_config(config: &Json) -> Option<Dimensions> {
    let text = match config.get("text_config") {
        Some(nested) => nested,
        None => config,
    };
    let whole = |key: &str| text.get(key)?.as_u64();
    let (hidden, heads) = (whole("hidden_size")?, whole("num_attention_heads")?);
    let all_layers = whole("num_hidden_layers")?;
    let (cross_attention_layers, image_tokens) = match text.get("cross_attention_layers") {
        None | Some(Json::Null) => (0, 0),
        Some(layers) => {
            let count = distinct_layers(layers, all_layers)?;
            let tokens = match count {
                0 => 0,
                _ => image_tokens(config.get("vision_config")?)?,
            };
            (count, tokens)
        }
    };
    checked(Dimensions {
        layers: all_layers.checked_sub(cross_attention_layers)?,
        cross_attention_layers,
        key_value_heads: whole("num_key_value_heads").unwrap_or(heads),
        head_size: match whole("head_dim") {
            Some(width) => width,
            None => hidden.checked_div(heads)?,
        },
        hidden_size: hidden,
        vocabulary_size: whole("vocab_size")?,
        context_length: whole("max_position_embeddings")?,
        image_tokens,
        memory: None,
    })
}

/// How many of `all` layers a list names, none of them twice.
fn distinct_layers(layers: &Json, all: u64) -> Option<u64> {
    let mut numbers: Vec<u64> = layers
        .as_array()?
        .iter()
        .map(|layer| layer.as_u64().filter(|layer| *layer < all))
        .collect::<Option<_>>()?;
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    (numbers.len() == count).then_some(count as u64)
}

/// Keys of one picture in cross attention: every tile has its patches and one token for the whole.
fn image_tokens(vision: &Json) -> Option<u64> {
    let whole = |key: &str, most: u64| {
        vision
            .get(key)?
            .as_u64()
            .filter(|number| (1..=most).contains(number))
    };
    let (image, patch) = (
        whole("image_size", LARGEST_IMAGE)?,
        whole("patch_size", LARGEST_IMAGE)?,
    );
    let side = image / patch;
    let tokens = whole("max_num_tiles", MOST_TILES)? * (side * side + 1);
    (side > 0).then_some(tokens)
}

/// The dimensions, if each of them can be true.
fn checked(dimensions: Dimensions) -> Option<Dimensions> {
    let Dimensions {
        layers,
        cross_attention_layers,
        key_value_heads,
        head_size,
        hidden_size,
        vocabulary_size,
        context_length,
        image_tokens,
        memory: _,
    } = dimensions;
    let positive = [
        (layers, MOST_LAYERS),
        (key_value_heads, MOST_HEADS),
        (head_size, WIDEST_HEAD),
        (hidden_size, WIDEST_STATE),
        (vocabulary_size, LARGEST_VOCABULARY),
        (context_length, LONGEST_CONTEXT),
    ]
    .iter()
    .all(|(value, most)| (1..=*most).contains(value));
    let bounded = cross_attention_layers <= MOST_LAYERS && image_tokens <= MOST_IMAGE_TOKENS;
    (positive && bounded).then_some(dimensions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::gguf_header::tests::{header, list, text};
    use super::*;

    /// Llama 3.2 Vision's 11B model, as its hub describes it.
    fn vision() -> Json {
        json!({
            "architectures": ["MllamaForConditionalGeneration"],
            "text_config": {
                "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
                "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
                "num_hidden_layers": 40, "vocab_size": 128256, "max_position_embeddings": 131072,
            },
            "vision_config": { "image_size": 560, "patch_size": 14, "max_num_tiles": 4 },
        })
    }

    #[test]
    fn cross_attention_layers_are_counted_apart() {
        assert_eq!(
            of_config(&vision()),
            Some(Dimensions {
                layers: 32,
                cross_attention_layers: 8,
                key_value_heads: 8,
                head_size: 128,
                hidden_size: 4096,
                vocabulary_size: 128_256,
                context_length: 131_072,
                image_tokens: 6_404,
                memory: None,
            })
        );
        let mut base = vision();
        base["vision_config"]["image_size"] = json!(448);
        assert_eq!(
            of_config(&base).map(|found| found.image_tokens),
            Some(4_100)
        );
    }

    #[test]
    fn a_text_model_needs_no_further_keys() {
        let config = json!({
            "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 4,
            "vocab_size": 768, "max_position_embeddings": 2048, "head_dim": null,
        });
        let found = of_config(&config).expect("whole");
        assert_eq!(
            (found.layers, found.key_value_heads, found.head_size),
            (4, 4, 16)
        );
        assert_eq!((found.cross_attention_layers, found.image_tokens), (0, 0));
    }

    #[test]
    fn missing_and_absurd_values_give_no_dimensions() {
        let absurd = [
            json!(0),
            json!(-1),
            json!(1.5),
            json!("40"),
            json!([1]),
            json!({}),
            json!(u64::MAX),
            Json::Null,
        ];
        for key in [
            "hidden_size",
            "num_attention_heads",
            "num_hidden_layers",
            "vocab_size",
            "max_position_embeddings",
        ] {
            for value in &absurd {
                let mut config = vision();
                config["text_config"][key] = value.clone();
                assert_eq!(of_config(&config), None, "{key}: {value}");
            }
        }
        for key in ["image_size", "patch_size", "max_num_tiles"] {
            for value in &absurd {
                let mut config = vision();
                config["vision_config"][key] = value.clone();
                assert_eq!(of_config(&config), None, "{key}: {value}");
            }
        }
        for layers in [
            json!([3, 3]),
            json!([40]),
            json!(["x"]),
            json!(8),
            json!((0..40).collect::<Vec<_>>()),
        ] {
            let mut config = vision();
            config["text_config"]["cross_attention_layers"] = layers.clone();
            assert_eq!(of_config(&config), None, "{layers}");
        }
        for config in [json!([]), json!("x"), json!({ "text_config": 7 })] {
            assert_eq!(of_config(&config), None, "{config}");
        }
    }

    fn llama(more: &[(&str, u32, Vec<u8>)]) -> Option<Dimensions> {
        let number = |value: u32| value.to_le_bytes().to_vec();
        let mut pairs = vec![
            ("general.architecture", 8, text("llama")),
            ("llama.block_count", 4, number(30)),
            ("llama.context_length", 4, number(8192)),
            ("llama.embedding_length", 4, number(576)),
            ("llama.attention.head_count", 4, number(9)),
            ("llama.attention.head_count_kv", 4, number(3)),
        ];
        pairs.extend_from_slice(more);
        // The list's elements lie beyond the bytes that are read.
        pairs.push(("tokenizer.ggml.tokens", 9, list(8, 49_152)));
        of_gguf(&Header::read(&header(&pairs)))
    }

    #[test]
    fn a_gguf_file_tells_them_in_its_first_keys() {
        assert_eq!(
            llama(&[]),
            Some(Dimensions {
                layers: 30,
                cross_attention_layers: 0,
                key_value_heads: 3,
                head_size: 64,
                hidden_size: 576,
                vocabulary_size: 49_152,
                context_length: 8_192,
                image_tokens: 0,
                memory: None,
            })
        );
        let number = |value: u32| value.to_le_bytes().to_vec();
        let wide = llama(&[("llama.attention.key_length", 4, number(96))]);
        assert_eq!(wide.map(|found| found.head_size), Some(96));
    }

    #[test]
    fn a_gguf_file_with_absurd_keys_tells_none() {
        let number = |value: u32| value.to_le_bytes().to_vec();
        for (key, value) in [
            ("llama.block_count", 0),
            ("llama.block_count", 1 << 20),
            ("llama.attention.head_count_kv", 0),
            ("llama.attention.key_length", 0),
            ("llama.attention.value_length", 32),
            ("llama.embedding_length", u32::MAX),
            ("llama.context_length", u32::MAX),
        ] {
            assert_eq!(llama(&[(key, 4, number(value))]), None, "{key} {value}");
        }
        let each_layer = [list(4, 1), number(3)].concat();
        assert_eq!(
            llama(&[("llama.attention.head_count_kv", 9, each_layer)]),
            None
        );
        assert_eq!(of_gguf(&Header::default()), None);
    }
}
