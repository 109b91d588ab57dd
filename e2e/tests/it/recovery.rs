//! The operator, the kubelet or another user goes; what was begun goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::chat::QUESTION;
use chandler_e2e::cluster::{JOB, MODEL_CACHE, MODEL_DEPLOYMENT, names};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::run;
use chandler_e2e::wait::{Seen, until};
use chandler_e2e::{model, operator, process};
use serde_json::json;

/// 98 MB at this rate take about 12 seconds: long enough to kill the operator in the middle.
const SLOW_BYTES_PER_SECOND: u64 = 8_000_000;

async fn fetch_jobs(story: &Story) -> Result<Vec<String>> {
    let selector = "app.kubernetes.io/component=fetch";
    Ok(names(
        &story
            .world
            .cluster
            .list(JOB, &story.namespace, selector)
            .await?,
    ))
}

#[test]
fn an_operator_killed_in_the_middle_of_the_fetch_still_converges_with_one_job() {
    story("operator-killed", Company::Welcome, async |story| {
        let hub = &story.world.hub;
        let repository = story.repository();
        let slow = json!({ "site": "cdn", "then": { "bytesPerSecond": SLOW_BYTES_PER_SECOND } });
        hub.spoil(&repository, slow).await?;
        story.deploy().await?;
        story.fetching().await?;
        let jobs = fetch_jobs(story).await?;
        let killed = operator::kill(&story.world.cluster).await?;
        story.ready().await?;
        let successor = operator::running_pod(&story.world.cluster).await?;
        ensure!(successor != killed, "the operator {killed} was not killed");
        ensure!(jobs.len() == 1, "{jobs:?}");
        ensure!(
            fetch_jobs(story).await? == jobs,
            "the successor made another Job"
        );
        let log = hub.requests(&repository).await?;
        let loads = log.iter().filter(|entry| entry.is_download()).count();
        ensure!(loads == 1, "the weights were asked for {loads} times");
        Ok(())
    });
}

#[test]
fn a_kubelet_that_starts_again_in_the_middle_of_a_fetch_costs_nothing() {
    // Pods of other stories would miss it.
    story("kubelet", Company::Alone, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let slow = json!({ "site": "cdn", "then": { "bytesPerSecond": SLOW_BYTES_PER_SECOND } });
        hub.spoil(&repository, slow).await?;
        story.deploy().await?;
        story.fetching().await?;
        let killed = process::of_cluster("kubelet")?;
        run("kill", &["-KILL", &killed.to_string()]).await?;
        story.healed().await?;
        let now = process::of_cluster("kubelet")?;
        ensure!(now != killed, "the kubelet {killed} was not killed");
        ensure!(fetch_jobs(story).await?.len() == 1, "another Job was made");
        let log = hub.requests(&repository).await?;
        let loads = log.iter().filter(|entry| entry.is_download()).count();
        ensure!(loads == 1, "the weights were asked for {loads} times");
        Ok(())
    });
}

#[test]
fn a_cache_that_two_models_share_stays_with_the_one_that_stays() {
    story("sharing", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        let delete = json!({ "storage": { "reclaimPolicy": "Delete" } });
        story.deploy_with(json!({ "weights": delete })).await?;
        let mut other = model::deployment(&story.repository());
        other["metadata"]["name"] = json!("other");
        other["spec"]["weights"] = delete.clone();
        story.apply(MODEL_DEPLOYMENT, other).await?;
        story.ready().await?;
        model::ready(cluster, &story.namespace, "other").await?;
        let caches = async || cluster.list(MODEL_CACHE, &story.namespace, "").await;
        let both = caches().await?;
        ensure!(both.len() == 1, "{both:?}");
        let users = json!(["other", model::NAME]);
        ensure!(
            both[0]["status"]["usedBy"] == users,
            "{}",
            both[0]["status"]
        );

        cluster
            .delete(MODEL_DEPLOYMENT, &story.namespace, "other")
            .await?;
        let users = json!([model::NAME]);
        until(Duration::from_secs(60), "one user to be left", async || {
            let left = caches().await?;
            ensure!(names(&left) == names(&both), "the cache went: {left:?}");
            let status = &left[0]["status"];
            Ok(Seen::when(status["usedBy"] == users, || status.to_string()))
        })
        .await?;
        let ready = story.healed().await?;
        let endpoint = story.endpoint(&ready).await?;
        let answer = endpoint.ask(model::NAME, QUESTION).await?;
        ensure!(answer.text().contains("Paris"), "{answer:?}");
        let log = story.world.hub.requests(&story.repository()).await?;
        let loads = log.iter().filter(|entry| entry.is_download()).count();
        ensure!(loads == 1, "the weights were asked for {loads} times");
        Ok(())
    });
}
