//! The tokenizer of a folder in a hub's layout: `tokenizer.json` and what the files beside it say about ends.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{Parts, byte_of_character, check_merge, token_bytes};
use crate::weights::LoadError;

/// The parts of a merge in either spelling; what is neither is refused by the library.
fn merged(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(both) => both.split_once(' '),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn parts(folder: &Path) -> Result<Parts, LoadError> {
    let path = folder.join("tokenizer.json");
    let fail = |detail: String| LoadError::Description {
        path: path.clone(),
        detail,
    };
    let mut json = read(&path)?;
    let byte_level = json.pointer("/decoder/type").and_then(Value::as_str) == Some("ByteLevel");
    if !byte_level {
        let found = json.pointer("/decoder/type").cloned().unwrap_or_default();
        return Err(fail(format!(
            "its decoder is {found}; supported is ByteLevel"
        )));
    }
    // The opening token, if the post-processor puts one before a single text.
    let opening = json.get("post_processor").and_then(opening_token);

    let mut control = Vec::new();
    let mut plain = Vec::new();
    let mut by_id: HashMap<u32, Box<[u8]>> = HashMap::new();
    let added = json
        .get_mut("added_tokens")
        .map(Value::take)
        .unwrap_or_default();
    for token in added.as_array().into_iter().flatten() {
        let (Some(content), Some(id)) = (
            token.get("content").and_then(Value::as_str),
            token.get("id").and_then(Value::as_u64),
        ) else {
            return Err(fail(
                "an entry of added_tokens lacks content or id".to_owned(),
            ));
        };
        let id =
            u32::try_from(id).map_err(|_| fail(format!("added token {id} is out of bounds")))?;
        if token.get("special").and_then(Value::as_bool) == Some(true) {
            control.push((content.to_owned(), id));
        } else {
            by_id.insert(id, Box::from(content.as_bytes()));
            plain.push(token.clone());
        }
    }
    let table = byte_of_character();
    let Some(vocabulary) = json
        .pointer_mut("/model/vocab")
        .and_then(Value::as_object_mut)
    else {
        return Err(fail("model.vocab is missing".to_owned()));
    };
    for (name, _) in &control {
        vocabulary.remove(name);
    }
    let longest = vocabulary.keys().map(String::len).max().unwrap_or(0);
    for (token, id) in vocabulary.iter() {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| fail(format!("token {token:?} has no number")))?;
        by_id
            .entry(id)
            .or_insert_with(|| token_bytes(token, &table));
    }
    let prefix = json.pointer("/model/continuing_subword_prefix");
    let prefix = prefix.and_then(Value::as_str).map_or(0, str::len);
    let merges = json.pointer("/model/merges").and_then(Value::as_array);
    for (left, right) in merges.into_iter().flatten().filter_map(merged) {
        check_merge(left, right, prefix, longest)
            .map_err(|detail| fail(format!("model.merges: {detail}")))?;
    }
    let last = by_id
        .keys()
        .copied()
        .chain(control.iter().map(|(_, id)| *id))
        .max()
        .unwrap_or(0) as usize;
    if last > 1 << 24 {
        return Err(fail(format!("token number {last} is out of bounds")));
    }
    let bytes = (0..=last)
        .map(|id| u32::try_from(id).ok().and_then(|id| by_id.remove(&id)))
        .collect();
    json["added_tokens"] = Value::Array(plain);
    json["post_processor"] = Value::Null;
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    let text = serde_json::to_vec(&json)
        .map_err(|error| fail(error.to_string()))
        .and_then(|json| {
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| fail(error.to_string()))
        })?;

    let number = |name: &str| {
        control
            .iter()
            .find(|(text, _)| text == name)
            .map(|(_, id)| *id)
    };
    let config = read(&folder.join("tokenizer_config.json")).unwrap_or_default();
    let named = |key: &str| {
        let value = config.get(key)?;
        number(
            value
                .as_str()
                .or_else(|| value.get("content").and_then(Value::as_str))?,
        )
    };
    let stops = [
        folder.join("generation_config.json"),
        folder.join("config.json"),
    ]
    .iter()
    .filter_map(|path| read(path).ok())
    .flat_map(|json| match json.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.clone(),
        Some(id) => vec![id.clone()],
        None => Vec::new(),
    })
    .filter_map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
    .collect();
    let begin = opening
        .as_deref()
        .and_then(number)
        .or_else(|| named("bos_token"));
    let (end, adds_begin) = (named("eos_token"), opening.is_some());
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

fn read(path: &Path) -> Result<Value, LoadError> {
    let text = std::fs::read(path).map_err(|source| LoadError::Open {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_slice(&text).map_err(|error| LoadError::Description {
        path: path.to_owned(),
        detail: error.to_string(),
    })
}

/// The first special token of a template post-processor, inside a sequence or alone.
fn opening_token(processor: &Value) -> Option<String> {
    if let Some(processors) = processor.get("processors").and_then(Value::as_array) {
        return processors.iter().find_map(opening_token);
    }
    processor
        .pointer("/single/0/SpecialToken/id")
        .and_then(Value::as_str)
        .map(str::to_owned)
}
