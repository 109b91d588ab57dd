//! Short digests of plain data, for the names of children.

use serde::Serialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};

/// Ten hexadecimal digits: 40 bits, so that a collision within one owner's children is out of reach.
const LENGTH: usize = 10;

/// Digest of a value's JSON form. The order of an object's fields says nothing.
#[must_use]
pub fn of(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).expect("plain data of our own types is JSON");
    let hash = Sha256::digest(sorted(value).to_string());
    let mut text = String::with_capacity(LENGTH);
    for byte in hash.iter().take(LENGTH / 2) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The same value with the fields of its objects in the order of their names.
/// serde_json sorts by itself or not, as other crates of the same build ask for.
#[must_use]
pub fn sorted(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
            fields.sort_by(|one, other| one.0.cmp(&other.0));
            let fields = fields.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_digest_depends_on_what_is_said_and_not_on_the_order() {
        let one = of(&json!({"a": {"x": 1, "y": [1, 2]}, "b": 2}));
        assert_eq!(one, of(&json!({"b": 2, "a": {"y": [1, 2], "x": 1}})));
        assert_ne!(one, of(&json!({"a": {"x": 1, "y": [2, 1]}, "b": 2})));
        assert_eq!(one.len(), LENGTH);
    }
}
