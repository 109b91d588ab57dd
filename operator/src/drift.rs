//! Whether an object in the cluster still is what we applied.
//!
//! Only fields that we write are compared: what others add (defaults, labels, sidecars) is theirs.

use serde_json::Value;

use crate::quantity;

/// Fields that name the entry of a list, in the order in which they are tried.
const MERGE_KEYS: [&str; 7] = [
    "name",
    "mountPath",
    "containerPort",
    "port",
    "type",
    "key",
    "uid",
];

/// Whether every field of `wanted` stands in `live` with the same meaning.
#[must_use]
pub fn holds(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            live.get(key)
                .map_or_else(|| is_empty(wanted), |live| holds(live, wanted))
        }),
        (Value::Array(live), Value::Array(wanted)) => list_holds(live, wanted),
        (Value::String(live), Value::String(wanted)) => {
            live == wanted
                || quantity::parse(live)
                    .zip(quantity::parse(wanted))
                    .is_some_and(|(live, wanted)| (live - wanted).abs() <= wanted.abs() * 1e-9)
        }
        _ => live == wanted,
    }
}

fn list_holds(live: &[Value], wanted: &[Value]) -> bool {
    let key = MERGE_KEYS
        .into_iter()
        .find(|key| !wanted.is_empty() && wanted.iter().all(|entry| entry.get(key).is_some()));
    match key {
        Some(key) => wanted.iter().all(|wanted| {
            live.iter()
                .any(|live| live.get(key) == wanted.get(key) && holds(live, wanted))
        }),
        None => {
            live.len() == wanted.len()
                && live
                    .iter()
                    .zip(wanted)
                    .all(|(live, wanted)| holds(live, wanted))
        }
    }
}

/// What the API server drops when it stores an object.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_add_is_no_drift() {
        let wanted = json!({"containers": [{"name": "serve", "args": ["a"]}], "cpu": "1000m"});
        let live = json!({
            "containers": [{"name": "sidecar"}, {"name": "serve", "args": ["a"], "tty": false}],
            "cpu": "1", "dnsPolicy": "ClusterFirst",
        });
        assert!(holds(&live, &wanted));
    }

    #[test]
    fn a_changed_or_missing_field_is_drift() {
        let wanted = json!({"containers": [{"name": "serve", "args": ["a", "b"]}]});
        assert!(!holds(
            &json!({"containers": [{"name": "serve", "args": ["a"]}]}),
            &wanted
        ));
        assert!(!holds(
            &json!({"containers": [{"name": "other", "args": ["a", "b"]}]}),
            &wanted
        ));
        assert!(!holds(&json!({}), &wanted));
    }
}
