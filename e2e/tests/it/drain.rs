//! A node is emptied with `kubectl drain`: its replicas move one after the other, and one answers all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{DEPLOYMENT, NODE, PERSISTENT_VOLUME, POD};
use chandler_e2e::fake_node::{self, FakeNode};
use chandler_e2e::model::SERVING;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::run;
use chandler_e2e::volume;
use chandler_e2e::wait::{Seen, until};
use futures::{StreamExt, pin_mut};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, watcher};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const MOVED_WITHIN: Duration = Duration::from_secs(60);

/// The label of the nodes that are the story's own.
const POOL: &str = "chandler-e2e-pool";

async fn make_node(story: &Story, name: &str) -> Result<String> {
    let name = format!("{}-{name}", story.namespace);
    fake_node::make(&[FakeNode {
        name: name.clone(),
        labels: json!({ POOL: story.namespace }),
        ..FakeNode::default()
    }])
    .await?;
    Ok(name)
}

/// Waits until both replicas are on this node, and no other pod is left.
async fn both_on(story: &Story, node: &str) -> Result<()> {
    let what = format!("both replicas to be on {node}");
    until(MOVED_WITHIN, &what, async || {
        let cluster = &story.world.cluster;
        let pods = cluster.list(POD, &story.namespace, SERVING).await?;
        let nodes: Vec<&Value> = pods.iter().map(|pod| &pod["spec"]["nodeName"]).collect();
        let there = nodes.len() == 2 && nodes.iter().all(|at| *at == node);
        Ok(Seen::when(there, || format!("{nodes:?}")))
    })
    .await
}

/// Notes the fewest replicas that were ready at any time, until it is aborted.
fn watch_lowest(story: &Story, lowest: &Arc<AtomicI64>) -> JoinHandle<()> {
    let deployments = story.world.cluster.api(DEPLOYMENT, &story.namespace);
    let lowest = lowest.clone();
    tokio::spawn(async move {
        let states = watcher(deployments, Config::default())
            .default_backoff()
            .applied_objects();
        pin_mut!(states);
        while let Some(state) = states.next().await {
            if let Ok(deployment) = state {
                let ready = deployment.data["status"]["readyReplicas"].as_i64();
                lowest.fetch_min(ready.unwrap_or_default(), Ordering::Relaxed);
            }
        }
    })
}

#[test]
fn a_drained_node_loses_its_replicas_one_after_the_other() {
    story("drained", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        let first = make_node(story, "first").await?;
        let volume = volume::share(cluster, &story.namespace).await?;
        let mut fields = json!({
            "replicas": 2,
            "weights": { "cache": { "name": "shared" } },
            "pod": { "nodeSelector": { POOL: story.namespace }, "tolerations": [fake_node::toleration()] },
        });
        story.respec(fields.clone()).await?;
        story.ready().await?;
        both_on(story, &first).await?;
        let second = make_node(story, "second").await?;

        let lowest = Arc::new(AtomicI64::new(i64::MAX));
        let watch = watch_lowest(story, &lowest);
        // Each replica goes once.
        story.disturbs();
        story.disturbs();
        let arguments = [
            "drain",
            &first,
            "--ignore-daemonsets",
            "--delete-emptydir-data",
            "--timeout=120s",
        ];
        run("kubectl", &arguments).await?;
        both_on(story, &second).await?;
        story.healed().await?;
        watch.abort();
        let lowest = lowest.load(Ordering::Relaxed);
        ensure!(
            lowest == 1,
            "{lowest} replicas were ready at the worst time"
        );

        run("kubectl", &["uncordon", &first]).await?;
        let node = cluster.get(NODE, "", &first).await?.unwrap_or_default();
        ensure!(node["spec"]["unschedulable"] != true, "{}", node["spec"]);
        // Nothing moves back by itself.
        both_on(story, &second).await?;
        // Pods of a node that is no more would keep the namespace for minutes.
        fields["replicas"] = json!(0);
        story.respec(fields).await?;
        until(MOVED_WITHIN, "the pods to be gone", async || {
            let pods = cluster.list(POD, &story.namespace, SERVING).await?;
            Ok(Seen::when(pods.is_empty(), || {
                format!("{} pods", pods.len())
            }))
        })
        .await?;
        for node in [&first, &second] {
            cluster.delete(NODE, "", node).await?;
        }
        cluster.delete(PERSISTENT_VOLUME, "", &volume).await
    });
}
