//! The bounds of our own CRDs, for objects that we write for a user: what the API server would refuse is said before it is asked.
//!
//! The schemas are the only source of the bounds. Rules in CEL are not evaluated here; the API server does that.

use regex::Regex;
use serde_json::Value;

use crate::api::custom_resource_definitions;

/// The schema of the CRD of a kind; nothing when there is no such kind.
#[must_use]
pub fn schema(kind: &str) -> Option<Value> {
    custom_resource_definitions()
        .into_iter()
        .map(|(_, mut definition)| definition["spec"].take())
        .find(|spec| spec["names"]["kind"] == kind)
        .map(|mut spec| spec["versions"][0]["schema"]["openAPIV3Schema"].take())
}

/// The part of a schema for a path such as `spec.model.card`; nothing when there is no such field.
#[must_use]
pub fn field<'a>(schema: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(schema, |schema, name| schema.get("properties")?.get(name))
}

/// Everything about a value that its schema does not allow, each with the path of the field.
#[must_use]
pub fn violations(schema: &Value, path: &str, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(schema, path, value, &mut found);
    found
}

fn check(schema: &Value, path: &str, value: &Value, found: &mut Vec<String>) {
    let type_fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        _ => true,
    };
    if !type_fits {
        let wanted = schema["type"].as_str().unwrap_or_default();
        found.push(format!("{path} is not of type {wanted}"));
        return;
    }
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        let words: Vec<_> = words.iter().filter_map(Value::as_str).collect();
        found.push(format!("{path} is {value}; use {}", words.join(", ")));
    }
    match value {
        Value::String(text) => check_text(schema, path, text, found),
        Value::Number(number) => check_range(schema, path, number.as_f64(), found),
        Value::Array(items) => {
            check_count(schema, path, "Items", "entries", items.len(), found);
            for (at, item) in items.iter().enumerate() {
                check(&schema["items"], &format!("{path}[{at}]"), item, found);
            }
        }
        Value::Object(fields) => {
            check_count(schema, path, "Properties", "entries", fields.len(), found);
            for name in schema["required"].as_array().into_iter().flatten() {
                if name.as_str().is_some_and(|name| !fields.contains_key(name)) {
                    found.push(format!("{path} lacks {name}"));
                }
            }
            for (name, value) in fields {
                let at = format!("{path}.{name}");
                match schema["properties"].get(name) {
                    Some(field) => check(field, &at, value, found),
                    None if schema["additionalProperties"].is_object() => {
                        check(&schema["additionalProperties"], &at, value, found);
                    }
                    None if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
                    None => found.push(format!("{at} is no field of this version")),
                }
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn check_text(schema: &Value, path: &str, text: &str, found: &mut Vec<String>) {
    // The API server counts characters, not bytes.
    check_count(
        schema,
        path,
        "Length",
        "characters",
        text.chars().count(),
        found,
    );
    let Some(pattern) = schema["pattern"].as_str() else {
        return;
    };
    if !Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text)) {
        let start: String = text.chars().take(64).collect();
        found.push(format!("{path} is {start:?}, which {pattern} does not fit"));
    }
}

fn check_count(
    schema: &Value,
    path: &str,
    what: &str,
    unit: &str,
    count: usize,
    found: &mut Vec<String>,
) {
    let bound = |side: &str| schema[format!("{side}{what}")].as_u64();
    let count = count as u64;
    if let Some(max) = bound("max").filter(|max| count > *max) {
        found.push(format!("{path} has {count} {unit}, at most {max} fit"));
    }
    if let Some(min) = bound("min").filter(|min| count < *min) {
        found.push(format!("{path} has {count} {unit}, at least {min} must be"));
    }
}

fn check_range(schema: &Value, path: &str, number: Option<f64>, found: &mut Vec<String>) {
    let Some(number) = number else { return };
    if let Some(max) = schema["maximum"].as_f64().filter(|max| number > *max) {
        found.push(format!("{path} is {number}, at most {max} is possible"));
    }
    if let Some(min) = schema["minimum"].as_f64().filter(|min| number < *min) {
        found.push(format!("{path} is {number}, at least {min} is possible"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_kind_of_bound_is_seen_and_says_where() {
        let schema = json!({"type": "object", "required": ["name"], "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 3, "pattern": "^[a-zä]+$"},
            "list": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer", "minimum": 1, "maximum": 9}},
            "word": {"type": "string", "enum": ["one", "two"]},
            "map": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "boolean"}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }});
        let fine = json!({"name": "äää", "list": [1, 9], "word": "one", "map": {"a": true}, "open": {"x": {}}});
        assert!(violations(&schema, "spec", &fine).is_empty());
        for (value, words) in [
            (json!([]), "spec is not of type object"),
            (json!({}), "spec lacks \"name\""),
            (
                json!({"name": "a"}),
                "spec.name has 1 characters, at least 2",
            ),
            (
                json!({"name": "aaaa"}),
                "spec.name has 4 characters, at most 3",
            ),
            (json!({"name": "AA"}), "does not fit"),
            (json!({"name": "aa", "list": []}), "at least 1 must be"),
            (json!({"name": "aa", "list": [1, 2, 3]}), "at most 2 fit"),
            (
                json!({"name": "aa", "list": [0]}),
                "spec.list[0] is 0, at least 1",
            ),
            (
                json!({"name": "aa", "list": [10]}),
                "spec.list[0] is 10, at most 9",
            ),
            (
                json!({"name": "aa", "list": [1.5]}),
                "spec.list[0] is not of type integer",
            ),
            (json!({"name": "aa", "word": "three"}), "use one, two"),
            (
                json!({"name": "aa", "map": {"a": true, "b": true}}),
                "at most 1 fit",
            ),
            (
                json!({"name": "aa", "map": {"a": 1}}),
                "spec.map.a is not of type boolean",
            ),
            (
                json!({"name": "aa", "more": 1}),
                "spec.more is no field of this version",
            ),
        ] {
            let found = violations(&schema, "spec", &value);
            assert!(
                found.len() == 1 && found[0].contains(words),
                "{value}: {found:?}"
            );
        }
    }

    /// A bound that nobody reads would let through what the API server refuses.
    #[test]
    fn no_crd_uses_a_word_that_is_not_checked() {
        const CHECKED: [&str; 14] = [
            "type",
            "enum",
            "pattern",
            "minLength",
            "maxLength",
            "minItems",
            "maxItems",
            "maxProperties",
            "minimum",
            "maximum",
            "required",
            "properties",
            "items",
            "additionalProperties",
        ];
        /// `format` and the Kubernetes words bound nothing that we write; CEL is for the API server.
        const WITHOUT_BOUND: [&str; 8] = [
            "description",
            "default",
            "format",
            "x-kubernetes-int-or-string",
            "x-kubernetes-list-type",
            "x-kubernetes-list-map-keys",
            "x-kubernetes-preserve-unknown-fields",
            "x-kubernetes-validations",
        ];
        fn walk(schema: &Value) {
            for (word, value) in schema.as_object().into_iter().flatten() {
                assert!(
                    CHECKED.contains(&word.as_str()) || WITHOUT_BOUND.contains(&word.as_str()),
                    "{word} is not checked"
                );
                match word.as_str() {
                    "properties" => value
                        .as_object()
                        .into_iter()
                        .flatten()
                        .for_each(|(_, v)| walk(v)),
                    "items" | "additionalProperties" => walk(value),
                    "pattern" => drop(Regex::new(value.as_str().unwrap()).unwrap()),
                    _ => {}
                }
            }
        }
        for kind in ["ModelCard", "ModelDeployment"] {
            walk(&field(&schema(kind).unwrap(), "spec").unwrap().clone());
        }
    }
}
