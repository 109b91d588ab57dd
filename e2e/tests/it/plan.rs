//! What a replica needs and where it could run stands in the status before a pod exists.

use std::time::Duration;

use anyhow::{Result, ensure};
use chandler_e2e::cluster::{MODEL_DEPLOYMENT, NODE};
use chandler_e2e::fake_node::{self, FakeNode};
use chandler_e2e::model::NAME;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::run;
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// Kinds of nodes: product, MiB of one GPU, GPUs of one node, nodes.
const KINDS: [(&str, u32, u32, usize); 3] = [
    ("NVIDIA-L4", 23_034, 1, 20),
    ("NVIDIA-A100-SXM4-40GB", 40_960, 8, 15),
    ("NVIDIA-H100-80GB-HBM3", 81_559, 8, 15),
];

/// Fifty nodes of three kinds, played by kwok; no pod is ever placed on them.
async fn nodes(story: &Story) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let mut made = Vec::new();
    for (product, memory, gpus, count) in KINDS {
        for number in 0..count {
            let name = format!(
                "{}-{}-{number:02}",
                story.namespace,
                product.to_lowercase().replace("nvidia-", "")
            );
            made.push(FakeNode {
                name: name.clone(),
                labels: json!({
                    "pool": story.namespace,
                    "nvidia.com/gpu.product": product,
                    "nvidia.com/gpu.memory": memory.to_string(),
                    "nvidia.com/gpu.count": gpus.to_string(),
                }),
                taints: vec![
                    json!({ "key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule" }),
                ],
                resources: json!({
                    "cpu": "64", "memory": "512Gi", "nvidia.com/gpu": gpus.to_string(),
                }),
            });
            names.push(name);
        }
    }
    fake_node::make(&made).await?;
    let selector = format!("--selector=pool={}", story.namespace);
    run(
        "kubectl",
        &[
            "wait",
            "node",
            &selector,
            "--for=condition=Ready",
            "--timeout=60s",
        ],
    )
    .await?;
    Ok(names)
}

/// The plan for a model of so many billions of parameters; its repository is nowhere, so nothing is fetched and no pod is made.
async fn plan(story: &Story, billions: &str, fields: Value, says: &str) -> Result<Value> {
    let mut object = chandler_e2e::model::deployment(&story.repository());
    let variant = &mut object["spec"]["model"]["inline"]["variants"][0];
    variant["format"] = json!("pytorch");
    variant["sizeInBillions"] = json!(billions);
    variant["quantizations"] = json!(["none"]);
    object["spec"]["pod"] = json!({ "nodeSelector": { "pool": story.namespace },
        "tolerations": [fake_node::toleration()] });
    object["spec"]["accelerators"] = json!([{ "type": "nvidia.com/gpu" }]);
    for (name, value) in fields.as_object().into_iter().flatten() {
        object["spec"][name] = value.clone();
        if value.is_null() {
            object["spec"].as_object_mut().map(|spec| spec.remove(name));
        }
    }
    story.apply(MODEL_DEPLOYMENT, object).await?;
    until(TOLD_WITHIN, says, async || {
        let object = story
            .world
            .cluster
            .get(MODEL_DEPLOYMENT, &story.namespace, NAME)
            .await?
            .unwrap_or_default();
        let is_current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
        let plan = object["status"]["plan"].clone();
        let message = plan["message"].as_str().unwrap_or_default().to_owned();
        if is_current && message.contains(says) {
            Ok(Seen::Yes(plan))
        } else {
            Ok(Seen::NotYet(message))
        }
    })
    .await
}

#[test]
fn the_plan_names_nodes_or_says_why_there_are_none() {
    story("plan", Company::Welcome, async |story| {
        let made = nodes(story).await?;
        // 22 GB of weights do not fit 24 GB with their cache, so only the larger kinds can take it.
        let fits = plan(story, "11", json!({}), "30 nodes have room now").await?;
        ensure!(
            fits["nodes"].as_array().map(Vec::len) == Some(10) && fits["moreNodes"] == 20,
            "{fits}"
        );
        ensure!(fits["weightsBytes"] == 22_000_000_000_i64, "{fits}");
        let largest = 8 * 81_559 * 1024 * 1024_i64;
        ensure!(fits["largestFreeBytes"] == largest, "{fits}");

        let none = "no node's accelerators have that much memory together";
        plan(story, "90", json!({}), none).await?;
        let four = json!([{ "type": "nvidia.com/gpu", "count": 4 }]);
        plan(
            story,
            "90",
            json!({ "accelerators": four }),
            "15 nodes have room now",
        )
        .await?;
        let product = json!([{ "type": "nvidia.com/gpu", "products": ["NVIDIA-A100-SXM4-40GB"] }]);
        plan(
            story,
            "11",
            json!({ "accelerators": product }),
            "15 nodes have room now",
        )
        .await?;
        let memory = json!([{ "type": "nvidia.com/gpu", "minMemory": "60Gi" }]);
        plan(
            story,
            "11",
            json!({ "accelerators": memory }),
            "15 nodes have room now",
        )
        .await?;
        // Left open, the number of GPUs is the fewest that hold it.
        let open = plan(
            story,
            "1",
            json!({ "accelerators": null }),
            "nodes have room now",
        )
        .await?;
        ensure!(open["accelerator"] == "1 × nvidia.com/gpu", "{open}");
        // A pool at zero: an autoscaler may add nodes, so nothing is withheld.
        let nowhere = json!({ "nodeSelector": { "pool": "at-zero" } });
        plan(
            story,
            "11",
            json!({ "pod": nowhere }),
            "no node that the pod may use offers nvidia.com/gpu",
        )
        .await?;
        for name in made {
            story.world.cluster.delete(NODE, "", &name).await?;
        }
        Ok(())
    });
}
