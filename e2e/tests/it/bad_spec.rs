//! A spec that the schema cannot refuse and that cannot be worked on: the condition says so at once, with what would be right.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{CLAIM, JOB, MODEL_CACHE, MODEL_DEPLOYMENT, names};
use chandler_e2e::model;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

/// No Job has to run for it.
const AT_ONCE: Duration = Duration::from_secs(10);

async fn check(story: &Story, model: Value, reason: &str, texts: &[&str]) -> Result<()> {
    let cluster = &story.world.cluster;
    let object = json!({
        "metadata": { "name": model::NAME },
        "spec": { "model": model, "accelerators": [{ "type": "cpu" }] },
    });
    story.apply(MODEL_DEPLOYMENT, object).await?;
    let conditions = [("ModelResolved", "False"), ("Ready", "False")];
    story.told(AT_ONCE, &conditions, reason, texts).await?;
    for kind in [JOB, MODEL_CACHE, CLAIM] {
        let made = names(&cluster.list(kind, &story.namespace, "").await?);
        ensure!(
            made.is_empty(),
            "made for a spec that cannot be worked on: {made:?}"
        );
    }
    Ok(())
}

#[test]
fn a_model_that_cannot_be_picked_is_told_at_once_with_what_there_is() {
    story("bad-spec", Company::Welcome, async |story| {
        check(
            story,
            json!({ "card": "smollm3" }),
            "CardNotFound",
            &["smollm3", "smollm2-135m-instruct", "spec.model.card"],
        )
        .await?;
        check(
            story,
            json!({ "card": "llama-3.2-vision-instruct" }),
            "VariantAmbiguous",
            &["11", "90", "sizeInBillions"],
        )
        .await?;
        check(
            story,
            json!({ "card": "smollm2-135m-instruct", "quantization": "Q9_9" }),
            "VariantNotFound",
            &["Q9_9", "Q4_1"],
        )
        .await
    });
}

#[test]
fn a_corrected_spec_takes_away_the_job_that_asked_for_the_wrong_thing() {
    story("corrected", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        let wrong = format!("{}/Smol-Typo", story.namespace);
        story
            .apply(MODEL_DEPLOYMENT, model::deployment(&wrong))
            .await?;
        let first = until(Duration::from_secs(30), "a Job that asks", async || {
            let jobs = names(&cluster.list(JOB, &story.namespace, "").await?);
            Ok(match jobs.as_slice() {
                [one] => Seen::Yes(one.clone()),
                _ => Seen::NotYet(format!("{jobs:?}")),
            })
        })
        .await?;
        story.deploy().await?;
        until(
            Duration::from_secs(60),
            "another Job in its place",
            async || {
                let jobs = names(&cluster.list(JOB, &story.namespace, "").await?);
                let replaced = !jobs.is_empty() && !jobs.contains(&first);
                Ok(Seen::when(replaced, || {
                    format!("{jobs:?}, first was {first}")
                }))
            },
        )
        .await
    });
}
