//! Deleting leaves nothing, or exactly the volume that was to be kept.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{
    CLAIM, DEPLOYMENT, JOB, Kind, MODEL_CACHE, MODEL_DEPLOYMENT, POD, SERVICE, names,
};
use chandler_e2e::model::{self, NAME};
use chandler_e2e::namespace;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::wait::{Seen, until};
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
