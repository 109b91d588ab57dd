//! Nodes that kwok plays, made by a story: `make cluster-up CLUSTER_FLAGS="--fake-nodes 1"` has kwok run.

use anyhow::Result;
use serde_json::{Value, json};

use crate::tools::run_with_input;

/// Key of the taint and of the annotation that make a node kwok's.
const MARK: &str = "kwok.x-k8s.io/node";

/// The label by which nodes that a broken story left are found.
pub const LEFTOVER: &str = "chandler-e2e=story";

/// A node, by default with nothing but the usual.
#[derive(Debug, Default)]
pub struct FakeNode {
    /// Its name.
    pub name: String,
    /// Labels besides the usual ones.
    pub labels: Value,
    /// Taints besides kwok's own.
    pub taints: Vec<Value>,
    /// What it has of each resource besides, or instead of, 32 processors, 256Gi of memory and 110 pods.
    pub resources: Value,
}

/// Lets a pod onto such nodes.
#[must_use]
pub fn toleration() -> Value {
    json!({ "key": MARK, "operator": "Exists" })
}

/// Makes the nodes.
///
/// # Errors
/// When the API server refuses one.
pub async fn make(nodes: &[FakeNode]) -> Result<()> {
    let items: Vec<Value> = nodes.iter().map(manifest).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    run_with_input("kubectl", &["create", "-f", "-"], &list.to_string()).await?;
    Ok(())
}

fn manifest(node: &FakeNode) -> Value {
    let usual = json!({ "chandler-e2e": "story", "kubernetes.io/hostname": node.name });
    let labels = with(usual, &node.labels);
    let usual = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
    let resources = with(usual, &node.resources);
    let mut taints = vec![json!({ "key": MARK, "value": "fake", "effect": "NoSchedule" })];
    taints.extend(node.taints.iter().cloned());
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name, "annotations": { MARK: "fake" }, "labels": labels },
        "spec": { "taints": taints },
        "status": { "allocatable": resources, "capacity": resources },
    })
}

fn with(mut usual: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().into_iter().flatten() {
        usual[key] = value.clone();
    }
    usual
}
