//! Only who has a key is answered; keys change without a restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{MODEL_DEPLOYMENT, POD, SECRET, names};
use chandler_e2e::model::{self, NAME, SERVING};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::wait::{Seen, until};
use serde_json::json;

/// The kubelet carries a changed Secret into a pod about once a minute.
const CARRIED_WITHIN: Duration = Duration::from_secs(180);

async fn keys(story: &Story, text: &str) -> Result<()> {
    let secret = json!({ "metadata": { "name": "keys" }, "stringData": { "api": text } });
    story
        .world
        .cluster
        .apply(SECRET, &story.namespace, secret)
        .await?;
    Ok(())
}

#[test]
fn requests_need_a_key_and_a_changed_secret_counts_without_a_restart() {
    story("access", Company::Welcome, async |story| {
        story
            .world
            .hub
            .offer(&story.repository(), json!({}))
            .await?;
        keys(story, "first-key-of-the-story\n").await?;
        let mut object = model::deployment(&story.repository());
        object["spec"]["access"] = json!({ "apiKeySecretRef": { "name": "keys", "key": "api" } });
        story.apply(MODEL_DEPLOYMENT, object).await?;
        let ready = story.ready().await?;
        let endpoint = story.endpoint(&ready).await?;
        let status = async |key: Option<&str>| endpoint.status_with_key("/models", key).await;
        ensure!(status(None).await? == 401, "answered without a key");
        ensure!(
            status(Some("first-key-of-the")).await? == 401,
            "answered a part of a key"
        );
        ensure!(
            status(Some("first-key-of-the-story")).await? == 200,
            "refused the key"
        );
        let cluster = &story.world.cluster;
        let before = names(&cluster.list(POD, &story.namespace, SERVING).await?);
        keys(story, "second-key-of-the-story\n").await?;
        until(CARRIED_WITHIN, "the new key to count", async || {
            let (new, old) = (
                status(Some("second-key-of-the-story")).await?,
                status(Some("first-key-of-the-story")).await?,
            );
            Ok(Seen::when(new == 200 && old == 401, || {
                format!("new {new}, old {old} for {NAME}")
            }))
        })
        .await?;
        let after = names(&cluster.list(POD, &story.namespace, SERVING).await?);
        ensure!(before == after, "a changed key restarted pods");
        Ok(())
    });
}
