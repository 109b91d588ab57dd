//! Objects of the same name that belong to somebody else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::{BUDGET, DEPLOYMENT, Kind, MODEL_CACHE, MODEL_DEPLOYMENT, SERVICE};
use chandler_e2e::model::NAME;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

const TOLD_WITHIN: Duration = Duration::from_secs(120);

#[test]
fn a_foreign_child_of_the_same_name_is_never_applied_over() {
    story("conflict", Company::Welcome, async |story| {
        let selector = json!({ "matchLabels": { "app": "somebody-else" } });
        let pod = json!({
            "metadata": { "labels": { "app": "somebody-else" } },
            "spec": { "containers": [{
                "name": "theirs",
                "image": story.world.images.hub.reference(),
            }] },
        });
        let foreign = [
            (
                SERVICE,
                "Service",
                json!({ "selector": { "app": "somebody-else" }, "ports": [{ "port": 1234 }] }),
            ),
            (
                DEPLOYMENT,
                "Deployment",
                json!({ "replicas": 0, "selector": selector, "template": pod }),
            ),
            (
                BUDGET,
                "PodDisruptionBudget",
                json!({ "minAvailable": 1, "selector": selector }),
            ),
        ];
        for (kind, word, spec) in foreign {
            let object = json!({ "metadata": { "name": NAME }, "spec": spec });
            story.apply(kind, object).await?;
            story.deploy().await?;
            conflict(story, kind, word, NAME).await?;
            story
                .world
                .cluster
                .delete(MODEL_DEPLOYMENT, &story.namespace, NAME)
                .await?;
            gone(story, MODEL_DEPLOYMENT, NAME).await?;
            untouched(story, kind, NAME).await?;
            story
                .world
                .cluster
                .delete(kind, &story.namespace, NAME)
                .await?;
            gone(story, kind, NAME).await?;
        }
        story.deploy().await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn a_foreign_cache_of_the_same_name_is_never_applied_over() {
    story("conflict-cache", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        story.deploy().await?;
        let ready = story.ready().await?;
        let cache = ready["status"]["cache"].as_str().context("no cache")?;
        cluster
            .delete(MODEL_DEPLOYMENT, &story.namespace, NAME)
            .await?;
        gone(story, MODEL_DEPLOYMENT, NAME).await?;
        // A cache that somebody uses cannot be deleted.
        until(TOLD_WITHIN, "the cache to have no user", async || {
            let live = cluster.get(MODEL_CACHE, &story.namespace, cache).await?;
            let users = live.unwrap_or_default()["status"]["usedBy"].take();
            Ok(Seen::when(users.is_null(), || users.to_string()))
        })
        .await?;
        cluster.delete(MODEL_CACHE, &story.namespace, cache).await?;
        gone(story, MODEL_CACHE, cache).await?;
        let foreign = json!({
            "metadata": { "name": cache },
            "spec": { "source": { "claim": { "claimName": "somebody-elses" } } },
        });
        story.apply(MODEL_CACHE, foreign).await?;
        story.deploy().await?;
        conflict(story, MODEL_CACHE, "ModelCache", cache).await?;
        untouched(story, MODEL_CACHE, cache).await?;
        cluster.delete(MODEL_CACHE, &story.namespace, cache).await?;
        story.ready().await?;
        Ok(())
    });
}

/// Waits until the ModelDeployment names the object that has its child's name.
async fn conflict(story: &Story, kind: Kind, word: &str, name: &str) -> Result<()> {
    let wanted = ("ModelResolved", "False", "NameConflict");
    let message = story.reason(TOLD_WITHIN, wanted).await?;
    ensure!(message.contains(&format!("{word} {name} ")), "{message}");
    untouched(story, kind, name).await
}

/// What the operator writes has its field manager's name on it.
async fn untouched(story: &Story, kind: Kind, name: &str) -> Result<()> {
    let object: Value = story
        .world
        .cluster
        .get(kind, &story.namespace, name)
        .await?
        .with_context(|| format!("the foreign {name} is gone"))?;
    let managers = object["metadata"]["managedFields"].as_array();
    // Every ModelCache gets a status; nothing else may be written.
    let written = managers.into_iter().flatten().any(|manager| {
        manager["manager"]
            .as_str()
            .is_some_and(|manager| manager.contains("chandler-operator"))
            && manager["subresource"] != "status"
    });
    ensure!(!written, "the foreign object was changed: {object}");
    Ok(())
}

async fn gone(story: &Story, kind: Kind, name: &str) -> Result<()> {
    until(
        Duration::from_secs(60),
        "an object to be gone",
        async || {
            let left = story
                .world
                .cluster
                .get(kind, &story.namespace, name)
                .await?;
            Ok(Seen::when(left.is_none(), || format!("{left:?}")))
        },
    )
    .await
}
