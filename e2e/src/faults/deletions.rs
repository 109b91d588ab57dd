//! Deletion is bounded: whatever a ModelDeployment or a ModelCache waits for, it goes when it is told to.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::stories::deployment;
use crate::cluster::{Cluster, Kind, MODEL_CACHE, MODEL_DEPLOYMENT, POD};
use crate::local_operator::Program;
use crate::model::{condition, describe};
use crate::player::{Part, Player};
use crate::stage::Stage;
use crate::wait::{Seen, until};

/// How soon the objects are gone: the API server and the garbage collector take a moment.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// Something that an object waits for, or something that is in the way of its going.
pub struct Case {
    /// What it is about.
    pub name: &'static str,
    /// What the player leaves undone.
    pub held: Option<Part>,
    /// The StorageClass that the weights ask for.
    pub class: Option<&'static str>,
    /// The reason that stands in Ready before the deletion.
    pub reason: &'static str,
}

/// All cases.
pub const CASES: [Case; 5] = [
    Case {
        name: "the hub never answers",
        held: Some(Part::Resolve),
        class: None,
        reason: "Resolving",
    },
    Case {
        name: "the fetch Job is stuck",
        held: Some(Part::Fetch),
        class: None,
        reason: "Fetching",
    },
    Case {
        name: "the StorageClass is missing",
        held: None,
        class: Some("nobody-has-this-class"),
        reason: "StorageClassMissing",
    },
    Case {
        name: "the claim stays pending",
        held: Some(Part::Claims),
        class: None,
        reason: "",
    },
    Case {
        name: "the node is dead",
        held: Some(Part::Leave),
        class: None,
        reason: "AllReplicasReady",
    },
];

/// Deletes a ModelDeployment and its ModelCache in this state and waits until both are gone.
///
/// # Errors
/// When they stay, or the state does not come.
pub async fn check(
    cluster: &Cluster,
    program: &Program,
    player: &Player,
    case: &Case,
    namespace: &str,
) -> Result<()> {
    if let Some(part) = case.held {
        player.hold(namespace, part);
    }
    let stage = Stage::start(cluster, program, namespace, None).await?;
    let mut object = deployment("model");
    object["spec"]["weights"] =
        json!({ "storage": { "reclaimPolicy": "Delete", "storageClassName": case.class } });
    if case.class.is_none() {
        object["spec"]["weights"]["storage"]
            .as_object_mut()
            .map(|storage| storage.remove("storageClassName"));
    }
    cluster.apply(MODEL_DEPLOYMENT, namespace, object).await?;
    let what = format!("{}: Ready to have the reason {}", case.name, case.reason);
    until(Duration::from_secs(30), &what, async || {
        let object = cluster
            .get(MODEL_DEPLOYMENT, namespace, "model")
            .await?
            .unwrap_or_default();
        let reason = condition(&object, "Ready")["reason"].clone();
        let is_there = if case.reason.is_empty() {
            // Whatever it says of the claim, the cache has been made.
            !cluster.list(MODEL_CACHE, namespace, "").await?.is_empty()
        } else {
            reason == case.reason
        };
        Ok(Seen::when(is_there, || describe(&object)))
    })
    .await?;
    let caches = cluster.list(MODEL_CACHE, namespace, "").await?;
    cluster.delete(MODEL_DEPLOYMENT, namespace, "model").await?;
    gone(cluster, MODEL_DEPLOYMENT, namespace, "model", case).await?;
    for cache in &caches {
        let name = cache["metadata"]["name"].as_str().unwrap_or_default();
        cluster.delete(MODEL_CACHE, namespace, name).await?;
        gone(cluster, MODEL_CACHE, namespace, name, case).await?;
    }
    player.release(namespace);
    // The node's pods are listed until somebody says that they ended; a person does it for a dead node.
    for pod in cluster.list(POD, namespace, "").await? {
        end_pod(cluster, namespace, &pod).await?;
    }
    stage.end().await
}

async fn gone(
    cluster: &Cluster,
    kind: Kind,
    namespace: &str,
    name: &str,
    case: &Case,
) -> Result<()> {
    let what = format!("{}: {} {name} to be gone", case.name, kind.word());
    until(GONE_WITHIN, &what, async || {
        let found = cluster.get(kind, namespace, name).await?;
        Ok(Seen::when(found.is_none(), || {
            found.unwrap_or_default()["metadata"].to_string()
        }))
    })
    .await
}

async fn end_pod(cluster: &Cluster, namespace: &str, pod: &Value) -> Result<()> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let now = kube::api::DeleteParams::default().grace_period(0);
    match cluster.api(POD, namespace).delete(name, &now).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => Ok(other.map(drop)?),
    }
}
