//! A model that looks at pictures, from either hub: deployed, asked about two pictures in a chat of three turns through its Service.

use anyhow::{Context, Result, ensure};
use chandler_e2e::chat::Endpoint;
use chandler_e2e::chat_about_pictures::{ask, picture, pictures_encoded, three_turns};
use chandler_e2e::cluster::{MODEL_DEPLOYMENT, POD, names};
use chandler_e2e::forward::Forward;
use chandler_e2e::hub_pod::{self, VISION_REPOSITORY};
use chandler_e2e::model::{self, SERVING};
use chandler_e2e::story::{Company, Story, story};
use serde_json::{Value, json};

use crate::served;

const NAME: &str = "vision";

fn deployment(hub: &str, repository: &str) -> Value {
    json!({
        "metadata": { "name": NAME },
        "spec": {
            "model": { "inline": {
                "description": "A tiny model with the structure of Llama 3.2 Vision and random weights",
                "contextLength": 2048,
                "abilities": ["chat", "vision"],
                "architectures": ["MllamaForConditionalGeneration"],
                "variants": [{
                    "format": "pytorch",
                    "sizeInBillions": "0.0004",
                    "quantizations": ["none"],
                    "sources": [{ "hub": hub, "id": repository }],
                }],
            } },
            "weights": { "endpoint": hub_pod::ENDPOINT },
            "accelerators": [{ "type": "cpu" }],
            "limits": { "contextLength": 1024, "maxSequences": 2, "imagesPerPrompt": 2 },
        },
    })
}

/// Deploys the tiny model from this hub and waits until it is Ready.
async fn deployed(story: &Story, hub: &str) -> Result<Endpoint> {
    let (world, repository) = (story.world, format!("{}/mllama-tiny", story.namespace));
    let commit = world
        .hub
        .offer_copy(&repository, VISION_REPOSITORY, json!({}))
        .await?;
    story
        .apply(MODEL_DEPLOYMENT, deployment(hub, &repository))
        .await?;
    let ready = model::ready(&world.cluster, &story.namespace, NAME).await?;
    let found = &ready["status"]["model"];
    ensure!(found["hub"] == hub && found["commit"] == commit, "{found}");
    let architecture = "MllamaForConditionalGeneration";
    ensure!(found["architecture"] == architecture, "{found}");
    story.endpoint(&ready).await
}

/// How many pictures the one serving pod has looked at.
async fn encoded(story: &Story) -> Result<u64> {
    let cluster = &story.world.cluster;
    let pods = names(&cluster.list(POD, &story.namespace, SERVING).await?);
    let [pod] = pods.try_into().ok().context("not one serving pod")?;
    let way = Forward::to_pod(&cluster.client, &story.namespace, &pod, 8081).await?;
    pictures_encoded(way.address).await
}

#[test]
fn a_chat_about_two_pictures_looks_at_each_once() {
    story("pictures", Company::Welcome, async |story| {
        let endpoint = deployed(story, "huggingface").await?;
        three_turns(&endpoint, NAME).await?;
        let encoded = encoded(story).await?;
        ensure!(encoded == 2, "{encoded} pictures were looked at");

        let three = json!([
            picture("square.png")?,
            picture("square.png")?,
            picture("square.png")?
        ]);
        let answer = ask(&endpoint, NAME, three).await?;
        ensure!(answer.status == 400, "{answer:?}");
        let message = answer.error().unwrap_or_default();
        ensure!(
            message.contains("3 pictures") && message.contains("at most 2"),
            "{answer:?}"
        );
        Ok(())
    });
}

#[test]
fn a_model_that_looks_at_pictures_comes_from_modelscope_too() {
    story("pictures-ms", Company::Welcome, async |story| {
        let endpoint = deployed(story, "modelscope").await?;
        three_turns(&endpoint, NAME).await?;
        let encoded = encoded(story).await?;
        ensure!(encoded == 2, "{encoded} pictures were looked at");
        Ok(())
    });
}

#[test]
fn a_picture_for_a_model_that_reads_text_is_refused() {
    story("no-pictures", Company::Welcome, async |story| {
        let endpoint = served::endpoint(story).await?;
        let parts = json!([{ "type": "text", "text": "What is this?" }, picture("tiny.png")?]);
        let answer = ask(&endpoint, "smollm2", parts).await?;
        ensure!(answer.status == 400, "{answer:?}");
        let message = answer.error().unwrap_or_default();
        ensure!(message.contains("reads no pictures"), "{answer:?}");
        Ok(())
    });
}
