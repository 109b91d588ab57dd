//! Whether every replica has, or could have, a node: the scheduler's words, sorted into reasons. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use kube::ResourceExt;

use super::observe::Observed;
use super::revision::Record;
use super::rollout::Waiting;
use crate::api::{Accelerator, Reason};
use crate::conditions::Verdict;
use crate::nodes::{self, NodeFacts};
use crate::pod_health::{self, Unscheduled};

/// Says whether the replicas of a revision have nodes, by its pods, the observed nodes and the observed volume.
#[must_use]
pub fn verdict(observed: &Observed, record: &Record, pods: &[&Pod], waiting: &Waiting) -> Verdict {
    let Some(workload) = &observed.workload else {
        return Verdict::waiting("no pod has been asked for yet");
    };
    if let Some((reason, message)) = refused(workload) {
        return Verdict::no(reason, message);
    }
    let unplaced = pods
        .iter()
        .find_map(|pod| Some((*pod, pod_health::unscheduled(pod)?)));
    let nodes = observed.nodes.as_deref().unwrap_or_default();
    let Some((pod, words)) = unplaced else {
        // Told before the scheduler has looked at the first pod.
        return match out_of_reach(observed.volume.as_ref(), nodes, record) {
            Some(message) if pods.is_empty() => {
                Verdict::no(Reason::VolumeAffinityConflict, message)
            }
            _ => Verdict::yes(Reason::Succeeded, "every replica has a node"),
        };
    };
    let (reason, advice) = sort(&words, pod, nodes, &record.accelerator);
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

/// Why no node that the pods may use reaches the volume of the weights; nothing where one does, or no node is known that they may use.
fn out_of_reach(
    volume: Option<&PersistentVolume>,
    nodes: &[NodeFacts],
    record: &Record,
) -> Option<String> {
    let (volume, spec) = (volume?, record.template.spec.as_ref()?);
    let admitting: Vec<&NodeFacts> = nodes.iter().filter(|node| node.admits(spec)).collect();
    if admitting.is_empty() || admitting.iter().any(|node| node.reaches(volume)) {
        return None;
    }
    let reaching = nodes.iter().filter(|node| node.reaches(volume)).collect();
    Some(format!(
        "volume {} of claim {} can be used on {}, the pods may run on {}{}",
        volume.name_any(),
        record.weights.claim,
        named(reaching),
        named(admitting),
        advice(Reason::VolumeAffinityConflict)
    ))
}

/// The first few names.
fn named(mut nodes: Vec<&NodeFacts>) -> String {
    const SHOWN: usize = 3;
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    match names.as_slice() {
        [] => "no node".to_owned(),
        [last] => format!("node {last} only"),
        names if names.len() <= SHOWN => format!("nodes {} only", names.join(", ")),
        names => format!(
            "nodes {} and {} others",
            names[..SHOWN].join(", "),
            names.len() - SHOWN
        ),
    }
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

/// The reason, with what the nodes and the accelerator add to it, and what would help.
fn sort(
    words: &Unscheduled,
    pod: &Pod,
    nodes: &[NodeFacts],
    accelerator: &Accelerator,
) -> (Reason, String) {
    let kind = accelerator.kind.as_str();
    let lacks_gpu = kind != "cpu" && words.message.contains(&format!("Insufficient {kind}"));
    match words.reason() {
        Reason::InsufficientResources => {
            if let Some(short) = too_large(pod, nodes, kind) {
                return (
                    Reason::TooLargeForAnyNode,
                    format!(
                        "; no node is large enough even when empty ({short}); add a larger one, or ask for less in spec.runtime.resources, spec.limits or spec.accelerators"
                    ),
                );
            }
            if lacks_gpu {
                return (
                    Reason::InsufficientGpu,
                    format!(
                        "; {kind} is taken or not there: wait, add nodes, or name another option in spec.accelerators"
                    ),
                );
            }
            let advice = "; wait, add nodes, or ask for less in spec.runtime.resources";
            (Reason::InsufficientResources, advice.to_owned())
        }
        reason => (reason, advice(reason).to_owned()),
    }
}

fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::ClaimPending => pod_health::CLAIM_ADVICE,
        Reason::Gated => "; whoever set the gate (a queue, for example) takes it away",
        Reason::VolumeAffinityConflict => {
            "; the weights' volume is tied to other nodes: use ReadWriteMany in spec.weights.storage.accessModes, or a StorageClass that binds when the first pod comes"
        }
        Reason::NoNodeMatches => {
            "; see spec.pod.nodeSelector, spec.pod.affinity, spec.pod.tolerations and products and minMemory in spec.accelerators"
        }
        _ => "",
    }
}

/// What no node that the pod may use has enough of even when empty; nothing where one is large enough, or none is known.
fn too_large(pod: &Pod, nodes: &[NodeFacts], kind: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let requests = nodes::requests(spec);
    let admitting: Vec<&NodeFacts> = nodes.iter().filter(|node| node.admits(spec)).collect();
    let largest = |name: &str| {
        let amounts = admitting.iter();
        amounts
            .map(|node| node.allocatable.get(name).copied().unwrap_or_default())
            .fold(0.0, f64::max)
    };
    let is_offered = kind == "cpu" || largest(kind) > 0.0;
    let fits = admitting.iter().any(|node| node.is_large_enough(&requests));
    if admitting.is_empty() || !is_offered || fits {
        return None;
    }
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
    Some(short.join(", "))
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
        let words = Unscheduled {
            gated: false,
            message: words.to_owned(),
        };
        sort(&words, &pod, nodes, &gpu).0
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
    fn nodes_and_accelerator_tell_more_than_the_scheduler() {
        let gpu = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.";
        assert_eq!(check(gpu, &[node(2.0)]), Reason::InsufficientGpu);
        assert_eq!(check(gpu, &[node(1.0)]), Reason::TooLargeForAnyNode);
        assert_eq!(check(gpu, &[node(0.0)]), Reason::InsufficientGpu);
        assert_eq!(check(gpu, &[]), Reason::InsufficientGpu);
        let memory = "0/1 nodes are available: 1 Insufficient memory.";
        assert_eq!(check(memory, &[node(2.0)]), Reason::InsufficientResources);
    }
}
