//! Weights that arrive whole and are still not a model.

use std::time::Duration;

use anyhow::ensure;
use chandler_e2e::cluster::MODEL_DEPLOYMENT;
use chandler_e2e::model;
use chandler_e2e::story::{Company, story};
use serde_json::json;

/// Volume, two Jobs, and a serving pod that fails.
const TOLD_WITHIN: Duration = Duration::from_secs(150);

#[test]
fn a_truncated_gguf_is_named_with_what_is_wrong_with_it() {
    story("truncated", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let file = hub.model_file().await?;
        // The hub's own size and digest are those of the truncated file, so the fetch has nothing to object.
        let settings = json!({ "truncate": { &file: 50_000_000 } });
        hub.offer(&repository, settings).await?;
        story
            .apply(MODEL_DEPLOYMENT, model::deployment(&repository))
            .await?;
        let message = story
            .reason(TOLD_WITHIN, ("RuntimeHealthy", "False", "LoadFailed"))
            .await?;
        ensure!(
            message.contains(&file),
            "the file {file} is not named: {message}"
        );
        let says_why = ["truncated", "too short", "ends", "beyond", "bytes"]
            .iter()
            .any(|word| message.contains(word));
        ensure!(says_why, "it is not told what is wrong: {message}");
        let ready = story
            .reason(Duration::from_secs(30), ("Ready", "False", "LoadFailed"))
            .await?;
        ensure!(ready.contains(&file), "{ready}");
        Ok(())
    });
}
