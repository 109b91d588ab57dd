//! The tokenizer that a GGUF file describes in its metadata (`tokenizer.ggml.*`).

use std::collections::{HashMap, HashSet};

use super::{Cut, Parts, byte_of_character, byte_pairs, token_bytes};
use crate::weights::LoadError;
use crate::weights::gguf::header::Value;
use crate::weights::gguf::pairs::Pairs;

/// `tokenizer.ggml.token_type` of control tokens.
const CONTROL: i64 = 3;
/// `tokenizer.ggml.token_type` of tokens that text may spell as a whole.
const USER_DEFINED: i64 = 4;
/// `tokenizer.ggml.token_type` of gaps in the vocabulary.
const UNUSED: i64 = 5;

/// Names under which files list end tokens besides their main one.
const END_NAMES: [&str; 7] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
];

/// The one kind of tokenizer that is read: byte-level pairs.
const MODEL: &str = "gpt2";

/// Whether a file with these words in `tokenizer.ggml.model` and `tokenizer.ggml.pre` can be read.
pub(crate) fn reads(model: &str, cut: Option<&str>) -> bool {
    model == MODEL && cut.is_none_or(|name| cut_of(name).is_some())
}

/// The rule that `tokenizer.ggml.pre` names, and whether whole words are looked up before pairs are merged.
fn cut_of(name: &str) -> Option<(Cut, bool)> {
    match name {
        "gpt-2" | "gpt2" => Some((Cut::Gpt2, false)),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            Some((Cut::SingleDigits, false))
        }
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" => Some((Cut::Llama3, true)),
        "qwen2" | "deepseek-r1-qwen" | "megrez" => Some((Cut::Qwen2, false)),
        _ => None,
    }
}

pub(super) fn parts(file: &Pairs) -> Result<Parts, LoadError> {
    let fail = |detail: String| file.error(detail);
    let model = file.text("tokenizer.ggml.model")?;
    if model != MODEL {
        return Err(fail(format!(
            "tokenizer.ggml.model is {model}; supported is {MODEL} (byte-level pairs)"
        )));
    }
    let (cut, whole_words_first) = match file.text("tokenizer.ggml.pre") {
        Ok(name) => cut_of(name).ok_or_else(|| {
            let known = "gpt-2, smollm, starcoder, refact, llama-bpe, llama3, qwen2";
            fail(format!(
                "tokenizer.ggml.pre is {name}; supported are {known}"
            ))
        })?,
        Err(_) => {
            tracing::warn!("tokenizer.ggml.pre is missing; text is cut by GPT-2's rule");
            (Cut::Gpt2, false)
        }
    };
    let tokens = texts(file, "tokenizer.ggml.tokens")?;
    let types: Vec<i64> = match file.value("tokenizer.ggml.token_type") {
        Some(Value::Wholes(values)) if values.len() == tokens.len() => values.clone(),
        Some(_) => {
            return Err(fail(format!(
                "tokenizer.ggml.token_type does not name {} types",
                tokens.len()
            )));
        }
        None => vec![1; tokens.len()],
    };
    let merges: Vec<(String, String)> = texts(file, "tokenizer.ggml.merges")?
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(fail(format!(
                "tokenizer.ggml.merges has {merge:?}, expected two parts"
            ))),
        })
        .collect::<Result<_, _>>()?;

    let table = byte_of_character();
    // Some files mark tokens as control that merges go through; those stay in the text's vocabulary as well.
    let merged: HashSet<String> = merges
        .iter()
        .map(|(left, right)| format!("{left}{right}"))
        .collect();
    let (mut vocabulary, mut control, mut added) = (HashMap::new(), Vec::new(), Vec::new());
    let mut bytes = Vec::with_capacity(tokens.len());
    for ((token, kind), id) in tokens.iter().zip(types).zip(0_u32..) {
        if kind == CONTROL && !merged.contains(token) {
            control.push((token.to_owned(), id));
            bytes.push(None);
            continue;
        }
        if kind == UNUSED {
            bytes.push(None);
            continue;
        }
        if kind == USER_DEFINED {
            added.push(token.to_owned());
            bytes.push(Some(Box::from(token.as_bytes())));
        } else {
            bytes.push(Some(token_bytes(token, &table)));
        }
        vocabulary.insert(token.to_owned(), id);
    }
    let id = |key: &str| -> Result<Option<u32>, LoadError> {
        match file.whole(&format!("tokenizer.ggml.{key}_token_id"))? {
            None => Ok(None),
            Some(id) => match u32::try_from(id) {
                Ok(id) if (id as usize) < bytes.len() => Ok(Some(id)),
                _ => Err(fail(format!(
                    "tokenizer.ggml.{key}_token_id is {id} of {} tokens",
                    bytes.len()
                ))),
            },
        }
    };
    let mut stops: Vec<u32> = control
        .iter()
        .filter(|(name, _)| END_NAMES.contains(&name.as_str()))
        .map(|(_, id)| *id)
        .collect();
    stops.extend(id("eot")?);
    stops.extend(id("eom")?);
    let (begin, end) = (id("bos")?, id("eos")?);
    let adds_begin = match file.value("tokenizer.ggml.add_bos_token") {
        Some(Value::Flag(adds)) => *adds,
        // Files of Llama 3 before the key existed.
        _ => cut == Cut::Llama3,
    };
    let text = byte_pairs(vocabulary, merges, whole_words_first, cut, added)
        .map_err(|error| fail(format!("tokenizer.ggml.merges: {error}")))?;
    Ok(Parts {
        text,
        control,
        bytes,
        begin,
        adds_begin,
        end,
        stops,
    })
}

fn texts<'a>(file: &'a Pairs, key: &str) -> Result<&'a [String], LoadError> {
    let fail = |detail: String| file.error(detail);
    match file.value(key) {
        Some(Value::Texts(texts)) => Ok(texts),
        // An empty list may be said to be of anything.
        Some(Value::Wholes(numbers)) if numbers.is_empty() => Ok(&[]),
        Some(other) => Err(fail(format!(
            "{key} is {}, expected a list of texts",
            other.what()
        ))),
        None => Err(fail(format!("key {key} is missing"))),
    }
}
