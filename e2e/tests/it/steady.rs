//! What runs stays as it is: nothing is written without a cause, what somebody else breaks is mended, a number of replicas is followed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::{DEPLOYMENT, Kind, MODEL_DEPLOYMENT, POD, SERVICE, names};
use chandler_e2e::model::{NAME, SERVING};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::run;
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

/// Several times the longest period at which anything is looked at while a model is Ready.
const WATCHED: Duration = Duration::from_secs(20);

const MENDED_WITHIN: Duration = Duration::from_secs(30);

async fn get(story: &Story, kind: Kind) -> Result<Option<Value>> {
    story.world.cluster.get(kind, &story.namespace, NAME).await
}

#[test]
fn a_ready_model_is_left_in_peace() {
    story("peace", Company::Welcome, async |story| {
        story.deploy().await?;
        story.ready().await?;
        let before = story.settled().await?;
        // Time itself is what this story is about.
        tokio::time::sleep(WATCHED).await;
        let after = story.versions().await?;
        ensure!(
            after == before,
            "written without a cause: {before:?} {after:?}"
        );
        Ok(())
    });
}

#[test]
fn children_that_somebody_deletes_or_changes_are_mended() {
    story("mended", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        story.deploy().await?;
        story.ready().await?;
        for (kind, has_the_pods) in [(SERVICE, false), (DEPLOYMENT, true)] {
            let old = get(story, kind).await?.context("the child is not there")?;
            if has_the_pods {
                story.disturbs();
            }
            cluster.delete(kind, &story.namespace, NAME).await?;
            until(MENDED_WITHIN, "the child to be made again", async || {
                let now = get(story, kind).await?.unwrap_or_default();
                let is_new = now["metadata"]["uid"].is_string()
                    && now["metadata"]["uid"] != old["metadata"]["uid"];
                Ok(Seen::when(is_new, || now["metadata"].to_string()))
            })
            .await?;
        }
        let patch = r#"{"spec":{"ports":[{"name":"http","port":80,"targetPort":9}]}}"#;
        let service = format!("service/{NAME}");
        run(
            "kubectl",
            &["patch", &service, "-n", &story.namespace, "-p", patch],
        )
        .await?;
        until(
            MENDED_WITHIN,
            "the Service's port to be mended",
            async || {
                let port = get(story, SERVICE).await?.unwrap_or_default()["spec"]["ports"][0]
                ["targetPort"]
                .clone();
                Ok(Seen::when(port == "http", || port.to_string()))
            },
        )
        .await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn kubectl_scale_suspends_and_resumes_as_any_user_and_keeps_the_weights() {
    story("scale", Company::Welcome, async |story| {
        story
            .world
            .hub
            .offer(&story.repository(), json!({}))
            .await?;
        let mut object = chandler_e2e::model::deployment(&story.repository());
        // Some user without a name, as OpenShift chooses them; the images name another one.
        object["spec"]["pod"] =
            json!({ "securityContext": { "runAsUser": 1_000_680_000, "fsGroup": 1_000_680_000 } });
        story.apply(MODEL_DEPLOYMENT, object.clone()).await?;
        story.ready().await?;
        let scale = async |replicas: &str| {
            let object = format!("modeldeployments.chandler.dev/{NAME}");
            let replicas = format!("--replicas={replicas}");
            run(
                "kubectl",
                &["scale", &object, &replicas, "-n", &story.namespace],
            )
            .await
        };
        scale("0").await?;
        story
            .reason(Duration::from_secs(90), ("Ready", "True", "Suspended"))
            .await?;
        // What has ended may be listed for a moment more.
        let cluster = &story.world.cluster;
        let pods = cluster.list(POD, &story.namespace, SERVING).await?;
        ensure!(
            pods.iter().all(|pod| pod["status"]["phase"] != "Running"),
            "suspended, and still running: {:?}",
            names(&pods)
        );
        scale("2").await?;
        let ready = story.ready().await?;
        for pod in cluster.list(POD, &story.namespace, SERVING).await? {
            let user = &pod["status"]["containerStatuses"][0]["user"]["linux"]["uid"];
            ensure!(*user == 1_000_680_000, "the pod runs as {user}");
        }
        ensure!(ready["status"]["readyReplicas"] == 2, "{}", ready["status"]);
        // An autoscaler writes where `kubectl scale` does; who applies a spec without a number leaves theirs alone.
        let again = story.apply(MODEL_DEPLOYMENT, object).await?;
        ensure!(again["spec"]["replicas"] == 2, "{}", again["spec"]);
        let log = story.world.hub.requests(&story.repository()).await?;
        let loads = log.iter().filter(|entry| entry.is_download()).count();
        ensure!(loads == 1, "the weights were fetched {loads} times");
        Ok(())
    });
}
