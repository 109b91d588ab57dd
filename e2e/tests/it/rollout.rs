//! A new revision takes the old one's place: without losing a request, without a deadlock, and only for a reason.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::{DEPLOYMENT, MODEL_CARD, MODEL_DEPLOYMENT, POD, names};
use chandler_e2e::model::{self, NAME, SERVING};
use chandler_e2e::operator;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::{run, run_with_input};
use chandler_e2e::traffic::Traffic;
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

const TOLD_WITHIN: Duration = Duration::from_secs(60);

async fn pods(story: &Story) -> Result<Vec<String>> {
    let cluster = &story.world.cluster;
    let mut names = names(&cluster.list(POD, &story.namespace, SERVING).await?);
    names.sort();
    Ok(names)
}

async fn gone(story: &Story, old: &[String]) -> Result<()> {
    until(TOLD_WITHIN, "the old pods to be gone", async || {
        let now = pods(story).await?;
        let left: Vec<_> = old.iter().filter(|pod| now.contains(pod)).collect();
        Ok(Seen::when(left.is_empty(), || format!("{left:?}")))
    })
    .await
}

#[test]
fn an_update_of_two_replicas_under_traffic_loses_no_request() {
    story("traffic", Company::Welcome, async |story| {
        story.deploy_with(json!({ "replicas": 2 })).await?;
        let ready = story.ready().await?;
        let old = pods(story).await?;
        let traffic = Traffic::start(vec![story.endpoint(&ready).await?]);
        story
            .respec(
                json!({ "replicas": 2, "pod": { "annotations": { "example.com/turn": "two" } } }),
            )
            .await?;
        story.ready().await?;
        gone(story, &old).await?;
        let (answered, lost) = traffic.end().await?;
        println!("figure rollout_lost_requests {} requests", lost.len());
        ensure!(
            answered > 0 && lost.is_empty(),
            "{answered} answered, lost: {lost:?}"
        );
        Ok(())
    });
}

#[test]
fn two_replicas_under_load_lose_no_request_while_one_is_deleted_and_all_are_rolled() {
    /// Clients at once: more than one replica has in a batch of its own.
    const CLIENTS: usize = 4;
    story("load", Company::Welcome, async |story| {
        story.deploy_with(json!({ "replicas": 2 })).await?;
        let ready = story.ready().await?;
        let old = pods(story).await?;
        let mut endpoints = Vec::new();
        for _ in 0..CLIENTS {
            endpoints.push(story.endpoint(&ready).await?);
        }
        let traffic = Traffic::start(endpoints);
        let asked = async |count: usize| {
            until(TOLD_WITHIN, "answers", async || {
                let answered = traffic.answered();
                Ok(Seen::when(answered >= count, || answered.to_string()))
            })
            .await
        };
        asked(CLIENTS).await?;
        story.disturbs();
        let first = old.first().context("no pod")?;
        let cluster = &story.world.cluster;
        cluster.delete(POD, &story.namespace, first).await?;
        // The rollout begins while the deleted pod still answers those who have begun.
        story
            .respec(
                json!({ "replicas": 2, "pod": { "annotations": { "example.com/turn": "two" } } }),
            )
            .await?;
        story.ready().await?;
        gone(story, &old).await?;
        asked(traffic.answered() + CLIENTS).await?;
        let (answered, lost) = traffic.end().await?;
        println!("figure load_lost_requests {} requests", lost.len());
        ensure!(lost.is_empty(), "{answered} answered, lost: {lost:?}");
        Ok(())
    });
}

#[test]
fn where_no_node_has_room_for_one_more_an_old_pod_ends_first_and_the_status_says_so() {
    story("no-room", Company::Welcome, async |story| {
        story
            .world
            .hub
            .offer(&story.repository(), json!({}))
            .await?;
        // More than half of the node's memory.
        let memory = json!({ "memory": "13Gi" });
        let large = json!({ "resources": { "requests": memory, "limits": memory } });
        story.respec(json!({ "runtime": large })).await?;
        story.ready().await?;
        let pod = json!({ "annotations": { "example.com/turn": "two" } });
        story
            .respec(json!({ "runtime": large, "pod": pod }))
            .await?;
        until(
            TOLD_WITHIN,
            "the rollout to end the old pod first",
            async || {
                let cluster = &story.world.cluster;
                let workload = cluster.get(DEPLOYMENT, &story.namespace, NAME).await?;
                let rolling =
                    workload.unwrap_or_default()["spec"]["strategy"]["rollingUpdate"].clone();
                Ok(Seen::when(rolling["maxSurge"] == 0, || rolling.to_string()))
            },
        )
        .await?;
        story.ready().await?;
        // The first sort is taken by force, against better knowledge, and stays stuck until the policy changes.
        let surge = json!({ "policy": "SurgeFirst" });
        let pod = json!({ "annotations": { "example.com/turn": "three" } });
        story
            .respec(json!({ "runtime": large, "pod": pod, "rollout": surge }))
            .await?;
        story
            .reason(TOLD_WITHIN, ("Ready", "False", "InsufficientResources"))
            .await?;
        story
            .respec(json!({ "runtime": large, "pod": pod }))
            .await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn an_edited_or_deleted_card_rolls_nothing_and_the_status_says_how_to_take_it_up() {
    story("card", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        story
            .world
            .hub
            .offer(&story.repository(), json!({}))
            .await?;
        let mut card = model::deployment(&story.repository())["spec"]["model"]["inline"].clone();
        let name = &story.namespace;
        let publish = async |card: &Value| {
            cluster
                .apply(
                    MODEL_CARD,
                    "",
                    json!({ "metadata": { "name": name }, "spec": card }),
                )
                .await
        };
        publish(&card).await?;
        let from_card = json!({ "card": name });
        story.respec(json!({ "model": from_card })).await?;
        story.ready().await?;
        let before = pods(story).await?;

        card["chat"] = json!({ "stop": ["Paris"] });
        publish(&card).await?;
        let said = async |text: &str| {
            until(TOLD_WITHIN, "the status to tell of the card", async || {
                let object = cluster.get(MODEL_DEPLOYMENT, name, NAME).await?;
                let resolved = model::condition(&object.unwrap_or_default(), "ModelResolved");
                let message = resolved["message"].as_str().unwrap_or_default().to_owned();
                Ok(Seen::when(message.contains(text), || message))
            })
            .await
        };
        said("has changed since").await?;
        story.ready().await?;
        ensure!(
            pods(story).await? == before,
            "an edited card rolled the pods"
        );

        let pod = json!({ "annotations": { "example.com/card": "2" } });
        story
            .respec(json!({ "model": from_card, "pod": pod }))
            .await?;
        story.ready().await?;
        let all = cluster.list(POD, name, SERVING).await?;
        ensure!(
            all.iter().any(|pod| pod["spec"]["containers"][0]["args"]
                .to_string()
                .contains("--stop=Paris")),
            "the changed card was not taken up"
        );

        cluster.delete(MODEL_CARD, "", name).await?;
        said("was deleted since").await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn an_operator_with_another_runtime_image_rolls_only_those_who_want_it() {
    story("on-change", Company::Alone, async |story| {
        let (cluster, images) = (&story.world.cluster, &story.world.images);
        story.deploy().await?;
        story.ready().await?;
        let before = pods(story).await?;
        // The same program under its version's name.
        let mut values = operator::values(images)?;
        values.push(format!("runtime.image.tag={}", images.runtime.version));
        operator::install_with(cluster, &values).await?;
        // Whatever it wanted to do it does on its first look at each object.
        story
            .respec(json!({ "service": { "annotations": { "example.com/looked": "true" } } }))
            .await?;
        story.ready().await?;
        ensure!(
            pods(story).await? == before,
            "an operator upgrade rolled the pods"
        );

        story
            .respec(json!({ "runtime": { "upgrade": "Always" } }))
            .await?;
        until(TOLD_WITHIN, "the new image to run", async || {
            let all = cluster.list(POD, &story.namespace, SERVING).await?;
            let images_of: Vec<String> = all
                .iter()
                .map(|pod| pod["spec"]["containers"][0]["image"].to_string())
                .collect();
            let is_new = images_of
                .iter()
                .any(|image| image.contains(&format!(":{}\"", images.runtime.version)));
            Ok(Seen::when(is_new, || format!("{images_of:?}")))
        })
        .await?;
        story.ready().await?;
        story.disturbs();
        operator::install(cluster, images).await?;
        Ok(())
    });
}

#[test]
fn evictions_end_one_replica_at_a_time() {
    story("drain", Company::Welcome, async |story| {
        story.deploy_with(json!({ "replicas": 2 })).await?;
        story.ready().await?;
        let [first, second] = pods(story).await?.try_into().ok().context("not two pods")?;
        let evict = async |pod: &str| {
            let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction",
                "metadata": { "name": pod, "namespace": story.namespace } });
            let path = format!("/api/v1/namespaces/{}/pods/{pod}/eviction", story.namespace);
            run_with_input(
                "kubectl",
                &["create", "--raw", &path, "-f", "-"],
                &eviction.to_string(),
            )
            .await
        };
        story.disturbs();
        evict(&first).await?;
        let refused = evict(&second).await;
        ensure!(
            refused
                .as_ref()
                .is_err_and(|error| error.to_string().contains("disruption budget")),
            "{refused:?}"
        );
        story.disturbs();
        until(
            TOLD_WITHIN,
            "the second eviction to be let through",
            async || {
                Ok(match evict(&second).await {
                    Ok(_) => Seen::Yes(()),
                    Err(error) => Seen::NotYet(error.to_string()),
                })
            },
        )
        .await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn a_horizontal_pod_autoscaler_owns_the_number_of_replicas() {
    story("autoscaler", Company::Welcome, async |story| {
        story.deploy().await?;
        story.ready().await?;
        let scaler = json!({ "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": { "name": NAME, "namespace": story.namespace },
            "spec": {
                "scaleTargetRef": { "apiVersion": "chandler.dev/v1alpha1", "kind": "ModelDeployment", "name": NAME },
                "minReplicas": 2, "maxReplicas": 3,
                "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } }],
            } });
        run_with_input("kubectl", &["apply", "-f", "-"], &scaler.to_string()).await?;
        let replicas = async |wanted: i64| {
            until(TOLD_WITHIN, "the autoscaler's number", async || {
                let object = story
                    .world
                    .cluster
                    .get(MODEL_DEPLOYMENT, &story.namespace, NAME)
                    .await?;
                let number = object.unwrap_or_default()["spec"]["replicas"].clone();
                Ok(Seen::when(number == wanted, || number.to_string()))
            })
            .await
        };
        replicas(2).await?;
        let ready = story.ready().await?;
        ensure!(ready["status"]["readyReplicas"] == 2, "{}", ready["status"]);
        // Neither way of applying a manifest without replicas takes the number back.
        let mut manifest = model::deployment(&story.repository());
        manifest["apiVersion"] = json!("chandler.dev/v1alpha1");
        manifest["kind"] = json!("ModelDeployment");
        manifest["metadata"]["namespace"] = json!(story.namespace);
        manifest["metadata"]["annotations"] = json!({ "example.com/applied": "again" });
        story.apply(MODEL_DEPLOYMENT, manifest.clone()).await?;
        run_with_input("kubectl", &["apply", "-f", "-"], &manifest.to_string()).await?;
        replicas(2).await?;
        run("kubectl", &["delete", "hpa", NAME, "-n", &story.namespace]).await?;
        Ok(())
    });
}
