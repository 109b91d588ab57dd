//! A namespace for each story: restricted Pod Security, its state told on failure, gone at the end unless `KEEP=1`.

use std::time::Duration;

use anyhow::Result;
use kube::api::ListParams;
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE, NODE, POD, names};
use crate::fake_node::LEFTOVER;
use crate::operator;
use crate::tools::run;
use crate::wait::{Seen, until};

/// The label by which leftovers of earlier runs are found.
const STORY_LABEL: &str = "chandler.dev/story";

/// Makes a namespace that takes only restricted pods.
///
/// # Errors
/// When the API server refuses.
pub async fn make(cluster: &Cluster, name: &str, story: &str) -> Result<()> {
    let namespace = json!({
        "metadata": {
            "name": name,
            "labels": {
                STORY_LABEL: story,
                "pod-security.kubernetes.io/enforce": "restricted",
            },
        },
    });
    cluster.apply(NAMESPACE, "", namespace).await?;
    Ok(())
}

/// Whether namespaces are to be kept for a look at them.
#[must_use]
pub fn is_kept() -> bool {
    std::env::var("KEEP").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// Removes what earlier runs left, except what every run uses again.
///
/// # Errors
/// When the API server refuses.
pub async fn remove_leftovers(cluster: &Cluster) -> Result<()> {
    let params = ListParams::default().labels(STORY_LABEL);
    let found = cluster.api(NAMESPACE, "").list(&params).await?;
    for namespace in found {
        let name = namespace.metadata.name.unwrap_or_default();
        if name != crate::hub_pod::NAMESPACE && name != operator::NAMESPACE {
            cluster.delete(NAMESPACE, "", &name).await?;
        }
    }
    // Nodes that a story made, with kwok behind them.
    for node in names(&cluster.list(NODE, "", LEFTOVER).await?) {
        cluster.delete(NODE, "", &node).await?;
    }
    Ok(())
}

/// Deletes a namespace and waits until it is gone.
///
/// # Errors
/// When it is still there after a minute.
pub async fn gone(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.delete(NAMESPACE, "", name).await?;
    let what = format!("namespace {name} to be gone");
    until(Duration::from_secs(60), &what, async || {
        let found = cluster.get(NAMESPACE, "", name).await?;
        Ok(Seen::when(found.is_none(), || {
            found.unwrap_or_default()["status"].to_string()
        }))
    })
    .await
}

/// Writes to standard error what a person would look at after a failure.
pub async fn dump(cluster: &Cluster, namespace: &str) {
    eprintln!("---- namespace {namespace}");
    let kinds = "modeldeployments.chandler.dev,modelcaches.chandler.dev,jobs,deployments,pods,services,persistentvolumeclaims";
    show(&["get", kinds, "-n", namespace, "-o", "wide"]).await;
    for kind in ["modeldeployments.chandler.dev", "modelcaches.chandler.dev"] {
        show(&["get", kind, "-n", namespace, "-o", "yaml"]).await;
    }
    show(&[
        "get",
        "events",
        "-n",
        namespace,
        "--sort-by=.metadata.creationTimestamp",
    ])
    .await;
    log_ends(cluster, namespace).await;
    eprintln!("---- operator");
    show(&["get", "pods", "-n", operator::NAMESPACE, "-o", "wide"]).await;
    log_ends(cluster, operator::NAMESPACE).await;
}

async fn log_ends(cluster: &Cluster, namespace: &str) {
    let pods = cluster.list(POD, namespace, "").await.unwrap_or_default();
    for pod in names(&pods) {
        for previous in ["--previous=true", "--previous=false"] {
            let arguments = [
                "logs",
                "-n",
                namespace,
                pod.as_str(),
                "--all-containers",
                "--tail=40",
                previous,
            ];
            // A container without an earlier life has no earlier log.
            if let Ok(text) = run("kubectl", &arguments).await {
                eprintln!("---- log of {pod} ({previous})\n{text}");
            }
        }
    }
}

async fn show(arguments: &[&str]) {
    match run("kubectl", arguments).await {
        Ok(text) => eprintln!("{text}"),
        Err(error) => eprintln!("{error:#}"),
    }
}
