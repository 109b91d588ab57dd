//! Plays what a cluster without a node lacks: claims are bound, pods get a node, run, end and leave.
//!
//! Everything else is real: the API server, and the controllers that make pods of Jobs and Deployments.
//! A part may be held in a namespace: then it stays as the API server made it, as with a dead node or a hub that never answers.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;

use crate::cluster::{CRD, Cluster, NODE, STORAGE_CLASS};
use crate::tools::checkout;
use crate::wait::{Seen, until};

/// The StorageClass that is the cluster's default.
pub const CLASS: &str = "played";

/// The node that pods are said to be on.
const NODE_NAME: &str = "played";

/// Bytes of every model: what the demo model has.
const BYTES: i64 = 98_362_432;

/// Objects that are worked on at a time: enough to hide the API server's time to answer.
const CONCURRENCY: usize = 32;

/// Something that the player does, unless it is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// Claims are bound.
    Claims,
    /// Jobs that ask the hub end with an answer.
    Resolve,
    /// Jobs that fetch, or look at what is there, end with an answer.
    Fetch,
    /// Serving pods become ready.
    Serve,
    /// Pods that are deleted end.
    Leave,
}

/// Whether pods get a node. Those with one leave in two steps, as real ones do; those without go at once, with one write less each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nodes {
    /// They are bound to a node that is played.
    Bound,
    /// They run nowhere.
    None,
}

/// Plays until it is dropped.
pub struct Player {
    held: Arc<Mutex<HashSet<(String, Part)>>>,
    _tasks: JoinSet<()>,
}

/// Brings what every played cluster needs: our kinds, a default StorageClass, a node.
///
/// # Errors
/// When the API server refuses, or does not offer our kinds soon.
pub async fn prepare(cluster: &Cluster) -> Result<()> {
    for kind in ["modelcaches", "modelcards", "modeldeployments"] {
        let path = checkout().join(format!("crds/{kind}.yaml"));
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let definition: Value = serde_saphyr::from_str(&text)?;
        cluster.apply(CRD, "", definition).await?;
        let name = format!("{kind}.chandler.dev");
        until(
            std::time::Duration::from_secs(30),
            &format!("the kind {name} to be offered"),
            async || {
                let found = cluster.get(CRD, "", &name).await?.unwrap_or_default();
                let established = crate::model::condition(&found, "Established");
                Ok(Seen::when(established["status"] == "True", || {
                    found["status"].to_string()
                }))
            },
        )
        .await?;
    }
    let class = json!({
        "metadata": { "name": CLASS, "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } },
        "provisioner": "chandler.dev/played",
    });
    cluster.apply(STORAGE_CLASS, "", class).await?;
    let node = json!({ "metadata": { "name": NODE_NAME } });
    cluster.apply(NODE, "", node).await?;
    Ok(())
}

impl Player {
    /// Starts to play in all namespaces.
    #[must_use]
    pub fn start(cluster: &Cluster, nodes: Nodes) -> Self {
        let held = Arc::new(Mutex::new(HashSet::new()));
        let mut tasks = JoinSet::new();
        let (client, parts) = (cluster.client.clone(), held.clone());
        tasks.spawn(async move {
            let ours =
                watcher::Config::default().labels("app.kubernetes.io/managed-by=chandler-operator");
            watcher(Api::<Pod>::all(client.clone()), ours)
                .default_backoff()
                .applied_objects()
                .for_each_concurrent(CONCURRENCY, async |pod| {
                    let Ok(pod) = pod else { return };
                    if let Err(error) = play_pod(&client, &pod, nodes, &parts).await {
                        tell("Pod", &pod, &error);
                    }
                })
                .await;
        });
        let (client, parts) = (cluster.client.clone(), held.clone());
        tasks.spawn(async move {
            watcher(
                Api::<PersistentVolumeClaim>::all(client.clone()),
                watcher::Config::default(),
            )
            .default_backoff()
            .applied_objects()
            .for_each_concurrent(CONCURRENCY, async |claim| {
                let Ok(claim) = claim else { return };
                if let Err(error) = play_claim(&client, &claim, &parts).await {
                    tell("PersistentVolumeClaim", &claim, &error);
                }
            })
            .await;
        });
        Self {
            held,
            _tasks: tasks,
        }
    }

    /// From now on a part is left undone in a namespace.
    pub fn hold(&self, namespace: &str, part: Part) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((namespace.to_owned(), part));
    }

    /// From now on every part is done again there, for objects that change.
    pub fn release(&self, namespace: &str) {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(held, _)| held != namespace);
    }
}

fn is_held(held: &Mutex<HashSet<(String, Part)>>, namespace: &str, part: Part) -> bool {
    held.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .contains(&(namespace.to_owned(), part))
}

/// An object that went, goes with its namespace, or changed meanwhile is nobody's fault; its next event is played.
fn tell<K: ResourceExt>(kind: &str, object: &K, error: &kube::Error) {
    if !matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404 | 409)) {
        eprintln!("player: {kind} {}: {error}", object.name_any());
    }
}

async fn play_pod(
    client: &Client,
    pod: &Pod,
    nodes: Nodes,
    held: &Mutex<HashSet<(String, Part)>>,
) -> kube::Result<()> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    if pod.metadata.deletion_timestamp.is_some() {
        if !is_held(held, &namespace, Part::Leave) {
            api.delete(&name, &DeleteParams::default().grace_period(0))
                .await?;
        }
        return Ok(());
    }
    let status = pod.status.clone().unwrap_or_default();
    if status.phase.as_deref() != Some("Pending") || status.container_statuses.is_some() {
        return Ok(());
    }
    let is_bound = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.is_some());
    if nodes == Nodes::Bound && !is_bound {
        // Its next event shows it on the node.
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": { "name": name },
            "target": { "apiVersion": "v1", "kind": "Node", "name": NODE_NAME },
        });
        let _: Value = api
            .create_subresource("binding", &name, &PostParams::default(), &binding)
            .await?;
        return Ok(());
    }
    let (part, status) = match pod
        .labels()
        .get("app.kubernetes.io/component")
        .map(String::as_str)
    {
        Some("resolve") => (Part::Resolve, ended(pod, &resolved(pod))),
        Some("fetch") => (Part::Fetch, ended(pod, &fetched(pod))),
        Some("verify") => (Part::Fetch, ended(pod, &verified())),
        _ => (Part::Serve, ready(pod)),
    };
    if !is_held(held, &namespace, part) {
        let patch = Patch::Merge(json!({ "status": status }));
        api.patch_status(&name, &PatchParams::default(), &patch)
            .await?;
    }
    Ok(())
}

async fn play_claim(
    client: &Client,
    claim: &PersistentVolumeClaim,
    held: &Mutex<HashSet<(String, Part)>>,
) -> kube::Result<()> {
    let (namespace, name) = (claim.namespace().unwrap_or_default(), claim.name_any());
    let phase = claim
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let spec = claim.spec.clone().unwrap_or_default();
    // As a real cluster: a claim of a class that nobody has stays pending.
    let has_class = spec
        .storage_class_name
        .as_deref()
        .is_none_or(|class| class == CLASS);
    if phase == Some("Bound") || !has_class || is_held(held, &namespace, Part::Claims) {
        return Ok(());
    }
    let capacity = spec.resources.and_then(|resources| resources.requests);
    let status =
        json!({ "phase": "Bound", "accessModes": spec.access_modes, "capacity": capacity });
    let api: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(&name, &PatchParams::default(), &patch)
        .await?;
    Ok(())
}

/// The value of `--FLAG=…` on the container's command line.
fn argument<'a>(pod: &'a Pod, flag: &str) -> Option<&'a str> {
    let container = pod.spec.as_ref()?.containers.first()?;
    let arguments = container.args.iter().flatten();
    arguments
        .filter_map(|argument| argument.strip_prefix("--")?.split_once('='))
        .find_map(|(name, value)| (name == flag).then_some(value))
}

/// A commit that follows from repository and revision, as if the hub had only this one.
fn commit(pod: &Pod) -> String {
    let revision = argument(pod, "revision").unwrap_or("main");
    if revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return revision.to_owned();
    }
    let id = argument(pod, "id").unwrap_or_default();
    hex(&Sha256::digest(format!("{id}@{revision}")))[..40].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `resolve` writes, by the contract in ARCHITECTURE.md.
fn resolved(pod: &Pod) -> Value {
    json!({
        "outcome": "Resolved", "id": argument(pod, "id"), "commit": commit(pod),
        "files": 1, "bytes": BYTES, "architecture": "llama", "supported": true,
    })
}

/// What `fetch` writes.
fn fetched(pod: &Pod) -> Value {
    let commit = commit(pod);
    json!({
        "outcome": "Fetched", "id": argument(pod, "id"), "commit": commit,
        "files": 1, "bytes": BYTES, "manifestDigest": format!("sha256:{}", hex(&Sha256::digest(&commit))),
    })
}

/// What `verify` writes.
fn verified() -> Value {
    json!({ "outcome": "Verified", "files": 1, "bytes": BYTES, "manifestDigest": format!("sha256:{}", hex(&Sha256::digest("given"))) })
}

fn conditions(pod: &Pod, is_ready: bool) -> Value {
    let since = &pod.metadata.creation_timestamp;
    let ready = if is_ready { "True" } else { "False" };
    let of = |kind: &str, status: &str| json!({ "type": kind, "status": status, "lastTransitionTime": since });
    json!([
        of("PodScheduled", "True"),
        of("Initialized", "True"),
        of("ContainersReady", ready),
        of("Ready", ready),
    ])
}

fn container(pod: &Pod, state: &Value) -> Value {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    json!({
        "name": container.map(|container| &container.name),
        "image": container.and_then(|container| container.image.as_ref()),
        "imageID": "", "restartCount": 0, "ready": false, "started": false,
        "state": state,
    })
}

fn ended(pod: &Pod, answer: &Value) -> Value {
    let since = &pod.metadata.creation_timestamp;
    let state = json!({ "terminated": {
        "exitCode": 0, "reason": "Completed", "startedAt": since, "finishedAt": since, "message": answer.to_string(),
    } });
    json!({
        "phase": "Succeeded",
        "conditions": conditions(pod, false),
        "containerStatuses": [container(pod, &state)],
    })
}

fn ready(pod: &Pod) -> Value {
    let mut container = container(
        pod,
        &json!({ "running": { "startedAt": pod.metadata.creation_timestamp } }),
    );
    container["ready"] = true.into();
    container["started"] = true.into();
    json!({
        "phase": "Running",
        "conditions": conditions(pod, true),
        "containerStatuses": [container],
    })
}

/// Lets a serving pod fail over and over, as the kubelet would say it.
///
/// # Errors
/// When the API server refuses.
pub async fn crash(client: &Client, pod: &Pod) -> kube::Result<()> {
    let mut container = container(
        pod,
        &json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off restarting failed container" } }),
    );
    container["restartCount"] = 1.into();
    container["lastState"] = json!({ "terminated": { "exitCode": 101, "reason": "Error", "message": "panicked: played" } });
    let status = json!({ "conditions": conditions(pod, false), "containerStatuses": [container] });
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let patch = Patch::Merge(json!({ "status": status }));
    api.patch_status(&pod.name_any(), &PatchParams::default(), &patch)
        .await?;
    Ok(())
}
