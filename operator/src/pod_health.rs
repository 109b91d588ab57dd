//! What is wrong with a pod, from its status alone.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;

use crate::answer::Answer;
use crate::api::Reason;
use crate::conditions::shortened;

/// Longest part of a log that is repeated in a condition.
const MAX_LAST_WORDS: usize = 512;

/// Something that keeps a pod from doing its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Why.
    pub reason: Reason,
    /// Which pod, what happened, and what to do.
    pub message: String,
}

/// What is wrong with a serving pod; nothing when it answers, or has only just been made.
#[must_use]
pub fn trouble(pod: &Pod) -> Option<Trouble> {
    if is_ready(pod) {
        return None;
    }
    job_trouble(pod)
}

/// What is wrong with a Job's pod. One that runs again after a failure has not got over it yet.
#[must_use]
pub fn job_trouble(pod: &Pod) -> Option<Trouble> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let of = |reason, message| Some(Trouble { reason, message });
    for container in status.container_statuses.iter().flatten() {
        if let Some((reason, message)) = container_trouble(container) {
            return of(reason, format!("pod {name}: {message}"));
        }
    }
    if let Some(why) = unscheduled(pod) {
        let advice = match why.reason() {
            Reason::ClaimPending => CLAIM_ADVICE,
            _ => "",
        };
        return of(
            why.reason(),
            format!("pod {name} has no node: {}{advice}", why.message),
        );
    }
    if status.phase.as_deref() == Some("Failed") {
        let why = status
            .message
            .as_deref()
            .or(status.reason.as_deref())
            .unwrap_or("no reason given");
        return of(Reason::CrashLooping, format!("pod {name} failed: {why}"));
    }
    None
}

fn container_trouble(container: &ContainerStatus) -> Option<(Reason, String)> {
    let state = container.state.as_ref()?;
    if let Some(waiting) = &state.waiting {
        let word = waiting.reason.as_deref().unwrap_or_default();
        let why = waiting.message.as_deref().unwrap_or("no reason given");
        match word {
            "ErrImagePull"
            | "ImagePullBackOff"
            | "ErrImageNeverPull"
            | "InvalidImageName"
            | "ImageInspectError"
            | "RegistryUnavailable" => {
                return Some((
                    Reason::ImagePullFailed,
                    format!(
                        "image {} cannot be pulled ({word}: {}); check its name, the pull policy and imagePullSecrets",
                        container.image,
                        shortened(why.to_owned(), MAX_LAST_WORDS)
                    ),
                ));
            }
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                return Some((
                    Reason::CrashLooping,
                    format!("the container cannot be made ({word}): {why}"),
                ));
            }
            _ => {}
        }
    }
    let ended = state
        .terminated
        .as_ref()
        .or_else(|| {
            container
                .last_state
                .as_ref()
                .and_then(|last| last.terminated.as_ref())
        })
        .filter(|ended| ended.exit_code != 0)?;
    Some(end(container, ended))
}

/// Why a container ended, and what to do about it.
fn end(container: &ContainerStatus, ended: &ContainerStateTerminated) -> (Reason, String) {
    let words = ended.message.as_deref().unwrap_or_default();
    if ended.reason.as_deref() == Some("OOMKilled") {
        return (
            Reason::OutOfMemory,
            format!(
                "the kernel ended it for using more than its memory limit; {} (restarts: {})",
                more_memory(&container.name),
                container.restart_count
            ),
        );
    }
    if let Some(Answer::Failed(failure)) = Answer::parse(words) {
        return failure.verdict();
    }
    let last: String = {
        let text = words.trim();
        let from = text.len().saturating_sub(MAX_LAST_WORDS);
        let from = (from..=text.len())
            .find(|at| text.is_char_boundary(*at))
            .unwrap_or(0);
        text[from..].to_owned()
    };
    let last = if last.is_empty() {
        "nothing".to_owned()
    } else {
        last
    };
    (
        Reason::CrashLooping,
        format!(
            "container {} ended with exit code {} (restarts: {}); its last words: {last}",
            container.name, ended.exit_code, container.restart_count
        ),
    )
}

/// Where to give a container more memory, or let it need less.
fn more_memory(container: &str) -> &'static str {
    match container {
        "serve" => {
            "raise runtime.resources.limits.memory, or lower limits.contextLength or limits.maxSequences"
        }
        _ => {
            "make a ModelCache with more memory in spec.pod.resources.limits and name it in weights.cache"
        }
    }
}

/// Why a pod has no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unscheduled {
    /// Whether a gate holds it back, so that the scheduler does not look at it.
    pub gated: bool,
    /// The scheduler's words.
    pub message: String,
}

impl Unscheduled {
    /// The scheduler's words as a reason. It lists a count of nodes for each cause, and no cause stands alone;
    /// the one that says most about what to do comes first.
    #[must_use]
    pub fn reason(&self) -> Reason {
        let says = |cause: &str| self.message.contains(cause);
        if self.gated {
            Reason::Gated
        } else if says("unbound immediate PersistentVolumeClaims") {
            Reason::ClaimPending
        } else if says("volume node affinity conflict") || says("PersistentVolume's node affinity")
        {
            Reason::VolumeAffinityConflict
        } else if says("Insufficient ") {
            Reason::InsufficientResources
        } else if NO_MATCH.iter().any(|cause| says(cause)) {
            Reason::NoNodeMatches
        } else {
            Reason::Unschedulable
        }
    }
}

/// What would help a claim that has no volume.
pub const CLAIM_ADVICE: &str = "; `kubectl describe pvc` says what its claim waits for: a volume, or a provisioner that makes one";

/// What the scheduler says of nodes that a pod may not use.
const NO_MATCH: [&str; 5] = [
    "node affinity",
    "node selector",
    "untolerated taint",
    "topology spread",
    "were unschedulable",
];

/// Why a pod has no node; nothing when it has one, or nobody has looked yet.
#[must_use]
pub fn unscheduled(pod: &Pod) -> Option<Unscheduled> {
    let condition = condition(pod, "PodScheduled").filter(|c| c.status == "False")?;
    Some(Unscheduled {
        gated: condition.reason.as_deref() == Some("SchedulingGated"),
        message: condition
            .message
            .clone()
            .unwrap_or_else(|| "the scheduler gave no reason".to_owned()),
    })
}

/// Since when the scheduler has found no node for a pod; a gate does not count.
#[must_use]
pub fn unschedulable_since(pod: &Pod) -> Option<Timestamp> {
    unscheduled(pod).filter(|why| !why.gated)?;
    // The condition's own time moves only when it becomes true.
    Some(
        condition(pod, "PodScheduled")?
            .last_transition_time
            .as_ref()?
            .0,
    )
}

/// Whether a pod has a node.
#[must_use]
pub fn has_node(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.is_some())
}

/// When a pod got its node.
#[must_use]
pub fn placed_at(pod: &Pod) -> Option<Timestamp> {
    transition(pod, "PodScheduled")
}

/// When a condition became true.
#[must_use]
pub fn transition(pod: &Pod, kind: &str) -> Option<Timestamp> {
    let condition = condition(pod, kind).filter(|c| c.status == "True")?;
    Some(condition.last_transition_time.as_ref()?.0)
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// Whether a pod has ended for good, after an eviction or a node's shutdown.
#[must_use]
pub fn is_over(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Failed" | "Succeeded"))
}

/// Whether a pod is on its way out.
#[must_use]
pub fn is_leaving(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether a pod's Ready condition is true.
#[must_use]
pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(container: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "status": {"containerStatuses": [container]},
        }))
        .unwrap()
    }

    fn container(state: &serde_json::Value, last: &serde_json::Value) -> serde_json::Value {
        json!({"name": "serve", "image": "i", "imageID": "", "ready": false, "restartCount": 3, "state": state, "lastState": last})
    }

    #[test]
    fn each_way_to_fail_has_its_reason() {
        let waiting = |reason: &str| json!({"waiting": {"reason": reason, "message": "m"}});
        let ended = |reason: &str, code: i32, message: &str| json!({"terminated": {"reason": reason, "exitCode": code, "message": message}});
        let load = r#"{"outcome":"Failed","reason":"LoadFailed","message":"x.gguf is cut off"}"#;
        let lost = r#"{"outcome":"Failed","reason":"DeviceLost","message":"Xid 79"}"#;
        for (state, last, reason, words) in [
            (
                waiting("ImagePullBackOff"),
                json!({}),
                Reason::ImagePullFailed,
                "image i cannot be pulled",
            ),
            (
                waiting("CrashLoopBackOff"),
                ended("OOMKilled", 137, ""),
                Reason::OutOfMemory,
                "raise runtime.resources",
            ),
            (
                waiting("CrashLoopBackOff"),
                ended("Error", 1, load),
                Reason::LoadFailed,
                "x.gguf is cut off",
            ),
            (
                waiting("CrashLoopBackOff"),
                ended("Error", 101, "panicked"),
                Reason::CrashLooping,
                "its last words: panicked",
            ),
            (
                ended("Error", 1, load),
                json!({}),
                Reason::LoadFailed,
                "x.gguf",
            ),
            (
                json!({"running": {}}),
                ended("Error", 1, lost),
                Reason::DeviceLost,
                "Xid 79",
            ),
        ] {
            let found = trouble(&pod(&container(&state, &last))).unwrap();
            assert_eq!(found.reason, reason);
            assert!(found.message.contains(words), "{}", found.message);
        }
    }

    #[test]
    fn the_scheduler_s_words_have_reasons() {
        for (words, reason) in [
            (
                "1 node(s) had volume node affinity conflict.",
                Reason::VolumeAffinityConflict,
            ),
            (
                "1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) didn't match Pod's node affinity/selector.",
                Reason::VolumeAffinityConflict,
            ),
            (
                "1 Insufficient memory, 3 node(s) had untolerated taint(s).",
                Reason::InsufficientResources,
            ),
            ("1 node(s) had untolerated taint(s).", Reason::NoNodeMatches),
            (
                "1 node(s) didn't match Pod's node affinity/selector.",
                Reason::NoNodeMatches,
            ),
            ("something new", Reason::Unschedulable),
        ] {
            let why = Unscheduled {
                gated: false,
                message: format!("0/4 nodes are available: {words}"),
            };
            assert_eq!(why.reason(), reason, "{words}");
        }
    }

    #[test]
    fn a_pod_that_is_being_made_has_no_trouble() {
        let state = json!({"waiting": {"reason": "ContainerCreating"}});
        assert_eq!(trouble(&pod(&container(&state, &json!({})))), None);
    }
}
