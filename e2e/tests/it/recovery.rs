//! The operator dies; what it began goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{JOB, names};
use chandler_e2e::operator;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::wait::{Seen, until};
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
        until(
            Duration::from_secs(90),
            "the fetch to be under way",
            async || {
                let log = hub.requests(&repository).await?;
                let is_loading = log.iter().any(|entry| entry.is_download());
                Ok(Seen::when(is_loading, || format!("{} requests", log.len())))
            },
        )
        .await?;
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
