//! Objects of the same name that belong to somebody else.

use std::time::Duration;

use anyhow::{Context, ensure};
use chandler_e2e::cluster::SERVICE;
use chandler_e2e::model::NAME;
use chandler_e2e::story::{Company, story};
use serde_json::json;

#[test]
fn a_foreign_service_of_the_same_name_is_never_applied_over() {
    story("conflict", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        let foreign = json!({
            "metadata": { "name": NAME },
            "spec": { "selector": { "app": "somebody-else" }, "ports": [{ "port": 1234 }] },
        });
        let before = story.apply(SERVICE, foreign).await?;
        story.deploy().await?;
        let message = story
            .reason(
                Duration::from_secs(120),
                ("ModelResolved", "False", "NameConflict"),
            )
            .await?;
        ensure!(
            message.contains(NAME) && message.contains("Service"),
            "{message}"
        );
        let after = cluster
            .get(SERVICE, &story.namespace, NAME)
            .await?
            .context("the foreign Service is gone")?;
        ensure!(
            after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"],
            "the foreign Service was changed: {after}"
        );
        cluster.delete(SERVICE, &story.namespace, NAME).await?;
        story.ready().await?;
        Ok(())
    });
}
