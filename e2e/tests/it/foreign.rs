//! Kind ModelDeployment of another group beside ours: each is found by its full name, and neither touches the other.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::model::NAME;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::{run, run_with_input};
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

const THEIRS: &str = "modeldeployments.example.com";

#[test]
fn a_kind_of_the_same_name_in_another_group_changes_nothing() {
    // Whoever writes the kind without a group may get theirs, so no other story runs meanwhile.
    story("foreign", Company::Alone, async |story| {
        remove().await?;
        let told = beside(story).await;
        remove().await?;
        told
    });
}

async fn beside(story: &Story) -> Result<()> {
    run_with_input("kubectl", &["create", "-f", "-"], &definition().to_string()).await?;
    let waited = format!("crd/{THEIRS}");
    run(
        "kubectl",
        &[
            "wait",
            "--for=condition=Established",
            &waited,
            "--timeout=60s",
        ],
    )
    .await?;
    let theirs = json!({
        "apiVersion": "example.com/v1",
        "kind": "ModelDeployment",
        "metadata": { "name": NAME, "namespace": story.namespace },
        "spec": { "model": { "card": "smollm2-135m-instruct" } },
    });
    run_with_input("kubectl", &["create", "-f", "-"], &theirs.to_string()).await?;
    let before = get(story, THEIRS).await?;
    story.deploy().await?;
    story.ready().await?;
    for name in ["modeldeployments.chandler.dev", "chmd"] {
        let ours = get(story, name).await?;
        ensure!(
            ours["apiVersion"] == "chandler.dev/v1alpha1",
            "{name} is {}",
            ours["apiVersion"]
        );
    }
    let after = get(story, THEIRS).await?;
    ensure!(after == before, "theirs was {before}, and is {after}");
    Ok(())
}

async fn get(story: &Story, kind: &str) -> Result<Value> {
    let arguments = ["get", kind, NAME, "-n", &story.namespace, "-o", "json"];
    Ok(serde_json::from_str(&run("kubectl", &arguments).await?)?)
}

/// Takes their kind away, with all objects of it.
async fn remove() -> Result<()> {
    run(
        "kubectl",
        &[
            "delete",
            "crd",
            THEIRS,
            "--ignore-not-found",
            "--wait=false",
        ],
    )
    .await?;
    until(
        Duration::from_secs(60),
        "their kind to be gone",
        async || {
            let left = run(
                "kubectl",
                &["get", "crd", THEIRS, "--ignore-not-found", "-o", "name"],
            )
            .await?;
            Ok(Seen::when(left.trim().is_empty(), || left.clone()))
        },
    )
    .await
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": THEIRS },
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": { "kind": "ModelDeployment", "plural": "modeldeployments", "singular": "modeldeployment", "listKind": "ModelDeploymentList" },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            }],
        },
    })
}
