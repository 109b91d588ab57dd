//! A spec that the schema cannot refuse and that cannot be worked on: the condition says so at once, with what would be right.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::{CLAIM, JOB, MODEL_CACHE, MODEL_CARD, MODEL_DEPLOYMENT, names};
use chandler_e2e::model::{self, NOT_CACHED};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

/// No Job has to run for it.
const AT_ONCE: Duration = Duration::from_secs(10);

/// A Job has to ask the hub first.
const ASKED_WITHIN: Duration = Duration::from_secs(90);

/// The conditions that tell of a model that cannot be picked or run.
const NOT_RESOLVED: [(&str, &str); 3] = [
    ("ModelResolved", "False"),
    ("Ready", "False"),
    ("Stalled", "True"),
];

async fn check(story: &Story, model: Value, reason: &str, texts: &[&str]) -> Result<()> {
    let cluster = &story.world.cluster;
    let object = json!({
        "metadata": { "name": model::NAME },
        "spec": { "model": model, "accelerators": [{ "type": "cpu" }] },
    });
    story.apply(MODEL_DEPLOYMENT, object).await?;
    story.told(AT_ONCE, &NOT_RESOLVED, reason, texts).await?;
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

#[test]
fn what_a_card_does_not_offer_is_told_one_after_the_other_until_the_model_serves() {
    story("card-offers", Company::Welcome, async |story| {
        let (cluster, name) = (&story.world.cluster, &story.namespace);
        let hub = &story.world.hub;
        hub.offer(&story.repository(), json!({})).await?;
        let card = model::deployment(&story.repository())["spec"]["model"]["inline"].clone();
        let card = json!({ "metadata": { "name": name }, "spec": card });
        cluster.apply(MODEL_CARD, "", card).await?;
        let model = json!({ "card": name });

        let elsewhere = json!({ "card": name, "hub": "modelscope" });
        story.respec(json!({ "model": elsewhere })).await?;
        let texts = [
            "spec.model.hub is modelscope",
            "huggingface",
            "leave spec.model.hub out",
        ];
        story
            .told(AT_ONCE, &NOT_RESOLVED, "HubNotOffered", &texts)
            .await?;

        let long = json!({ "contextLength": 16_384 });
        story
            .respec(json!({ "model": model, "limits": long }))
            .await?;
        let texts = ["spec.limits.contextLength is 16384", "8192", "lower it"];
        story
            .told(AT_ONCE, &NOT_RESOLVED, "LimitExceedsModel", &texts)
            .await?;

        let options = json!([{ "type": "cpu", "limits": long }]);
        story
            .respec(json!({ "model": model, "accelerators": options }))
            .await?;
        let texts = ["spec.accelerators[].limits.contextLength is 16384", "8192"];
        story
            .told(AT_ONCE, &NOT_RESOLVED, "LimitExceedsModel", &texts)
            .await?;

        let vllm = json!({ "engine": "VLLM" });
        story
            .respec(json!({ "model": model, "runtime": vllm }))
            .await?;
        let texts = [
            "engine VLLM cannot run",
            &story.repository(),
            "format ggufv2",
            "set spec.runtime.engine to Chandler",
        ];
        story
            .told(ASKED_WITHIN, &NOT_RESOLVED, "RuntimeUnsupported", &texts)
            .await?;

        story.respec(json!({ "model": model })).await?;
        story.healed().await?;

        // The hub has answered long ago, and what serves goes on.
        story
            .respec(json!({ "model": model, "runtime": vllm }))
            .await?;
        story
            .told(AT_ONCE, &NOT_RESOLVED, "RuntimeUnsupported", &texts)
            .await?;
        story
            .reason(AT_ONCE, ("Available", "True", "Answering"))
            .await?;
        story.respec(json!({ "model": model })).await?;
        story.healed().await?;
        cluster.delete(MODEL_CARD, "", name).await
    });
}

#[test]
fn a_repository_of_several_models_is_told_with_their_files_until_one_is_named() {
    story("several-models", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let file = hub.model_file().await?;
        let twice = json!({ "copies": { "another-model.gguf": file } });
        hub.offer(&repository, twice).await?;
        let mut object = model::deployment(&repository);
        story.apply(MODEL_DEPLOYMENT, object.clone()).await?;
        let texts = [
            &repository,
            "2 models",
            "another-model.gguf",
            &file,
            "name one in `files`",
        ];
        story
            .told(ASKED_WITHIN, &NOT_CACHED, "InvalidSource", &texts)
            .await?;
        let source = "/spec/model/inline/variants/0/sources/0";
        let source = object.pointer_mut(source).context("no source")?;
        source["files"] = json!([file]);
        story.apply(MODEL_DEPLOYMENT, object).await?;
        story.healed().await?;
        Ok(())
    });
}

#[test]
fn a_cache_that_is_not_there_or_holds_other_weights_is_told() {
    story("named-cache", Company::Welcome, async |story| {
        let (cluster, repository) = (&story.world.cluster, story.repository());
        story.world.hub.offer(&repository, json!({})).await?;
        let wrong = format!("{}/Something-Else", story.namespace);
        let named = json!({ "cache": { "name": "kept" } });
        let mut object = model::deployment(&wrong);
        object["spec"]["weights"] = named.clone();
        story.apply(MODEL_DEPLOYMENT, object).await?;
        let texts = ["ModelCache kept", "spec.weights.cache", "make it"];
        story
            .told(AT_ONCE, &NOT_CACHED, "CacheNotFound", &texts)
            .await?;

        let source = json!({ "hub": { "id": repository, "format": "ggufv2" } });
        let cache = json!({ "metadata": { "name": "kept" }, "spec": { "source": source } });
        cluster.apply(MODEL_CACHE, &story.namespace, cache).await?;
        let texts = [
            "ModelCache kept holds",
            &repository,
            &wrong,
            "spec.weights.cache",
        ];
        story
            .told(AT_ONCE, &NOT_CACHED, "CacheMismatch", &texts)
            .await?;

        story.respec(json!({ "weights": named })).await?;
        let ready = story.healed().await?;
        ensure!(ready["status"]["cache"] == "kept", "{}", ready["status"]);
        Ok(())
    });
}

#[test]
fn what_only_kubernetes_can_judge_is_told_with_its_words_while_the_old_pods_serve() {
    story("judged", Company::Welcome, async |story| {
        story.deploy().await?;
        story.healed().await?;
        let spread = |skew: Value| {
            let constraint = json!({ "maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway" });
            json!({ "pod": { "topologySpreadConstraints": [constraint] } })
        };
        story.respec(spread(json!("nonsense"))).await?;
        let texts = ["spec.pod.topologySpreadConstraints", "nonsense"];
        story
            .told(AT_ONCE, &NOT_RESOLVED, "InvalidSpec", &texts)
            .await?;

        story.respec(spread(json!(0))).await?;
        let not_ready = [("Ready", "False"), ("Stalled", "True")];
        let texts = ["Deployment", "topologySpreadConstraints", "maxSkew"];
        story.told(AT_ONCE, &not_ready, "Refused", &texts).await?;
        story
            .reason(AT_ONCE, ("Available", "True", "Answering"))
            .await?;

        story.respec(json!({})).await?;
        story.healed().await?;
        Ok(())
    });
}
