//! Only who has a key is answered; keys change without a restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{MODEL_DEPLOYMENT, POD, SECRET, names};
use chandler_e2e::model::{self, NAME, SERVING};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::traffic::Traffic;
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

#[test]
fn a_key_is_replaced_while_requests_run_and_none_of_them_fails() {
    const OLD: &str = "first-key-of-the-story";
    const NEW: &str = "second-key-of-the-story";
    story("rotation", Company::Welcome, async |story| {
        story
            .world
            .hub
            .offer(&story.repository(), json!({}))
            .await?;
        keys(story, &format!("client {OLD}\n")).await?;
        let mut object = model::deployment(&story.repository());
        object["spec"]["access"] = json!({ "apiKeySecretRef": { "name": "keys", "key": "api" } });
        story.apply(MODEL_DEPLOYMENT, object).await?;
        let ready = story.ready().await?;
        let endpoint = story.endpoint(&ready).await?;
        let counts = async |key: &str, status: u16| {
            until(CARRIED_WITHIN, "the changed keys to count", async || {
                let seen = endpoint.status_with_key("/models", Some(key)).await?;
                Ok(Seen::when(seen == status, || format!("{key}: {seen}")))
            })
            .await
        };
        counts(NEW, 401).await?;
        let with = async |key: &str| anyhow::Ok(story.endpoint(&ready).await?.with_key(key));
        let old = Traffic::start(vec![with(OLD).await?, with(OLD).await?]);
        // Both count while clients change from one to the other.
        keys(story, &format!("client {OLD}\nclient {NEW}\n")).await?;
        counts(NEW, 200).await?;
        let new = Traffic::start(vec![with(NEW).await?, with(NEW).await?]);
        let (answered, lost) = old.end().await?;
        ensure!(
            answered > 0 && lost.is_empty(),
            "{answered} answered with the old key, lost: {lost:?}"
        );
        keys(story, &format!("client {NEW}\n")).await?;
        counts(OLD, 401).await?;
        let refused = with(OLD).await?.ask(NAME, "Say yes.").await?;
        ensure!(
            refused.status == 401 && refused.error().is_some(),
            "{refused:?}"
        );
        let (answered, lost) = new.end().await?;
        println!("figure rotation_lost_requests {} requests", lost.len());
        ensure!(
            answered > 0 && lost.is_empty(),
            "{answered} answered with the new key, lost: {lost:?}"
        );
        Ok(())
    });
}
