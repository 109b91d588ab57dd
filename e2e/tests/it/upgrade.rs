//! Helm upgrades and uninstalls the operator; the objects and what they run stay.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::chat::QUESTION;
use chandler_e2e::cluster::{MODEL_CACHE, MODEL_CARD, MODEL_DEPLOYMENT, POD, names};
use chandler_e2e::model::{NAME, SERVING};
use chandler_e2e::operator;
use chandler_e2e::story::{Company, Story, story};
use tokio::time::Instant;

async fn uid(story: &Story) -> Result<String> {
    let object = story
        .world
        .cluster
        .get(MODEL_DEPLOYMENT, &story.namespace, NAME)
        .await?
        .context("the ModelDeployment is gone")?;
    Ok(object["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

async fn serving_pods(story: &Story) -> Result<Vec<String>> {
    Ok(names(
        &story
            .world
            .cluster
            .list(POD, &story.namespace, SERVING)
            .await?,
    ))
}

#[test]
fn helm_upgrade_and_uninstall_keep_the_objects_and_what_they_run() {
    story("upgrade", Company::Alone, async |story| {
        let (cluster, images) = (&story.world.cluster, &story.world.images);
        story.deploy().await?;
        let ready = story.ready().await?;
        let (object, pods) = (uid(story).await?, serving_pods(story).await?);
        ensure!(pods.len() == 1, "{pods:?}");
        let endpoint = story.endpoint(&ready).await?;

        let first = operator::running_pod(cluster).await?;
        let mut values = operator::values(images)?;
        values.push("log.level=debug".to_owned());
        operator::install_with(cluster, &values).await?;
        ensure!(
            operator::running_pod(cluster).await? != first,
            "nothing was upgraded"
        );
        story.ready().await?;
        ensure!(
            uid(story).await? == object,
            "the upgrade replaced the object"
        );
        ensure!(
            serving_pods(story).await? == pods,
            "the upgrade restarted the model"
        );

        let started = Instant::now();
        operator::uninstall(cluster).await?;
        let took = started.elapsed();
        ensure!(took < Duration::from_secs(60), "uninstalling took {took:?}");
        ensure!(
            uid(story).await? == object,
            "uninstalling removed the object"
        );
        let caches = cluster.list(MODEL_CACHE, &story.namespace, "").await?;
        let cards = cluster.list(MODEL_CARD, "", "").await?;
        ensure!(
            caches.len() == 1 && !cards.is_empty(),
            "uninstalling removed caches or cards: {} and {}",
            caches.len(),
            cards.len()
        );
        let answer = endpoint.ask(NAME, QUESTION).await?;
        ensure!(answer.text().contains("Paris"), "{answer:?}");

        operator::install(cluster, images).await?;
        story.ready().await?;
        ensure!(uid(story).await? == object, "the object is another one");
        ensure!(
            serving_pods(story).await? == pods,
            "installing again restarted the model"
        );
        Ok(())
    });
}
