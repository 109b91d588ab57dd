//! One deployment that several stories only ask questions: made by the first that needs it, from the example that the README shows.

use anyhow::{Context, Result};
use chandler_e2e::chat::Endpoint;
use chandler_e2e::cluster::NAMESPACE;
use chandler_e2e::record::Record;
use chandler_e2e::story::Story;
use chandler_e2e::{model, namespace};
use serde_json::Value;
use tokio::sync::OnceCell;

/// The namespace of the shared deployment; the next run removes it.
pub(crate) const SHARED: &str = "chandler-e2e-served";

static SERVED: OnceCell<Result<Value, String>> = OnceCell::const_new();

/// The ModelDeployment of `examples/smollm2.yaml`, Ready.
pub(crate) async fn served(story: &Story) -> Result<Value> {
    let made = SERVED
        .get_or_init(async || make(story).await.map_err(|error| format!("{error:#}")))
        .await;
    made.clone()
        .map_err(anyhow::Error::msg)
        .context("the shared deployment is not there")
}

/// The shared deployment's Service.
pub(crate) async fn endpoint(story: &Story) -> Result<Endpoint> {
    let object = served(story).await?;
    story.endpoint(&object).await
}

async fn make(story: &Story) -> Result<Value> {
    let cluster = &story.world.cluster;
    if cluster.get(NAMESPACE, "", SHARED).await?.is_some() {
        namespace::gone(cluster, SHARED).await?;
    }
    namespace::make(cluster, SHARED, "served").await?;
    let record = Record::start(cluster, SHARED);
    let arguments = ["apply", "-n", SHARED, "-f", "examples/smollm2.yaml"];
    chandler_e2e::tools::run("kubectl", &arguments).await?;
    let ready = model::ready(cluster, SHARED, "smollm2").await;
    if ready.is_err() {
        namespace::dump(cluster, SHARED).await;
    }
    let ready = ready?;
    record.check().await?;
    Ok(ready)
}
