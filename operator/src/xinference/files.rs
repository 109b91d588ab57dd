//! Which files of a repository one quantization is, as patterns of a card. Pure.
//!
//! `{quantization}` stays in the patterns; `{part}` becomes the shape that all parts share.

use super::registry::Source;

/// Patterns for one quantization; nothing where the format says by itself which files are needed.
///
/// # Errors
///
/// When the files cannot be named by patterns, or are no GGUF files.
pub(super) fn patterns(source: &Source, quantization: &str) -> Result<Option<Vec<String>>, String> {
    let parts = source
        .quantization_parts
        .as_ref()
        .and_then(|parts| parts.get(quantization))
        .filter(|parts| !parts.is_empty());
    let file = match parts {
        Some(parts) => {
            let template = source
                .model_file_name_split_template
                .as_deref()
                .filter(|template| template.contains("{part}"))
                .ok_or(
                    "it is in parts, and no model_file_name_split_template says how they are named",
                )?;
            literal(template)?.replace("{part}", &shape(parts)?)
        }
        None => match source.model_file_name_template.as_deref() {
            None => return Ok(None),
            Some("") => return Err("neither a file name nor parts are given for it".to_owned()),
            Some(template) => literal(template)?,
        },
    };
    if !file.ends_with(".gguf") {
        return Err(format!(
            "{file} is a piece of a file that was cut, not a GGUF file"
        ));
    }
    let projector = source
        .multimodal_projectors
        .iter()
        .flatten()
        .find(|name| !name.is_empty());
    let mut patterns = vec![file];
    if let Some(projector) = projector {
        patterns.push(literal(projector)?);
    }
    Ok(Some(patterns))
}

/// Letters that mean something in a pattern would match other files than the one that is named.
fn literal(template: &str) -> Result<String, String> {
    let text = template.replace("{quantization}", "").replace("{part}", "");
    if text.contains(['*', '?', '[', ']', '{', '}', '\\']) {
        return Err(format!("{template} cannot be written as a file pattern"));
    }
    Ok(template.to_owned())
}

/// What all parts share, with `?` for each digit: `00001-of-00003` is `?????-of-?????`.
fn shape(parts: &[String]) -> Result<String, String> {
    let mut shapes = Vec::new();
    for part in parts {
        let digit = |letter: char| letter.is_ascii_digit();
        shapes.push(literal(part)?.replace(digit, "?"));
    }
    shapes.dedup();
    match shapes.as_slice() {
        [shape] => Ok(shape.clone()),
        _ => Err(format!(
            "its {} parts have names without a common shape, as pieces of a file that was cut have",
            parts.len()
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(source: Value, quantization: &str) -> Result<Option<Vec<String>>, String> {
        patterns(&serde_json::from_value(source).unwrap(), quantization)
    }

    #[test]
    fn one_file_and_parts_get_patterns_of_their_own() {
        let source = json!({"model_id": "a/b",
            "model_file_name_template": "x-{quantization}.gguf",
            "model_file_name_split_template": "{quantization}/x-{quantization}-{part}.gguf",
            "quantization_parts": {"Q8_0": ["00001-of-00002", "00002-of-00002"]},
            "multimodal_projectors": ["mmproj-F16.gguf", "mmproj-F32.gguf"]});
        assert_eq!(
            check(source.clone(), "Q4_0").unwrap().unwrap(),
            ["x-{quantization}.gguf", "mmproj-F16.gguf"]
        );
        assert_eq!(
            check(source, "Q8_0").unwrap().unwrap(),
            [
                "{quantization}/x-{quantization}-?????-of-?????.gguf",
                "mmproj-F16.gguf"
            ]
        );
        assert_eq!(check(json!({"model_id": "a/b"}), "none").unwrap(), None);
    }

    #[test]
    fn files_that_cannot_be_served_or_named_are_refused() {
        for (source, words) in [
            (
                json!({"model_file_name_split_template": "x.gguf-{part}", "quantization_parts": {"Q": ["split-a", "split-b"]}}),
                "without a common shape",
            ),
            (
                json!({"model_file_name_split_template": "x.gguf-{part}", "quantization_parts": {"Q": ["1", "2"]}}),
                "not a GGUF file",
            ),
            (
                json!({"quantization_parts": {"Q": ["1", "2"]}}),
                "no model_file_name_split_template",
            ),
            (
                json!({"model_file_name_template": ""}),
                "neither a file name nor parts",
            ),
            (
                json!({"model_file_name_template": "x-{size}.gguf"}),
                "cannot be written as a file pattern",
            ),
        ] {
            let mut source = source;
            source["model_id"] = json!("a/b");
            let error = check(source, "Q").unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
