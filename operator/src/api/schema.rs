//! The CustomResourceDefinitions and the field reference, from the types.
//!
//! The derived schemas are made stricter and smaller here, for all kinds in the same way:
//! an explicit `null` means "absent" instead of being kept, number formats that Kubernetes does not know are left out,
//! and a fresh object's status says that nobody has seen it yet.

use std::fmt::Write as _;

use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use super::{ModelCache, ModelCard, ModelDeployment};
use crate::digest;

/// A generated CRD: its name (`PLURAL.GROUP`) and the object.
pub type Definition = (String, Value);

/// Every CRD of the API, in the order in which a reader meets them.
#[must_use]
pub fn custom_resource_definitions() -> Vec<Definition> {
    [
        definition::<ModelCard>(),
        definition::<ModelCache>(),
        definition::<ModelDeployment>(),
    ]
    .into()
}

fn definition<K: CustomResourceExt>() -> Definition {
    let mut object = serde_json::to_value(K::crd()).expect("a CRD of our own types is plain JSON");
    let versions = object["spec"]["versions"]
        .as_array_mut()
        .expect("kube-derive writes versions");
    for version in versions {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        tidy(schema);
        let properties = schema["properties"]
            .as_object_mut()
            .expect("a kind has properties");
        if let Some(status) = properties.get_mut("status") {
            status["description"] = json!("What the operator knows; written by the operator only.");
            status["default"] = json!({ "observedGeneration": -1 });
        }
        if let Some(spec) = properties.get_mut("spec") {
            spec["description"] = json!("What is wanted.");
        }
    }
    (K::crd_name().to_owned(), digest::sorted(object))
}

/// Removes what Kubernetes does not need from a schema, and trims descriptions to one paragraph.
fn tidy(schema: &mut Value) {
    let Value::Object(object) = schema else {
        if let Value::Array(items) = schema {
            items.iter_mut().for_each(tidy);
        }
        return;
    };
    object.remove("nullable");
    if object
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|format| format.starts_with("uint"))
    {
        object.remove("format");
    }
    // schemars writes `default: null` beside optional fields; Kubernetes would keep the null.
    if object.get("default").is_some_and(Value::is_null) {
        object.remove("default");
    }
    for (key, value) in object.iter_mut() {
        // `properties` maps field names, which may be words such as `format`, to schemas.
        if key == "properties" {
            if let Value::Object(fields) = value {
                fields.values_mut().for_each(tidy);
            }
        } else if matches!(key.as_str(), "items" | "additionalProperties") {
            tidy(value);
        }
    }
}

/// The reference of every field, as Markdown.
#[must_use]
pub fn reference() -> String {
    let mut text = String::new();
    for (_, definition) in custom_resource_definitions() {
        let kind = definition["spec"]["names"]["kind"]
            .as_str()
            .unwrap_or_default();
        let scope = definition["spec"]["scope"].as_str().unwrap_or_default();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let _ = writeln!(text, "### {kind} ({})\n", scope.to_lowercase());
        let _ = writeln!(
            text,
            "{}\n",
            schema["description"].as_str().unwrap_or_default()
        );
        text.push_str("| field | type | meaning |\n| --- | --- | --- |\n");
        for part in ["spec", "status"] {
            rows(&mut text, part, &schema["properties"][part]);
        }
        text.push('\n');
    }
    text
}

fn rows(text: &mut String, path: &str, schema: &Value) {
    let empty = Map::new();
    let fields = schema["properties"].as_object().unwrap_or(&empty);
    let required = schema["required"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    for (name, field) in fields {
        let at = format!("{path}.{name}");
        let must = if required.iter().any(|field| field == name) {
            ", required"
        } else {
            ""
        };
        let meaning = field["description"]
            .as_str()
            .unwrap_or_default()
            .replace('\n', " ");
        let _ = writeln!(
            text,
            "| `{at}` | {}{must} | {} |",
            type_of(field),
            meaning.replace('|', "\\|")
        );
        if name == "conditions" {
            continue;
        }
        rows(text, &at, field);
        if field["items"].is_object() {
            rows(text, &format!("{at}[]"), &field["items"]);
        }
    }
}

fn type_of(schema: &Value) -> String {
    if schema["x-kubernetes-int-or-string"] == true {
        return "quantity".to_owned();
    }
    if let Some(words) = schema["enum"].as_array() {
        let words: Vec<_> = words
            .iter()
            .filter_map(Value::as_str)
            .map(|word| format!("`{word}`"))
            .collect();
        return words.join(" ");
    }
    let mut name = match schema["type"].as_str().unwrap_or("object") {
        "array" => format!("list of {}", type_of(&schema["items"])),
        "object" if schema["additionalProperties"].is_object() => {
            format!("map of {}", type_of(&schema["additionalProperties"]))
        }
        other => other.to_owned(),
    };
    if let (Some(least), most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
        let _ = match most {
            Some(most) => write!(name, " {least}–{most}"),
            None => write!(name, " ≥ {least}"),
        };
    }
    name
}
