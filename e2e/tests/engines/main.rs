//! The engines of others, as they come from PyPI: each serves the demo model from the same safetensors, beside our own.
//!
//! ```text
//! make e2e-engines               all
//! make e2e-engines STORY=vllm    those with this word in their name
//! ```

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chandler_e2e::chat::{Endpoint, QUESTION};
use chandler_e2e::cluster::{MODEL_DEPLOYMENT, SECRET};
use chandler_e2e::model::{self, NAME};
use chandler_e2e::operator;
use chandler_e2e::story::{Company, Story, story};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Python, its libraries and an engine that tries itself out, on two busy cores.
const READY_WITHIN: Duration = Duration::from_secs(900);

/// Where `hack/e2e-engines` has put the safetensors on the hub.
const REPOSITORY: &str = "safetensors/SmolLM2-135M-Instruct";

const KEY: &str = "the-key-of-the-story";

static OPERATOR: OnceCell<Result<(), String>> = OnceCell::const_new();

#[test]
fn chandler_answers_from_safetensors() {
    story("engine-chandler", Company::Welcome, async |story| {
        let (object, endpoint) = ready(story, json!({ "engine": "Chandler" })).await?;
        ensure!(object["status"]["device"]["type"] == "cpu", "{object}");
        answers(&endpoint, NAME).await
    });
}

#[test]
fn vllm_answers_whoever_has_the_key() {
    story("engine-vllm", Company::Welcome, async |story| {
        // Compiling takes a compiler, which the image lacks.
        let runtime = json!({ "engine": "VLLM", "options": { "enforceEager": true } });
        let (object, endpoint) = ready(story, runtime).await?;
        ensure!(object["status"]["device"].is_null(), "{object}");
        let status = async |key: Option<&str>| endpoint.status_with_key("/models", key).await;
        ensure!(status(None).await? == 401, "answered without a key");
        ensure!(
            status(Some("another-key-altogether")).await? == 401,
            "answered another key"
        );
        let endpoint = endpoint.with_key(KEY);
        let models = endpoint.get("/models").await?;
        ensure!(models.body["data"][0]["id"] == NAME, "{models:?}");
        ensure!(
            models.body["data"][0]["max_model_len"] == 2048,
            "the limit of the spec is not the engine's: {models:?}"
        );
        answers(&endpoint, NAME).await
    });
}

#[test]
fn transformers_answers_to_the_path_of_its_weights() {
    story("engine-transformers", Company::Welcome, async |story| {
        let (object, endpoint) = ready(story, json!({ "engine": "Transformers" })).await?;
        ensure!(object["status"]["device"].is_null(), "{object}");
        let commit = object["status"]["model"]["commit"]
            .as_str()
            .context("no commit")?;
        let refused = endpoint.ask(NAME, QUESTION).await?;
        ensure!(
            (400..500).contains(&refused.status),
            "another name than the path was taken: {refused:?}"
        );
        answers(&endpoint, &format!("/weights/{commit}")).await
    });
}

/// Deploys the safetensors with this engine, and waits until it is Ready.
async fn ready(story: &Story, runtime: Value) -> Result<(Value, Endpoint)> {
    let cluster = &story.world.cluster;
    OPERATOR
        .get_or_init(async || install(story).await.map_err(|error| format!("{error:#}")))
        .await
        .clone()
        .map_err(anyhow::Error::msg)?;
    let keys = json!({ "metadata": { "name": "keys" }, "stringData": { "api": KEY } });
    story.apply(SECRET, keys).await?;
    let mut object = model::deployment(REPOSITORY);
    let spec = &mut object["spec"];
    let variant = &mut spec["model"]["inline"]["variants"][0];
    variant["format"] = json!("pytorch");
    variant["quantizations"] = json!(["none"]);
    if runtime["engine"] == "VLLM" {
        spec["access"] = json!({ "apiKeySecretRef": { "name": "keys", "key": "api" } });
    }
    spec["runtime"] = runtime;
    let applied = Instant::now();
    story.apply(MODEL_DEPLOYMENT, object).await?;
    story
        .reason(READY_WITHIN, ("Ready", "True", "AllReplicasReady"))
        .await?;
    let seconds = applied.elapsed().as_secs_f64();
    eprintln!("{} is Ready after {seconds:.1} s", story.namespace);
    let object = cluster
        .get(MODEL_DEPLOYMENT, &story.namespace, NAME)
        .await?
        .context("the ModelDeployment is gone")?;
    let endpoint = story.endpoint(&object).await?;
    Ok((object, endpoint))
}

/// Tells the operator of the images that were packed for this run.
async fn install(story: &Story) -> Result<()> {
    let mut values = operator::values(&story.world.images)?;
    for (engine, variable) in [
        ("vllm", "CHANDLER_VLLM_IMAGE"),
        ("transformers", "CHANDLER_TRANSFORMERS_IMAGE"),
    ] {
        let image = std::env::var(variable)
            .with_context(|| format!("{variable} is not set; run `make e2e-engines`"))?;
        let (name, tag) = image.split_once(':').context(image.clone())?;
        let key = format!("engines.{engine}.image");
        values.extend(operator::image_values(&key, name, tag)?);
    }
    operator::install_with(&story.world.cluster, &values).await
}

async fn answers(endpoint: &Endpoint, model: &str) -> Result<()> {
    let answer = endpoint.ask(model, QUESTION).await?;
    eprintln!("{model} answers: {}", answer.text());
    ensure!(answer.status == 200, "{answer:?}");
    ensure!(answer.text().contains("Paris"), "{answer:?}");
    Ok(())
}
