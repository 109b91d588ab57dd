//! Every reason for which a pod has no node is caused for real, told, and healed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::cluster::{CLAIM, MODEL_DEPLOYMENT, NODE, PERSISTENT_VOLUME, POD, QUOTA};
use chandler_e2e::fake_node::{self, FakeNode};
use chandler_e2e::model::{self, SERVING};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::{run, run_with_input};
use chandler_e2e::volume;
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

/// From a changed spec to the scheduler's words in the status, on two busy cores.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

async fn told(story: &Story, reason: &str, texts: &[&str]) -> Result<()> {
    let conditions = [
        ("Schedulable", "False"),
        ("Ready", "False"),
        ("Reconciling", "True"),
    ];
    story.told(TOLD_WITHIN, &conditions, reason, texts).await
}

async fn healed(story: &Story) -> Result<()> {
    story.ready().await?;
    story
        .reason(TOLD_WITHIN, ("Schedulable", "True", "Succeeded"))
        .await?;
    Ok(())
}

#[test]
fn a_pod_without_a_node_is_told_with_the_reason_and_what_would_help() {
    story("unplaced", Company::Welcome, async |story| {
        story.deploy().await?;
        let ready = story.ready().await?;
        let cache = json!({ "cache": { "name": ready["status"]["cache"] } });
        healed(story).await?;

        story
            .respec(json!({ "weights": cache, "accelerators": [{ "type": "example.com/npu" }] }))
            .await?;
        told(
            story,
            "InsufficientGpu",
            &["Insufficient example.com/npu", "spec.accelerators"],
        )
        .await?;
        // The old revision answers meanwhile.
        story
            .reason(TOLD_WITHIN, ("Available", "True", "Answering"))
            .await?;
        story
            .respec(json!({ "weights": cache, "pod": { "nodeSelector": { "nowhere": "true" } } }))
            .await?;
        told(story, "NoNodeMatches", &["spec.pod.nodeSelector"]).await?;

        story.respec(json!({ "runtime": { "resources": { "requests": { "memory": "10Ti" }, "limits": { "memory": "10Ti" } } } }),
        )
        .await?;
        told(
            story,
            "TooLargeForAnyNode",
            &["10240.0 GiB asked", "even when empty"],
        )
        .await?;

        story.respec(json!({})).await?;
        healed(story).await?;

        // Each fits alone, and both do not fit the one node.
        let half = json!({ "memory": "13Gi" });
        story.respec(json!({ "replicas": 2, "runtime": { "resources": { "requests": half, "limits": half } } }),
        )
        .await?;
        told(story, "InsufficientResources", &["Insufficient "]).await?;
        story.respec(json!({ "replicas": 1 })).await?;
        healed(story).await
    });
}

#[test]
fn quotas_gates_and_refused_pods_are_told_and_heal() {
    story("withheld", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        story.deploy().await?;
        healed(story).await?;
        let quota = json!({ "metadata": { "name": "one-pod" }, "spec": { "hard": { "requests.cpu": "300m" } } });
        cluster.apply(QUOTA, &story.namespace, quota).await?;
        story.respec(json!({ "replicas": 2 })).await?;
        told(story, "QuotaExceeded", &["one-pod", "spec.replicas"]).await?;
        cluster.delete(QUOTA, &story.namespace, "one-pod").await?;
        healed(story).await?;

        story
            .respec(json!({ "pod": { "serviceAccountName": "nobody" } }))
            .await?;
        told(story, "PodsRefused", &["nobody"]).await?;
        story.respec(json!({})).await?;
        healed(story).await?;

        // What a queue such as Kueue does by its webhook.
        apply_text(&gate(&story.namespace)).await?;
        until(TOLD_WITHIN, "the API server to gate pods", async || {
            let pod = labelled_pod(&story.namespace);
            let tried = run_with_input(
                "kubectl",
                &["create", "--dry-run=server", "-o", "json", "-f", "-"],
                &pod,
            )
            .await?;
            Ok(Seen::when(tried.contains("schedulingGates"), || tried))
        })
        .await?;
        story
            .respec(json!({ "pod": { "labels": { "gate": "wanted" } } }))
            .await?;
        told(story, "Gated", &["queue"]).await?;
        let pods = cluster.list(POD, &story.namespace, "gate=wanted").await?;
        let pod = pods.first().context("no pod is gated")?["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let patch = r#"{"spec":{"schedulingGates":null}}"#;
        let pod = format!("pod/{pod}");
        run(
            "kubectl",
            &[
                "patch",
                &pod,
                "-n",
                &story.namespace,
                "--type=merge",
                "-p",
                patch,
            ],
        )
        .await?;
        healed(story).await?;
        run(
            "kubectl",
            &[
                "delete",
                "mutatingadmissionpolicy,mutatingadmissionpolicybinding",
                &story.namespace,
            ],
        )
        .await?;
        Ok(())
    });
}

async fn apply_text(text: &str) -> Result<()> {
    run_with_input("kubectl", &["apply", "--server-side", "-f", "-"], text).await?;
    Ok(())
}

/// A pod that restricted Pod Security takes and the gate is meant for.
fn labelled_pod(namespace: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "tried", "namespace": namespace, "labels": { "gate": "wanted" } },
        "spec": {
            "securityContext": { "runAsNonRoot": true, "runAsUser": 1, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "tried", "image": "none",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } } }],
        },
    })
    .to_string()
}

fn gate(namespace: &str) -> String {
    format!(
        r#"
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {{ name: {namespace} }}
spec:
  reinvocationPolicy: Never
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {{ matchLabels: {{ kubernetes.io/metadata.name: {namespace} }} }}
    resourceRules:
    - {{ apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods] }}
  matchConditions:
  - name: labelled
    expression: has(object.metadata.labels) && 'gate' in object.metadata.labels
  mutations:
  - patchType: JSONPatch
    jsonPatch:
      expression: '[JSONPatch{{op: "add", path: "/spec/schedulingGates", value: [{{"name": "example.com/queue"}}]}}]'
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {{ name: {namespace} }}
spec: {{ policyName: {namespace} }}
"#
    )
}

#[test]
fn a_volume_that_cannot_follow_is_told() {
    story("volume", Company::Welcome, async |story| {
        story.deploy().await?;
        let ready = story.ready().await?;
        let cache = ready["status"]["cache"].as_str().unwrap_or_default();
        let node = fake_node(story, "volume", json!({})).await?;
        // The volume of the first is on the real node.
        let mut object = model::deployment(&story.repository());
        object["spec"]["weights"] = json!({ "cache": { "name": cache } });
        object["spec"]["pod"] = on(&node);
        story.apply(MODEL_DEPLOYMENT, object).await?;
        told(story, "VolumeAffinityConflict", &["ReadWriteMany"]).await?;
        story.respec(json!({})).await?;
        healed(story).await?;
        story.world.cluster.delete(NODE, "", &node).await
    });
}

#[test]
fn a_claim_that_is_deleted_under_its_pods_is_told_and_filled_again_when_they_have_gone() {
    story("claim-deleted", Company::Welcome, async |story| {
        let cluster = &story.world.cluster;
        story.deploy().await?;
        let ready = story.healed().await?;
        let cache = ready["status"]["cache"].as_str().unwrap_or_default();
        story.disturbs();
        cluster.delete(CLAIM, &story.namespace, cache).await?;
        let conditions = [("WeightsCached", "False"), ("Ready", "False")];
        let texts = [cache, "is being deleted", "made again"];
        story
            .told(TOLD_WITHIN, &conditions, "ClaimPending", &texts)
            .await?;

        story.respec(json!({ "replicas": 2 })).await?;
        let schedulable = [("Schedulable", "False")];
        let texts = [cache, "is being deleted"];
        story
            .told(TOLD_WITHIN, &schedulable, "Unschedulable", &texts)
            .await?;

        story.respec(json!({ "replicas": 0 })).await?;
        story
            .reason(model::READY_WITHIN, ("Ready", "True", "Suspended"))
            .await?;
        story.respec(json!({ "replicas": 1 })).await?;
        story.healed().await?;
        Ok(())
    });
}

/// A node that kwok plays, with these resources besides the usual ones.
async fn fake_node(story: &Story, name: &str, resources: Value) -> Result<String> {
    let name = format!("{}-{name}", story.namespace);
    fake_node::make(&[FakeNode {
        name: name.clone(),
        resources,
        ..FakeNode::default()
    }])
    .await?;
    Ok(name)
}

fn on(node: &str) -> Value {
    json!({
        "nodeSelector": { "kubernetes.io/hostname": node },
        "tolerations": [fake_node::toleration()],
    })
}

#[test]
fn all_replicas_move_to_the_next_accelerator_and_back_only_for_a_changed_spec() {
    story("options", Company::Welcome, async |story| {
        story
            .world
            .hub
            .offer(&story.repository(), json!({}))
            .await?;
        let options = json!([
            { "type": "example.com/npu", "waitSeconds": 4 },
            { "type": "cpu", "limits": { "contextLength": 1024 } },
        ]);
        story
            .respec(json!({ "accelerators": options, "replicas": 2 }))
            .await?;
        let ready = story.ready().await?;
        let plan = &ready["status"]["plan"];
        ensure!(
            plan["accelerator"] == "cpu"
                && plan["reason"]
                    .as_str()
                    .unwrap_or_default()
                    .contains("accelerators[1]"),
            "{plan}"
        );
        let pods = story
            .world
            .cluster
            .list(POD, &story.namespace, SERVING)
            .await?;
        for pod in &pods {
            let arguments = pod["spec"]["containers"][0]["args"].to_string();
            ensure!(
                arguments.contains("--device=cpu") && arguments.contains("--context-length=1024"),
                "{arguments}"
            );
        }
        // Another number of replicas is no change of what a pod is, so nothing moves.
        let revision = ready["status"]["revision"].clone();
        story
            .respec(json!({ "accelerators": options, "replicas": 1 }))
            .await?;
        let scaled = story.ready().await?;
        ensure!(
            scaled["status"]["revision"] == revision,
            "{}",
            scaled["status"]
        );
        story
            .respec(
                json!({ "accelerators": options, "replicas": 1, "limits": { "maxSequences": 1 } }),
            )
            .await?;
        told(story, "InsufficientGpu", &["the next of spec.accelerators"]).await?;
        story.ready().await?;
        Ok(())
    });
}

#[test]
fn a_deployment_that_is_placed_in_part_does_not_move() {
    story("partly", Company::Welcome, async |story| {
        let node = fake_node(story, "npu", json!({ "example.com/npu2": "1" })).await?;
        let volume = volume::share(&story.world.cluster, &story.namespace).await?;
        story.respec(json!({
                "weights": { "cache": { "name": "shared" } },
                "accelerators": [{ "type": "example.com/npu2", "waitSeconds": 2 }, { "type": "cpu" }],
                "replicas": 2,
                "pod": on(&node),
            }),
        )
        .await?;
        told(
            story,
            "InsufficientGpu",
            &["1 of 2 replicas have a node, so none moves"],
        )
        .await?;
        let cluster = &story.world.cluster;
        cluster.delete(PERSISTENT_VOLUME, "", &volume).await?;
        cluster.delete(NODE, "", &node).await
    });
}
