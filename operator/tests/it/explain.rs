//! What `kubectl explain` prints of our kinds is a manual: whole sentences, defaults and units.

use serde_json::{Map, Value};

/// Units that a field's name promises, with the word that its description must hold.
const UNITS: [(&str, &str); 5] = [
    ("seconds", "econds"),
    ("bytes", "ytes"),
    ("contextlength", "okens"),
    ("port", "Port"),
    ("generation", "eneration"),
];

#[test]
fn every_field_is_explained_with_its_default_and_its_unit() {
    let mut missing = Vec::new();
    for (_, definition) in chandler_operator::api::custom_resource_definitions() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        check(kind, schema, false, &mut missing);
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

fn check(path: &str, schema: &Value, in_spec: bool, missing: &mut Vec<String>) {
    let text = schema["description"].as_str().unwrap_or_default();
    if !path.ends_with("[]") && !text.trim_end().ends_with('.') {
        missing.push(format!("{path}: no sentence explains it: \"{text}\""));
    }
    if schema["type"] == "integer" {
        let name = path.rsplit('.').next().unwrap().to_lowercase();
        for (end, word) in UNITS {
            if name.ends_with(end) && !text.contains(word) {
                missing.push(format!("{path}: its unit is not told: \"{text}\""));
            }
        }
    }
    let none = Map::new();
    let required = schema["required"].as_array();
    for (name, field) in schema["properties"].as_object().unwrap_or(&none) {
        let at = format!("{path}.{name}");
        // What every object and every condition has is Kubernetes' own.
        if ["apiVersion", "kind", "metadata", "conditions"].contains(&name.as_str()) {
            continue;
        }
        let in_spec = in_spec || name == "spec";
        let is_required = required.is_some_and(|names| names.contains(&Value::from(name.as_str())));
        let is_scalar =
            field["type"].is_string() && field["type"] != "object" && field["type"] != "array";
        let text = field["description"].as_str().unwrap_or_default();
        if in_spec && is_scalar && !is_required && !text.contains("efault") {
            missing.push(format!("{at}: its default is not told: \"{text}\""));
        }
        check(&at, field, in_spec, missing);
        if field["items"].is_object() {
            check(&format!("{at}[]"), &field["items"], in_spec, missing);
        }
    }
}

/// Client-side apply compares what was written with what is there: a default inside a list is a change each time.
#[test]
fn no_list_has_a_default_inside() {
    let mut found = Vec::new();
    for (name, definition) in chandler_operator::api::custom_resource_definitions() {
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        defaults(&name, &schema["properties"]["spec"], false, &mut found);
    }
    assert!(found.is_empty(), "{found:?}");
}

fn defaults(path: &str, schema: &Value, in_list: bool, found: &mut Vec<String>) {
    if in_list && !schema["default"].is_null() {
        found.push(path.to_owned());
    }
    let none = Map::new();
    for (name, field) in schema["properties"].as_object().unwrap_or(&none) {
        defaults(&format!("{path}.{name}"), field, in_list, found);
    }
    for part in ["items", "additionalProperties"] {
        if schema[part].is_object() {
            defaults(&format!("{path}[]"), &schema[part], true, found);
        }
    }
}
