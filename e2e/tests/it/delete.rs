//! Deleting leaves nothing, or exactly the volume that was to be kept.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{
    CLAIM, DEPLOYMENT, JOB, Kind, MODEL_CACHE, MODEL_DEPLOYMENT, NAMESPACE, POD, SERVICE, names,
};
use chandler_e2e::model::{self, NAME};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::wait::{Seen, until};
use chandler_e2e::{namespace, operator};
use serde_json::json;

/// The promise of the project: within a minute.
const WITHIN: Duration = Duration::from_secs(60);

async fn deploy_with_policy(story: &Story, policy: &str) -> Result<()> {
    story
        .world
        .hub
        .offer(&story.repository(), json!({}))
        .await?;
    let mut object = model::deployment(&story.repository());
    object["spec"]["weights"] = json!({ "storage": { "reclaimPolicy": policy } });
    story.apply(MODEL_DEPLOYMENT, object).await?;
    story.ready().await?;
    Ok(())
}

async fn wait_until_gone(story: &Story, kinds: &[(&str, Kind)]) -> Result<()> {
    let cluster = &story.world.cluster;
    until(WITHIN, "the children to be gone", async || {
        let mut left = Vec::new();
        for (word, kind) in kinds {
            let found = names(&cluster.list(*kind, &story.namespace, "").await?);
            left.extend(found.iter().map(|name| format!("{word} {name}")));
        }
        Ok(Seen::when(left.is_empty(), || left.join(", ")))
    })
    .await
}

#[test]
fn deleting_leaves_nothing_when_the_policy_is_delete() {
    story("delete", Company::Welcome, async |story| {
        deploy_with_policy(story, "Delete").await?;
        let cluster = &story.world.cluster;
        cluster
            .delete(MODEL_DEPLOYMENT, &story.namespace, NAME)
            .await?;
        wait_until_gone(
            story,
            &[
                ("ModelDeployment", MODEL_DEPLOYMENT),
                ("Deployment", DEPLOYMENT),
                ("Service", SERVICE),
                ("Job", JOB),
                ("Pod", POD),
                ("ModelCache", MODEL_CACHE),
                ("PersistentVolumeClaim", CLAIM),
            ],
        )
        .await
    });
}

#[test]
fn deleting_keeps_the_volume_when_the_policy_is_retain_and_it_is_used_again() {
    story("retain", Company::Welcome, async |story| {
        deploy_with_policy(story, "Retain").await?;
        let cluster = &story.world.cluster;
        let claims = names(&cluster.list(CLAIM, &story.namespace, "").await?);
        ensure!(claims.len() == 1, "{claims:?}");
        cluster
            .delete(MODEL_DEPLOYMENT, &story.namespace, NAME)
            .await?;
        wait_until_gone(
            story,
            &[
                ("ModelDeployment", MODEL_DEPLOYMENT),
                ("Deployment", DEPLOYMENT),
                ("Service", SERVICE),
            ],
        )
        .await?;
        let left = names(&cluster.list(CLAIM, &story.namespace, "").await?);
        ensure!(left == claims, "the volume did not stay: {left:?}");

        let loads = async || -> Result<usize> {
            let log = story.world.hub.requests(&story.repository()).await?;
            Ok(log.iter().filter(|entry| entry.is_download()).count())
        };
        let before = loads().await?;
        deploy_with_policy(story, "Retain").await?;
        ensure!(loads().await? == before, "the weights were fetched again");
        Ok(())
    });
}

async fn caches(story: &Story) -> Result<Vec<String>> {
    let found = story
        .world
        .cluster
        .list(MODEL_CACHE, &story.namespace, "")
        .await?;
    Ok(names(&found))
}

/// Two caches that nobody uses any more, in the order in which they were left.
async fn two_left_caches(story: &Story) -> Result<[String; 2]> {
    let cluster = &story.world.cluster;
    deploy_with_policy(story, "Retain").await?;
    let first = caches(story).await?;
    let mut other = model::deployment(&story.repository());
    other["metadata"]["name"] = json!("other");
    other["spec"]["weights"] = json!({ "storage": { "size": "1Gi" } });
    story.apply(MODEL_DEPLOYMENT, other).await?;
    model::ready(cluster, &story.namespace, "other").await?;
    let mut both = caches(story).await?;
    both.sort_by_key(|name| !first.contains(name));
    story.disturbs();
    for name in [NAME, "other"] {
        cluster
            .delete(MODEL_DEPLOYMENT, &story.namespace, name)
            .await?;
        let of = format!("chandler.dev/model-deployment={name}");
        until(WITHIN, "its pods to be gone", async || {
            let pods = cluster.list(POD, &story.namespace, &of).await?;
            Ok(Seen::when(pods.is_empty(), || names(&pods).join(", ")))
        })
        .await?;
    }
    ensure!(
        caches(story).await?.len() == 2,
        "a cache went although nobody said so"
    );
    both.try_into()
        .map_err(|left| anyhow::anyhow!("not two caches: {left:?}"))
}

/// Installs the operator with this value, and waits until one cache is left with its claim.
async fn collect(story: &Story, value: &str, left: &str) -> Result<()> {
    let (cluster, images) = (&story.world.cluster, &story.world.images);
    let mut values = operator::values(images)?;
    values.push(value.to_owned());
    operator::install_with(cluster, &values).await?;
    until(WITHIN, "the other cache to go with its claim", async || {
        let claims = names(&cluster.list(CLAIM, &story.namespace, "").await?);
        let caches = caches(story).await?;
        let are_gone = caches == [left] && claims == caches;
        Ok(Seen::when(are_gone, || format!("{caches:?}, {claims:?}")))
    })
    .await
}

#[test]
fn caches_that_nobody_uses_go_with_their_volumes_where_the_installation_says_so_but_for_pinned_ones()
 {
    story("collected", Company::Alone, async |story| {
        let (cluster, images) = (&story.world.cluster, &story.world.images);
        let [pinned, _] = two_left_caches(story).await?;
        let pin = async |value: serde_json::Value| {
            let patch = json!({ "metadata": { "labels": { "chandler.dev/pinned": value } } });
            cluster
                .change(MODEL_CACHE, &story.namespace, &pinned, &patch)
                .await
        };
        pin(json!("true")).await?;
        collect(story, "caches.unusedFor=2s", &pinned).await?;
        pin(json!(null)).await?;
        wait_until_gone(
            story,
            &[
                ("ModelCache", MODEL_CACHE),
                ("PersistentVolumeClaim", CLAIM),
            ],
        )
        .await?;
        operator::install(cluster, images).await
    });
}

#[test]
fn the_cache_that_was_left_first_goes_when_a_namespace_holds_more_than_it_may() {
    story("over-quota", Company::Alone, async |story| {
        let (cluster, images) = (&story.world.cluster, &story.world.images);
        let [_, second] = two_left_caches(story).await?;
        // Each holds 98 MB.
        collect(story, "caches.namespaceQuota=150M", &second).await?;
        operator::install(cluster, images).await
    });
}

#[test]
fn a_namespace_with_a_live_deployment_is_gone_within_a_minute() {
    story("namespace", Company::Welcome, async |story| {
        story.deploy().await?;
        story.ready().await?;
        // What runs may go before the object that asks for it.
        story.disturbs();
        // The wait inside has a deadline of one minute.
        namespace::gone(&story.world.cluster, &story.namespace).await
    });
}

#[test]
fn a_namespace_that_takes_long_to_go_is_told_and_is_no_failure_of_the_deployment() {
    story("leaving", Company::Welcome, async |story| {
        let (cluster, namespace) = (&story.world.cluster, &story.namespace);
        story.deploy().await?;
        story.ready().await?;
        // Pods go first, and everything else waits for the last of them.
        let container = json!({
            "name": "main",
            "image": "none",
            "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
        });
        let held = json!({
            "metadata": { "name": "held", "finalizers": ["example.com/held"] },
            "spec": {
                "schedulingGates": [{ "name": "example.com/held" }],
                "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
                "containers": [container],
            },
        });
        story.apply(POD, held).await?;
        story.disturbs();
        cluster.delete(NAMESPACE, "", namespace).await?;
        cluster.delete(SERVICE, namespace, NAME).await?;
        let not_ready = [("Ready", "False"), ("Reconciling", "True")];
        let texts = ["Service", namespace, "being terminated"];
        story
            .told(WITHIN, &not_ready, "NamespaceTerminating", &texts)
            .await?;
        let free = json!({ "metadata": { "finalizers": null } });
        cluster.change(POD, namespace, "held", &free).await?;
        namespace::gone(cluster, namespace).await
    });
}
