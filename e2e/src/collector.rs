//! The cluster's garbage collector: it looks for new kinds every half minute, and until it knows ours it takes nothing away.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::cluster::{Cluster, MODEL_DEPLOYMENT, SERVICE_ACCOUNT};
use crate::wait::{Seen, until};

const PLACE: &str = "default";
const PROBE: &str = "collected";

/// Waits until what belonged to an object of ours goes with it.
///
/// The kind of the probe is the last by name, so the others are known too.
///
/// # Errors
/// When the API server refuses, or the probe's child does not go.
pub async fn knows_our_kinds(cluster: &Cluster) -> Result<()> {
    let owner = json!({
        "metadata": { "name": PROBE },
        "spec": { "model": { "card": PROBE } },
    });
    let owner = cluster.apply(MODEL_DEPLOYMENT, PLACE, owner).await?;
    let reference = json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"],
        "name": PROBE, "uid": owner["metadata"]["uid"],
    });
    let child = json!({ "metadata": { "name": PROBE, "ownerReferences": [reference] } });
    cluster.apply(SERVICE_ACCOUNT, PLACE, child).await?;
    cluster.delete(MODEL_DEPLOYMENT, PLACE, PROBE).await?;
    until(
        Duration::from_secs(120),
        "a child of a deleted object to go",
        async || {
            let child = cluster.get(SERVICE_ACCOUNT, PLACE, PROBE).await?;
            Ok(Seen::when(child.is_none(), || "it is there".to_owned()))
        },
    )
    .await
}
