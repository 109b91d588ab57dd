//! A ModelDeployment of the demo model, as a user would write it, and what its status says.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::{Cluster, MODEL_DEPLOYMENT};
use crate::wait::{Seen, until};

/// From apply to an answer, on two busy cores: volume, three pods, 98 MB of weights.
pub const READY_WITHIN: Duration = Duration::from_secs(180);

/// The name that the stories give to their deployment, and so to its Service and its served model.
pub const NAME: &str = "smollm2";

/// Selects the serving pods.
pub const SERVING: &str = "app.kubernetes.io/component=serve";

/// The conditions that tell of weights that cannot be had until somebody acts.
pub const NOT_CACHED: [(&str, &str); 3] = [
    ("WeightsCached", "False"),
    ("Ready", "False"),
    ("Stalled", "True"),
];

/// A ModelDeployment that takes its weights from this repository of the hub.
#[must_use]
pub fn deployment(repository: &str) -> Value {
    json!({
        "metadata": { "name": NAME },
        "spec": {
            "model": { "inline": {
                "description": "The demo model under a name of the story's own",
                "contextLength": 8192,
                "abilities": ["chat"],
                "architectures": ["LlamaForCausalLM"],
                "variants": [{
                    "format": "ggufv2",
                    "sizeInBillions": "0.135",
                    "quantizations": ["Q4_1"],
                    "sources": [{ "hub": "huggingface", "id": repository }],
                }],
            } },
            "accelerators": [{ "type": "cpu" }],
            // So that several fit on a small machine.
            "limits": { "contextLength": 2048, "maxSequences": 2 },
        },
    })
}

/// The condition TYPE of an object, `Null` where it has none.
#[must_use]
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == kind)
        .cloned()
        .unwrap_or(Value::Null)
}

/// All conditions in one line each, for people.
#[must_use]
pub fn describe(object: &Value) -> String {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .map(|condition| {
            let word = |key: &str| condition[key].as_str().unwrap_or_default().to_owned();
            format!(
                "{}={} {}: {}",
                word("type"),
                word("status"),
                word("reason"),
                word("message")
            )
        })
        .collect::<Vec<_>>()
        .join("\n  ")
}

/// Waits until the deployment says Ready of the spec that it has now, and gives it.
///
/// # Errors
/// When the deadline passes; the error holds all conditions.
pub async fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<Value> {
    let what = format!("ModelDeployment {namespace}/{name} to be Ready");
    until(READY_WITHIN, &what, async || {
        let object = get(cluster, namespace, name).await?;
        let is_current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        if is_current && condition(&object, "Ready")["status"] == "True" {
            Ok(Seen::Yes(object))
        } else {
            Ok(Seen::NotYet(describe(&object)))
        }
    })
    .await
}

/// Waits until a condition has this status and reason, and gives it.
///
/// # Errors
/// When the deadline passes; the error holds all conditions.
pub async fn reason(
    cluster: &Cluster,
    namespace: &str,
    name: &str,
    within: Duration,
    (kind, status, reason): (&str, &str, &str),
) -> Result<Value> {
    let what = format!("condition {kind}={status} with reason {reason} on {namespace}/{name}");
    until(within, &what, async || {
        let object = get(cluster, namespace, name).await?;
        let found = condition(&object, kind);
        // What was so before a spec changed may be the same word, and says nothing of the new one.
        let is_current = found["observedGeneration"] == object["metadata"]["generation"];
        if is_current && found["status"] == status && found["reason"] == reason {
            Ok(Seen::Yes(found))
        } else {
            Ok(Seen::NotYet(describe(&object)))
        }
    })
    .await
}

async fn get(cluster: &Cluster, namespace: &str, name: &str) -> Result<Value> {
    cluster
        .get(MODEL_DEPLOYMENT, namespace, name)
        .await?
        .with_context(|| format!("there is no ModelDeployment {namespace}/{name}"))
}
