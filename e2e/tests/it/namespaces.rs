//! An operator that is given some namespaces: it serves those, knows nothing of others, and has no rights there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::chat::QUESTION;
use chandler_e2e::cluster::{DEPLOYMENT, JOB, MODEL_CACHE, MODEL_DEPLOYMENT};
use chandler_e2e::model::{self, NAME};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::{namespace, operator};

/// Long enough for another start, another list and a pull of what is on the node.
const WITHIN: Duration = Duration::from_secs(120);

#[test]
fn an_operator_serves_the_namespaces_that_it_is_given_and_reaches_no_other() {
    story("served", Company::Alone, async |story| {
        let (cluster, images) = (&story.world.cluster, &story.world.images);
        let (here, other) = (story.namespace.clone(), format!("{}-not", story.namespace));
        namespace::gone(cluster, &other).await?;
        namespace::make(cluster, &other, "served-not").await?;
        let mut values = operator::values(images)?;
        values.push(format!("namespaces[0]={here}"));
        operator::install_with(cluster, &values).await?;

        let elsewhere = model::deployment(&story.repository());
        cluster.apply(MODEL_DEPLOYMENT, &other, elsewhere).await?;
        story.deploy().await?;
        let ready = story.ready().await?;
        let answer = story.endpoint(&ready).await?.ask(NAME, QUESTION).await?;
        ensure!(answer.text().contains("Paris"), "{answer:?}");

        untouched(story, &other).await?;
        for (verb, resource) in [
            ("patch", "deployments.apps"),
            ("create", "jobs.batch"),
            ("list", "pods"),
            ("list", "modeldeployments.chandler.dev"),
            ("patch", "modeldeployments.chandler.dev/status"),
        ] {
            ensure!(
                operator::may(verb, resource, &here).await,
                "the operator may not {verb} {resource} where it serves"
            );
            ensure!(
                !operator::may(verb, resource, &other).await,
                "the operator may {verb} {resource} where it does not serve"
            );
        }

        // Given all namespaces again it takes up what has waited.
        operator::install(cluster, images).await?;
        let wanted = ("ModelResolved", "True", "Succeeded");
        model::reason(cluster, &other, NAME, WITHIN, wanted).await?;
        story.ready().await?;
        namespace::gone(cluster, &other).await
    });
}

/// Another object became Ready meanwhile, so an operator that saw this one would have said or made something.
async fn untouched(story: &Story, other: &str) -> Result<()> {
    let cluster = &story.world.cluster;
    let object = cluster
        .get(MODEL_DEPLOYMENT, other, NAME)
        .await?
        .context("the object that nobody serves is gone")?;
    let status = &object["status"];
    ensure!(status["conditions"].is_null(), "{status}");
    for kind in [JOB, MODEL_CACHE, DEPLOYMENT] {
        let found = cluster.list(kind, other, "").await?;
        ensure!(found.is_empty(), "{found:?}");
    }
    Ok(())
}
