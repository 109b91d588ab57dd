//! A gated repository needs one Secret and one ModelDeployment.

use std::time::Duration;

use anyhow::ensure;
use chandler_e2e::chat::QUESTION;
use chandler_e2e::cluster::{MODEL_DEPLOYMENT, SECRET};
use chandler_e2e::hub::Site;
use chandler_e2e::model;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::run;
use serde_json::{Value, json};

const TOLD_WITHIN: Duration = Duration::from_secs(90);

fn secret(token: &str) -> Value {
    json!({ "metadata": { "name": "huggingface" }, "stringData": { "token": token } })
}

async fn gate(story: &Story) -> anyhow::Result<Value> {
    let settings =
        json!({ "access": "gated", "tokens": ["hf_member"], "otherTokens": ["hf_guest"] });
    story.world.hub.offer(&story.repository(), settings).await?;
    let mut object = model::deployment(&story.repository());
    object["spec"]["weights"] =
        json!({ "tokenSecretRef": { "name": "huggingface", "key": "token" } });
    Ok(object)
}

#[test]
fn one_secret_and_one_deployment_are_enough_for_a_gated_repository() {
    story("gated", Company::Welcome, async |story| {
        let object = gate(story).await?;
        story.apply(SECRET, secret("hf_member")).await?;
        story.apply(MODEL_DEPLOYMENT, object).await?;
        let ready = story.ready().await?;
        let answer = story
            .endpoint(&ready)
            .await?
            .ask("smollm2", QUESTION)
            .await?;
        ensure!(answer.text().contains("Paris"), "{answer:?}");

        let log = story.world.hub.requests(&story.repository()).await?;
        let on_cdn: Vec<_> = log.iter().filter(|entry| entry.site == Site::Cdn).collect();
        ensure!(!on_cdn.is_empty(), "nothing was fetched: {log:?}");
        ensure!(
            on_cdn.iter().all(|entry| !entry.authorization),
            "the token went to the CDN: {on_cdn:?}"
        );
        let everything = run(
            "kubectl",
            &["get", "pods,jobs,deployments,modelcaches.chandler.dev,modeldeployments.chandler.dev,events", "-n", &story.namespace, "-o", "json"],
        )
        .await?;
        ensure!(
            !everything.contains("hf_member"),
            "the token stands in an object"
        );
        Ok(())
    });
}

#[test]
fn a_missing_secret_and_a_licence_not_accepted_are_told_apart_and_heal() {
    story("gated-missing", Company::Welcome, async |story| {
        let object = gate(story).await?;
        story.apply(MODEL_DEPLOYMENT, object).await?;
        let message = story
            .reason(
                TOLD_WITHIN,
                ("WeightsCached", "False", "CredentialsMissing"),
            )
            .await?;
        ensure!(message.contains(&story.repository()), "{message}");
        // What is missing is named: the Secret that the object refers to.
        ensure!(message.contains("huggingface"), "{message}");

        // It goes on with the Secret that is there now, and fails for another reason.
        story.disturbs();
        story.apply(SECRET, secret("hf_guest")).await?;
        let message = story
            .reason(
                Duration::from_secs(180),
                ("WeightsCached", "False", "LicenceNotAccepted"),
            )
            .await?;
        ensure!(message.to_lowercase().contains("licence"), "{message}");
        ensure!(
            !message.contains("hf_guest"),
            "the token stands in the message"
        );

        story.apply(SECRET, secret("hf_member")).await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn a_token_that_is_rotated_in_the_middle_of_a_fetch_ends_it_and_its_successor_goes_on() {
    story("rotated", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let valid = |token: &str| json!({ "access": "gated", "tokens": [token] });
        hub.offer(&repository, valid("hf_old")).await?;
        let slow_and_cut = json!({
            "site": "cdn", "method": "GET", "skip": 1, "times": 1,
            "then": { "bytesPerSecond": 8_000_000, "cutAfterPercent": 50 },
        });
        hub.spoil(&repository, slow_and_cut).await?;
        story.apply(SECRET, secret("hf_old")).await?;
        let mut object = model::deployment(&repository);
        object["spec"]["weights"] =
            json!({ "tokenSecretRef": { "name": "huggingface", "key": "token" } });
        story.apply(MODEL_DEPLOYMENT, object).await?;
        story.fetching().await?;
        hub.offer(&repository, valid("hf_new")).await?;
        let message = story
            .reason(
                TOLD_WITHIN,
                ("WeightsCached", "False", "CredentialsMissing"),
            )
            .await?;
        ensure!(!message.contains("hf_old"), "the token stands in {message}");

        // Nothing but the Secret is touched.
        story.apply(SECRET, secret("hf_new")).await?;
        story.healed().await?;
        let log = hub.requests(&repository).await?;
        let on_cdn = log.iter().filter(|entry| entry.site == Site::Cdn);
        let begun: Vec<_> = on_cdn.filter_map(|entry| entry.range.clone()).collect();
        ensure!(
            begun.iter().any(|range| !range.starts_with("bytes=0-")),
            "the second fetch began anew: {begun:?}"
        );
        Ok(())
    });
}
