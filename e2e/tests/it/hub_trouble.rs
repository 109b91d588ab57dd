//! The hub says no, or breaks off. The condition says so in words that a person can act on, and a mended hub heals it without a touch.

use std::time::Duration;

use anyhow::ensure;
use chandler_e2e::hub_pod::ENDPOINT;
use chandler_e2e::story::{Company, story};
use serde_json::json;

/// Two pods of Jobs start, ask and fail.
const TOLD_WITHIN: Duration = Duration::from_secs(90);

/// The runtime itself retries a hub that breaks off for about a minute before it gives up.
const TOLD_AFTER_RETRIES: Duration = Duration::from_secs(200);

/// The condition that tells of weights that are not there.
const NOT_CACHED: [(&str, &str); 1] = [("WeightsCached", "False")];

#[test]
fn a_repository_that_the_hub_does_not_know_is_told_and_heals_when_it_appears() {
    story("not-found", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let answer = json!({ "then": {
            "status": 404,
            "headers": { "X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found" },
            "body": "{\"error\":\"Repository not found\"}",
        } });
        hub.spoil(&repository, answer).await?;
        story.deploy().await?;
        let texts = [repository.as_str(), ENDPOINT];
        let conditions = [("WeightsCached", "False"), ("Ready", "False")];
        story
            .told(TOLD_WITHIN, &conditions, "NotFoundOnHub", &texts)
            .await?;
        hub.mend(&repository).await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn a_hub_that_wants_a_login_is_told_and_heals_when_it_no_longer_does() {
    story("unauthorized", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        hub.offer(
            &repository,
            json!({ "access": "private", "tokens": ["secret"] }),
        )
        .await?;
        let object = chandler_e2e::model::deployment(&repository);
        story
            .apply(chandler_e2e::cluster::MODEL_DEPLOYMENT, object)
            .await?;
        let texts = [repository.as_str(), "401", "tokenSecretRef"];
        story
            .told(TOLD_WITHIN, &NOT_CACHED, "CredentialsMissing", &texts)
            .await?;
        hub.offer(&repository, json!({})).await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn a_hub_that_asks_to_slow_down_is_told_at_once_and_heals() {
    story("rate-limited", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let refusal = json!({ "then": { "status": 429, "headers": { "Retry-After": "600" }, "body": "slow down" } });
        hub.spoil(&repository, refusal).await?;
        story.deploy().await?;
        // Longer than the runtime itself would wait, so it says so without a further try; it needs nobody to act.
        let conditions = [
            ("WeightsCached", "False"),
            ("Ready", "False"),
            ("Reconciling", "True"),
        ];
        let texts = [
            repository.as_str(),
            ENDPOINT,
            "429",
            "asked again later",
            "600",
        ];
        story
            .told(TOLD_WITHIN, &conditions, "HubRateLimited", &texts)
            .await?;
        hub.mend(&repository).await?;
        story.healed().await?;
        Ok(())
    });
}

#[test]
fn a_connection_that_is_cut_at_half_of_every_try_is_told_and_heals() {
    story("cut", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        // Were ranges honoured, every try would bring half of the rest.
        let cut = json!({ "site": "cdn", "then": { "cutAfterPercent": 50, "ignoreRange": true } });
        hub.spoil(&repository, cut).await?;
        story.deploy().await?;
        let texts = [".gguf"];
        story
            .told(TOLD_AFTER_RETRIES, &NOT_CACHED, "HubUnreachable", &texts)
            .await?;
        hub.mend(&repository).await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn a_connection_that_is_cut_once_is_resumed_where_it_broke_off() {
    story("cut-once", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        // The first request is the look at the file's header, before anything is fetched.
        let cut = json!({ "site": "cdn", "method": "GET", "skip": 1, "times": 1, "then": { "cutAfterPercent": 50 } });
        hub.spoil(&repository, cut).await?;
        story.deploy().await?;
        story.ready().await?;
        let log = hub.requests(&repository).await?;
        let loads: Vec<_> = log.iter().filter(|entry| entry.is_download()).collect();
        ensure!(loads.len() == 2, "{loads:?}");
        let range = loads[1].range.as_deref().unwrap_or_default();
        let first: u64 = range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap_or(0);
        ensure!(first > 40_000_000, "not resumed but begun again: {range:?}");
        Ok(())
    });
}

#[test]
fn wrong_bytes_are_never_served() {
    story("wrong-bytes", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let wrong = json!({ "site": "cdn", "then": { "wrongBytes": { "start": 50_000_000, "end": 50_000_016 } } });
        hub.spoil(&repository, wrong).await?;
        story.deploy().await?;
        let texts = [".gguf", "sha256"];
        story
            .told(TOLD_AFTER_RETRIES, &NOT_CACHED, "DigestMismatch", &texts)
            .await?;
        hub.mend(&repository).await?;
        story.ready().await?;
        Ok(())
    });
}
