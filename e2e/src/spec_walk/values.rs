//! Values for each field of a spec: from the CRD's schema, and from a small table where a pattern or sense is asked for.

use serde_json::{Map, Value, json};

/// A field and what it is set to.
#[derive(Debug, Clone)]
pub struct Field {
    /// The way to it from the spec.
    pub path: Vec<String>,
    /// Values in their order.
    pub samples: Vec<Sample>,
}

/// One value.
#[derive(Debug, Clone)]
pub struct Sample {
    /// `null` removes the field.
    pub value: Value,
    /// Whether the schema of this field allows it; rules between fields may still refuse it.
    pub is_valid: bool,
}

/// Values for texts with a pattern, and for numbers whose extremes cost more than they show, by the field's name.
fn table(name: &str) -> Option<Vec<Value>> {
    let values = match name {
        // A thousand pods say no more than two.
        "replicas" => vec![json!(0), json!(2)],
        "card" => vec![json!("nobody-has-this-card")],
        "sizeInBillions" => vec![json!("0.135"), json!("7"), json!("0_135")],
        "quantization" => vec![json!("q4_1"), json!("Q8_0")],
        "endpoint" => vec![json!("https://mirror.invalid/hub")],
        "size" => vec![json!("2Gi")],
        "imageHosts" => vec![json!(["images.invalid", "images.invalid:8443"])],
        "type" => vec![json!("cpu"), json!("nvidia.com/gpu")],
        "image" => vec![json!("registry.invalid/runtime:1")],
        "id" => vec![json!("played/Other-GGUF")],
        "affinity" => vec![
            json!({ "nodeAffinity": {} }),
            json!({ "nodeAffinity": "nonsense" }),
        ],
        "topologySpreadConstraints" => vec![
            json!([{ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway" }]),
            json!([{ "maxSkew": "nonsense" }]),
        ],
        _ => return None,
    };
    Some(values)
}

/// Every field of a spec with its values.
#[must_use]
pub fn fields(schema: &Value) -> Vec<Field> {
    let mut fields = Vec::new();
    collect(schema, &mut Vec::new(), &mut fields);
    fields
}

fn collect(schema: &Value, path: &mut Vec<String>, fields: &mut Vec<Field>) {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        path.push(name.clone());
        fields.push(Field {
            path: path.clone(),
            samples: samples(name, property),
        });
        if property["properties"].is_object() {
            collect(property, path, fields);
        }
        path.pop();
    }
}

fn samples(name: &str, schema: &Value) -> Vec<Sample> {
    let valid = valid(name, schema)
        .into_iter()
        // Without the field at all.
        .chain([Value::Null])
        .map(|value| Sample {
            value,
            is_valid: true,
        });
    let invalid = invalid(schema).into_iter().map(|value| Sample {
        value,
        is_valid: false,
    });
    // Turn by turn, so that an invalid value never stands on an object that has only seen the base.
    let (mut valid, mut invalid) = (valid.collect::<Vec<_>>().into_iter(), invalid.into_iter());
    let mut samples = Vec::new();
    loop {
        let before = samples.len();
        samples.extend(valid.next());
        samples.extend(invalid.next());
        if samples.len() == before {
            return samples;
        }
    }
}

/// Values that the schema allows.
fn valid(name: &str, schema: &Value) -> Vec<Value> {
    if let Some(values) = table(name) {
        return values;
    }
    if let Some(words) = schema["enum"].as_array() {
        return words.clone();
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return vec![json!("1"), json!(1)];
    }
    match schema["type"].as_str() {
        Some("integer") => {
            let low = schema["minimum"].as_i64().unwrap_or(0);
            let high = schema["maximum"].as_i64().unwrap_or(low + 1);
            vec![json!(low), json!(high)]
        }
        Some("boolean") => vec![json!(true), json!(false)],
        Some("string") => vec![json!("value")],
        Some("array") => {
            let item = valid("", &schema["items"]).into_iter().next();
            let entry = valid(singular(name), &schema["items"]).into_iter().next();
            entry
                .or(item)
                .map(|entry| json!([entry]))
                .into_iter()
                .collect()
        }
        Some("object") if schema["additionalProperties"].is_object() => {
            let value = valid("", &schema["additionalProperties"]).swap_remove(0);
            // The second key is in no rule of the schema: the API server refuses the child, and the operator must say so.
            vec![json!({ "example": value }), json!({ "not a key!": value })]
        }
        Some("object") => vec![whole(schema)],
        _ => Vec::new(),
    }
}

/// `type` of `accelerators` and so on is found by its own name; entries of plain lists have none.
fn singular(name: &str) -> &str {
    name.strip_suffix('s').unwrap_or(name)
}

/// An object with every field that must be there.
fn whole(schema: &Value) -> Value {
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut object = Map::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        if required.contains(&name.as_str())
            && let Some(value) = valid(name, property).into_iter().next()
        {
            object.insert(name.clone(), value);
        }
    }
    Value::Object(object)
}

/// Values that the schema forbids, one beyond each bound.
fn invalid(schema: &Value) -> Vec<Value> {
    let mut values = Vec::new();
    if schema["enum"].is_array() {
        values.push(json!("Nonsense"));
    }
    match schema["type"].as_str() {
        Some("integer") => {
            values.extend(schema["minimum"].as_i64().map(|low| json!(low - 1)));
            values.extend(schema["maximum"].as_i64().map(|high| json!(high + 1)));
            values.push(json!("text"));
        }
        Some("string") => {
            if let Some(longest) = schema["maxLength"].as_u64() {
                values.push(json!(
                    "x".repeat(usize::try_from(longest).unwrap_or_default() + 1)
                ));
            }
            if schema["pattern"].is_string() {
                values.push(json!("! not \n this"));
            }
            values.push(json!(1));
        }
        Some("array") => {
            if schema["minItems"].as_u64().unwrap_or(0) > 0 {
                values.push(json!([]));
            }
            values.push(json!("text"));
        }
        Some("object" | "boolean") => values.push(json!("text")),
        _ => {}
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_give_values_on_and_beyond_them() {
        let schema = json!({"properties": {"limits": {"type": "object", "properties": {
            "contextLength": {"type": "integer", "minimum": 1, "maximum": 9},
        }}}});
        let fields = fields(&schema);
        assert_eq!(fields.len(), 2);
        let values = |is_valid| -> Vec<Value> {
            let samples = fields[1].samples.iter();
            samples
                .filter(|sample| sample.is_valid == is_valid)
                .map(|sample| sample.value.clone())
                .collect()
        };
        assert_eq!(values(true), [json!(1), json!(9), Value::Null]);
        assert_eq!(values(false), [json!(0), json!(10), json!("text")]);
    }
}
