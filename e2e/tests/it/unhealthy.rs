//! Every way in which serving pods fail is caused for real, told with what to do, and healed by a corrected spec.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::MODEL_DEPLOYMENT;
use chandler_e2e::model;
use chandler_e2e::story::{Company, Story, story};
use serde_json::{Value, json};

/// From a changed spec to the kubelet's words in the status, on two busy cores.
const TOLD_WITHIN: Duration = Duration::from_secs(90);

async fn told(story: &Story, reason: &str, texts: &[&str]) -> Result<()> {
    let conditions = [("RuntimeHealthy", "False"), ("Ready", "False")];
    story.told(TOLD_WITHIN, &conditions, reason, texts).await
}

#[test]
fn failing_pods_are_told_with_their_last_words_and_heal() {
    story("unhealthy", Company::Welcome, async |story| {
        story.deploy().await?;
        story.ready().await?;
        let images = &story.world.images;

        story
            .respec(json!({ "runtime": { "image": "127.0.0.1:9/nothing:1" } }))
            .await?;
        told(
            story,
            "ImagePullFailed",
            &["127.0.0.1:9/nothing:1", "imagePullSecrets"],
        )
        .await?;
        let stranger = images.operator.reference();
        story
            .respec(json!({ "runtime": { "image": stranger } }))
            .await?;
        told(
            story,
            "CrashLooping",
            &["exit code 2", "unrecognized subcommand"],
        )
        .await?;

        // It may be ready for a moment before the kernel looks.
        story.disturbs();
        let small = json!({ "limits": { "memory": "48Mi" } });
        story
            .respec(json!({ "runtime": { "resources": small } }))
            .await?;
        told(story, "LoadFailed", &["give more memory"]).await?;
        // Told to take what it does not have.
        let greedy = json!([{ "name": "CHANDLER_KV_CACHE_MEMORY_BYTES", "value": "200000000" }]);
        story
            .respec(json!({ "runtime": { "resources": small, "env": greedy } }))
            .await?;
        told(story, "OutOfMemory", &["runtime.resources.limits.memory"]).await?;

        let deaf = json!([{ "name": "CHANDLER_MANAGEMENT_LISTEN", "value": "127.0.0.1:8081" }]);
        story.respec(json!({ "runtime": { "env": deaf } })).await?;
        told(story, "ProbeFailing", &["/healthz"]).await?;

        story.respec(json!({})).await?;
        let ready = story.ready().await?;
        let status = &ready["status"];
        ensure!(
            status["device"]["type"] == "cpu" && status["startup"]["readySeconds"].is_number(),
            "{status}"
        );
        Ok(())
    });
}

#[test]
fn a_gpu_that_the_runtime_does_not_use_is_told() {
    story("wrong-device", Company::Welcome, async |story| {
        story
            .deploy_with(json!({ "accelerators": [{ "type": "nvidia.com/gpu" }] }))
            .await?;
        told(
            story,
            "WrongDevice",
            &["computes on the CPU", "nvidia.com/gpu"],
        )
        .await?;
        story
            .reason(TOLD_WITHIN, ("Stalled", "True", "WrongDevice"))
            .await?;
        // It answers all the same.
        story
            .reason(TOLD_WITHIN, ("Available", "True", "Answering"))
            .await?;
        let object = story
            .world
            .cluster
            .get(MODEL_DEPLOYMENT, &story.namespace, model::NAME)
            .await?
            .context("the ModelDeployment is gone")?;
        let device = &object["status"]["device"];
        ensure!(device["obstacle"].is_string(), "{device}");
        // A runtime that says `cuda`, as on a node whose driver hands the GPU out.
        let played = played(story, &["PLAYED_DEVICE=cuda"]);
        story
            .respec(json!({ "accelerators": [{ "type": "nvidia.com/gpu" }], "runtime": played }))
            .await?;
        let ready = story.ready().await?;
        ensure!(
            ready["status"]["device"]["type"] == "cuda",
            "{}",
            ready["status"]
        );
        Ok(())
    });
}

#[test]
fn a_gpu_that_fails_is_told_until_another_pod_answers() {
    story("lost-device", Company::Welcome, async |story| {
        let on_gpu = |env: &[&str]| json!({ "accelerators": [{ "type": "nvidia.com/gpu" }], "runtime": played(story, env) });
        story.deploy_with(on_gpu(&["PLAYED_DEVICE=cuda"])).await?;
        story.ready().await?;
        let lost = [
            "PLAYED_DEVICE=cuda",
            "PLAYED_PHASE=Failed",
            "PLAYED_ERROR=DeviceLost",
        ];
        story.respec(on_gpu(&lost)).await?;
        told(story, "DeviceLost", &["as it was told to play"]).await?;
        story.respec(on_gpu(&["PLAYED_DEVICE=cuda"])).await?;
        story.ready().await?;
        Ok(())
    });
}

/// A runtime that is played by the stand-in's image.
fn played(story: &Story, env: &[&str]) -> Value {
    let image = &story.world.images.hub;
    let env: Vec<Value> = env
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| json!({ "name": name, "value": value }))
        .collect();
    json!({ "image": image.reference(), "env": env })
}

#[test]
fn a_revision_that_never_becomes_ready_is_kept_or_rolled_back_as_the_spec_says() {
    story("deadline", Company::Welcome, async |story| {
        story.deploy().await?;
        let first = story.ready().await?["status"]["revision"].clone();
        let never = played(story, &["PLAYED_PHASE=Loading"]);
        let keep = json!({ "progressDeadlineSeconds": 5 });
        story
            .respec(json!({ "runtime": never, "rollout": keep }))
            .await?;
        for kind in ["Ready", "Stalled"] {
            let status = if kind == "Ready" { "False" } else { "True" };
            let message = story
                .reason(TOLD_WITHIN, (kind, status, "DeadlineExceeded"))
                .await?;
            ensure!(message.contains("progressDeadlineSeconds"), "{message}");
        }
        story.respec(json!({})).await?;
        story.ready().await?;

        let back = json!({ "progressDeadlineSeconds": 5, "onFailure": "RollBack" });
        story
            .respec(json!({ "runtime": never, "rollout": back }))
            .await?;
        let message = story
            .reason(TOLD_WITHIN, ("Stalled", "True", "RolledBack"))
            .await?;
        let object = story
            .world
            .cluster
            .get(MODEL_DEPLOYMENT, &story.namespace, model::NAME)
            .await?
            .unwrap_or_default();
        ensure!(
            object["status"]["revision"] == first
                && message.contains(first.as_str().unwrap_or("?")),
            "{message}: {}",
            object["status"]
        );
        story
            .reason(TOLD_WITHIN, ("Available", "True", "Answering"))
            .await?;
        story.respec(json!({ "rollout": back })).await?;
        story.ready().await?;
        Ok(())
    });
}
