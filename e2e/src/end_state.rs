//! Everything of ours in a namespace, without what differs from run to run, so that two runs can be compared.

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use futures::future::try_join_all;
use serde_json::{Map, Value};

use crate::cluster::{
    BUDGET, CLAIM, CONTROLLER_REVISION, Cluster, DEPLOYMENT, JOB, Kind, MODEL_CACHE,
    MODEL_DEPLOYMENT, POD, SERVICE,
};

/// Objects that users make as well; all of them are compared.
const OURS: [Kind; 2] = [MODEL_DEPLOYMENT, MODEL_CACHE];

/// Children, compared where they carry our label. A new kind of child is one more word here.
const CHILDREN: [Kind; 7] = [
    DEPLOYMENT,
    SERVICE,
    JOB,
    CLAIM,
    POD,
    CONTROLLER_REVISION,
    BUDGET,
];

const CHILD_LABEL: &str = "app.kubernetes.io/managed-by=chandler-operator";

/// Fields that differ from run to run by nature: identities, times, addresses, and digests of what holds them.
const VOLATILE: [&str; 32] = [
    // Digests of a spec, the card's name included.
    "basis",
    "chandler.dev/spec",
    "uid",
    "claimUid",
    "resourceVersion",
    "generation",
    "observedGeneration",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "generateName",
    "lastTransitionTime",
    "lastUpdateTime",
    "lastUsedTime",
    "lastProbeTime",
    "startTime",
    "startedAt",
    "finishedAt",
    "completionTime",
    "startup",
    "clusterIP",
    "clusterIPs",
    "nodePort",
    "healthCheckNodePort",
    "nodeName",
    "uncountedTerminatedPods",
    "chandler.dev/applied",
    "chandler.dev/claim-uid",
    "batch.kubernetes.io/controller-uid",
    "controller-uid",
    "pod-template-hash",
    "secondsLeft",
];

/// Begins the keys of what the cluster still has to take away.
const LEAVING: &str = "leaving";

/// What is compared: each object under its kind and name.
pub type EndState = BTreeMap<String, Value>;

/// Reads the state of a namespace.
///
/// # Errors
/// When the API server does not answer.
pub async fn read(cluster: &Cluster, namespace: &str) -> Result<EndState> {
    let ours = OURS.into_iter().map(|kind| (kind, ""));
    let children = CHILDREN.into_iter().map(|kind| (kind, CHILD_LABEL));
    let lists = ours.chain(children).map(async |(kind, selector)| {
        let objects = cluster.list(kind, namespace, selector).await?;
        anyhow::Ok((kind, objects))
    });
    let found = try_join_all(lists).await?;
    let uids: HashSet<&str> = found
        .iter()
        .flat_map(|(_, objects)| objects)
        .filter_map(|object| object["metadata"]["uid"].as_str())
        .collect();
    let leaving: Vec<String> = found
        .iter()
        .flat_map(|(kind, objects)| objects.iter().map(move |object| (kind, object)))
        .filter(|(_, object)| is_leaving(object, &uids))
        .map(|(kind, object)| format!("{LEAVING} {}/{}", kind.word(), object["metadata"]["name"]))
        .collect();
    let mut state: EndState = leaving.into_iter().map(|key| (key, Value::Null)).collect();
    for (kind, objects) in found {
        for object in objects {
            if kind.word() == "Pod" && is_deleted(&object) {
                continue;
            }
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let name = stable_name(kind, name);
            let object = normal(kind.word(), object, namespace);
            // Replicas of one revision are alike but for their names.
            let mut key = format!("{}/{name}", kind.word());
            while state.contains_key(&key) {
                key.push('+');
            }
            state.insert(key, object);
        }
    }
    Ok(state)
}

/// Whether the cluster still has to take this away: it is deleted, or its owner is gone.
fn is_leaving(object: &Value, uids: &HashSet<&str>) -> bool {
    // Owners of other kinds are not listed.
    let is_listed = |owner: &Value| {
        let mut kinds = OURS.into_iter().chain(CHILDREN);
        kinds.any(|kind| owner["kind"] == kind.word())
    };
    let is_there = |owner: &Value| owner["uid"].as_str().is_some_and(|uid| uids.contains(uid));
    let owners = object["metadata"]["ownerReferences"].as_array();
    let mut owners = owners.into_iter().flatten();
    is_deleted(object) || owners.any(|owner| is_listed(owner) && !is_there(owner))
}

fn is_deleted(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Whether this state may change by itself, for all that can be seen: something is on its way out, or the operator is at work.
#[must_use]
pub fn is_on_the_way(state: &EndState) -> bool {
    let at_work = |object: &Value| {
        let conditions = object["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Reconciling" && condition["status"] == "True")
    };
    state
        .iter()
        .any(|(key, object)| key.starts_with(LEAVING) || at_work(object))
}

/// Without the digest or suffix that differs: pods' are random, and a Job's digest covers the claim's UID.
fn stable_name(kind: Kind, name: &str) -> String {
    match kind.word() {
        "Pod" => {
            // NAME-HASH-SUFFIX of a Deployment, NAME-fetch-DIGEST-SUFFIX of a Job.
            let parts: Vec<&str> = name.rsplitn(3, '-').collect();
            format!("{}-…", parts.last().copied().unwrap_or(name))
        }
        // A revision's digest covers the card's name, which is the stage's own.
        "Job" | "ControllerRevision" => without_digest(name),
        _ => name.to_owned(),
    }
}

fn without_digest(name: &str) -> String {
    match name.rsplit_once('-') {
        Some((stem, _)) => format!("{stem}-…"),
        None => name.to_owned(),
    }
}

// Entries of a list do not say their kind.
fn normal(kind: &str, object: Value, namespace: &str) -> Value {
    let mut object = object;
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("name");
    }
    // Generations count what happened; what matters is that the status speaks of the present spec.
    let observed = object["status"]["observedGeneration"].clone();
    if !observed.is_null() {
        object["status"]["isCurrent"] = (observed == object["metadata"]["generation"]).into();
    }
    if let Some(revision) = object["status"]["revision"].as_str() {
        object["status"]["revision"] = without_digest(revision).into();
    }
    // Likewise: what is kept of a spec here is its digest.
    if kind == "ControllerRevision"
        && let Some(data) = object["data"].as_object_mut()
    {
        data.retain(|key, value| !(key == "spec" && value.is_string()));
    }
    // How the pods of the last rollout were replaced; the next one chooses anew.
    if kind == "Deployment"
        && let Some(spec) = object["spec"].as_object_mut()
    {
        spec.remove("strategy");
    }
    // What a claim's own controllers say of its use, in their own time.
    if kind == "PersistentVolumeClaim"
        && let Some(status) = object["status"].as_object_mut()
    {
        status.remove("conditions");
    }
    // The Job's controller numbers and counts in its own time; what the Job was asked is its spec.
    if kind == "Job" {
        let succeeded = object["status"]["succeeded"].clone();
        object["status"] = serde_json::json!({ "succeeded": succeeded });
    }
    walk(object, namespace)
}

fn walk(value: Value, namespace: &str) -> Value {
    match value {
        Value::Object(fields) => {
            let kept: Map<String, Value> = fields
                .into_iter()
                .filter(|(key, _)| !VOLATILE.contains(&key.as_str()))
                .map(|(key, value)| {
                    let is_job_name = key == "batch.kubernetes.io/job-name" || key == "job-name";
                    let value = match value {
                        Value::String(text) if is_job_name => Value::String(without_digest(&text)),
                        other => walk(other, namespace),
                    };
                    (key, value)
                })
                .collect();
            if let (Some(kind), Some(Value::String(name))) = (kept.get("kind"), kept.get("name"))
                && (kind == "ReplicaSet" || kind == "Job")
            {
                let name = without_digest(name);
                let mut kept = kept.clone();
                kept.insert("name".to_owned(), Value::String(name));
                return Value::Object(kept);
            }
            Value::Object(kept)
        }
        Value::Array(list) => Value::Array(
            list.into_iter()
                .map(|value| walk(value, namespace))
                .filter(|value| !is_progressing(value))
                .collect(),
        ),
        Value::String(text) => Value::String(text.replace(namespace, "NAMESPACE")),
        other => other,
    }
}

/// A Deployment's own words about its ReplicaSet, which name it.
fn is_progressing(value: &Value) -> bool {
    value["type"] == "Progressing"
        && value["message"]
            .as_str()
            .is_some_and(|m| m.contains("ReplicaSet"))
}

/// Where two states differ, one line each; `-` is what was expected, `+` what was found.
#[must_use]
pub fn diff(expected: &EndState, found: &EndState) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, object) in expected {
        match found.get(key) {
            None => lines.push(format!("- {key}")),
            Some(other) => differences(key, object, other, &mut lines),
        }
    }
    for (key, object) in found {
        if !expected.contains_key(key) {
            lines.push(format!("+ {key} {}", short(object)));
        }
    }
    lines
}

fn differences(path: &str, expected: &Value, found: &Value, lines: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(one), Value::Object(other)) => {
            let mut keys: Vec<&String> = one.keys().chain(other.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let null = Value::Null;
                let (one, other) = (
                    one.get(key).unwrap_or(&null),
                    other.get(key).unwrap_or(&null),
                );
                differences(&format!("{path}.{key}"), one, other, lines);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differences(&format!("{path}[{index}]"), one, other, lines);
            }
        }
        _ if expected == found => {}
        _ => lines.push(format!("{path}: - {} + {}", short(expected), short(found))),
    }
}

/// Longest value that a difference repeats.
const LONGEST: usize = 300;

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_by_nature_is_no_difference() {
        let one = json!({"kind": "Job", "metadata": {"name": "a-fetch-12", "uid": "1", "namespace": "x"}, "spec": {"a": "in x"}, "status": {"succeeded": 1, "startTime": "t"}});
        let other = json!({"kind": "Job", "metadata": {"name": "a-fetch-34", "uid": "2", "namespace": "y"}, "spec": {"a": "in y"}, "status": {"succeeded": 1}});
        let state = |object, namespace| {
            EndState::from([("Job/a".to_owned(), normal("Job", object, namespace))])
        };
        assert_eq!(
            diff(&state(one, "x"), &state(other, "y")),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_difference_names_object_and_field() {
        let state = |value: i32| {
            EndState::from([("Service/a".to_owned(), json!({"spec": {"port": value}}))])
        };
        assert_eq!(diff(&state(1), &state(2)), ["Service/a.spec.port: - 1 + 2"]);
        assert_eq!(diff(&state(1), &EndState::new()), ["- Service/a"]);
    }
}
