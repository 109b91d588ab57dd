//! Whether every replica has, or could have, a node: the scheduler's words, sorted into reasons. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::rollout::Waiting;
use crate::api::{Accelerator, Reason};
use crate::conditions::Verdict;
use crate::nodes::{self, NodeFacts};
use crate::pod_health;

/// Says whether the replicas have nodes. `nodes` is absent where nothing has to be placed.
#[must_use]
pub fn verdict(
    workload: Option<&Deployment>,
    pods: &[&Pod],
    nodes: Option<&[NodeFacts]>,
    accelerator: &Accelerator,
    waiting: &Waiting,
) -> Verdict {
    let Some(workload) = workload else {
        return Verdict::waiting("no pod has been asked for yet");
    };
    if let Some((reason, message)) = refused(workload) {
        return Verdict::no(reason, message);
    }
    let unplaced = pods
        .iter()
        .find_map(|pod| Some((*pod, pod_health::unscheduled(pod)?)));
    let Some((pod, words)) = unplaced else {
        return Verdict::yes(Reason::Succeeded, "every replica has a node");
    };
    let (reason, advice) = if words.gated {
        (
            Reason::Gated,
            "; whoever set the gate (a queue, for example) takes it away".to_owned(),
        )
    } else {
        sort(&words.message, pod, nodes.unwrap_or_default(), accelerator)
    };
    let next = match waiting {
        Waiting::No => String::new(),
        // Without the seconds, which would change the message all the time.
        Waiting::For(_) | Waiting::Over(_) => {
            "; the next of spec.accelerators is tried when no replica finds a node in time"
                .to_owned()
        }
        Waiting::Partly { placed, of } => format!(
            "; {placed} of {of} replicas have a node, so none moves to the next of spec.accelerators"
        ),
    };
    Verdict::no(
        reason,
        format!(
            "pod {} has no node: {}{advice}{next}",
            pod.name_any(),
            words.message
        ),
    )
}

/// Pods that were refused before they were made.
fn refused(workload: &Deployment) -> Option<(Reason, String)> {
    let condition = workload
        .status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| {
            condition.type_.as_deref() == Some("ReplicaFailure")
                && condition.status.as_deref() == Some("True")
        })?;
    let words = condition.message.clone().unwrap_or_default();
    let name = workload.name_any();
    Some(if words.contains("exceeded quota") {
        (
            Reason::QuotaExceeded,
            format!(
                "a ResourceQuota leaves no room for pods of Deployment {name}: {words}; raise it, or lower spec.runtime.resources or spec.replicas"
            ),
        )
    } else {
        (
            Reason::PodsRefused,
            format!("pods of Deployment {name} are refused: {words}"),
        )
    })
}

/// The scheduler lists a count of nodes for each cause; the cause that only a change can remove comes first.
fn sort(
    words: &str,
    pod: &Pod,
    nodes: &[NodeFacts],
    accelerator: &Accelerator,
) -> (Reason, String) {
    let empty = k8s_openapi::api::core::v1::PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let requests = nodes::requests(spec);
    let admitting: Vec<&NodeFacts> = nodes.iter().filter(|node| node.admits(spec)).collect();
    let kind = accelerator.kind.as_str();
    let lacks_gpu = kind != "cpu" && words.contains(&format!("Insufficient {kind}"));
    if lacks_gpu || words.contains("Insufficient ") {
        let largest = |name: &str| {
            admitting
                .iter()
                .map(|node| node.allocatable.get(name).copied().unwrap_or_default())
                .fold(0.0, f64::max)
        };
        let offered = kind == "cpu" || largest(kind) > 0.0;
        if !admitting.is_empty()
            && offered
            && !admitting.iter().any(|node| node.is_large_enough(&requests))
        {
            let short: Vec<String> = requests
                .iter()
                .filter(|(name, amount)| largest(name) < **amount)
                .map(|(name, amount)| {
                    format!(
                        "{name}: {} asked, {} at most",
                        shown(name, *amount),
                        shown(name, largest(name))
                    )
                })
                .collect();
            return (
                Reason::TooLargeForAnyNode,
                format!(
                    "; no node is large enough even when empty ({}); add a larger one, or ask for less in spec.runtime.resources, spec.limits or spec.accelerators",
                    short.join(", ")
                ),
            );
        }
    }
    if lacks_gpu {
        return (
            Reason::InsufficientGpu,
            format!(
                "; {kind} is taken or not there: wait, add nodes, or name another option in spec.accelerators"
            ),
        );
    }
    if words.contains("volume node affinity conflict")
        || words.contains("PersistentVolume's node affinity")
    {
        return (
            Reason::VolumeAffinityConflict,
            "; the weights' volume is tied to other nodes: use ReadWriteMany in spec.weights.storage.accessModes, or a StorageClass that binds when the first pod comes".to_owned(),
        );
    }
    if words.contains("Insufficient ") {
        return (
            Reason::InsufficientResources,
            "; wait, add nodes, or ask for less in spec.runtime.resources".to_owned(),
        );
    }
    if [
        "node affinity",
        "node selector",
        "untolerated taint",
        "topology spread",
        "were unschedulable",
    ]
    .iter()
    .any(|cause| words.contains(cause))
    {
        return (
            Reason::NoNodeMatches,
            "; see spec.pod.nodeSelector, spec.pod.affinity, spec.pod.tolerations and products and minMemory in spec.accelerators".to_owned(),
        );
    }
    (Reason::Unschedulable, String::new())
}

fn shown(name: &str, amount: f64) -> String {
    if name == "memory" || name == "ephemeral-storage" {
        format!("{:.1} GiB", amount / (1024.0 * 1024.0 * 1024.0))
    } else {
        format!("{amount}")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(words: &str, nodes: &[NodeFacts]) -> Reason {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "serve", "resources": {"requests": {"nvidia.com/gpu": "2"}}}]}}))
            .unwrap();
        let gpu: Accelerator = serde_json::from_value(json!({"type": "nvidia.com/gpu"})).unwrap();
        sort(words, &pod, nodes, &gpu).0
    }

    fn node(gpus: f64) -> NodeFacts {
        NodeFacts {
            open: true,
            allocatable: [
                ("nvidia.com/gpu".to_owned(), gpus),
                ("pods".to_owned(), 9.0),
            ]
            .into(),
            ..NodeFacts::default()
        }
    }

    #[test]
    fn the_scheduler_s_words_have_reasons() {
        let gpu =
            "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. no new claims to deallocate";
        assert_eq!(check(gpu, &[node(2.0)]), Reason::InsufficientGpu);
        assert_eq!(check(gpu, &[node(1.0)]), Reason::TooLargeForAnyNode);
        assert_eq!(check(gpu, &[]), Reason::InsufficientGpu);
        assert_eq!(
            check(
                "0/1 nodes are available: 1 Insufficient memory.",
                &[node(2.0)]
            ),
            Reason::InsufficientResources
        );
        for words in [
            "0/1 nodes are available: 1 node(s) had volume node affinity conflict.",
            "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) didn't match Pod's node affinity/selector.",
        ] {
            assert_eq!(check(words, &[]), Reason::VolumeAffinityConflict);
        }
        for words in [
            "0/1 nodes are available: 1 node(s) had untolerated taint(s).",
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ] {
            assert_eq!(check(words, &[]), Reason::NoNodeMatches);
        }
        assert_eq!(check("something new", &[]), Reason::Unschedulable);
    }
}
