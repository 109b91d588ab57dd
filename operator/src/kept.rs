//! How each kind is kept in its store: what is dropped from its objects, and what they are found by.
//!
//! Children whose fields are compared with what we want (`drift`) keep their spec whole.

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Container, Node, NodeSpec, NodeStatus, PersistentVolumeClaim, Pod, PodSpec, PodStatus, Service,
    Volume,
};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::api::{ConditionType, ModelCache, ModelCard, ModelDeployment, Reason};
use crate::child::{MODEL_CACHE, MODEL_DEPLOYMENT};
use crate::conditions;
use crate::kubernetes::Kind;
use crate::model_cache::{claim_name, observe};
use crate::model_deployment::revision::cache_of;
use crate::store::{Facet, Kept};

/// ModelDeployments by the card that they name; cards belong to no namespace.
pub const NAMES_CARD: &str = "card";

/// ModelDeployments by the ModelCache that they name or use, and revisions by the one that they need.
pub const USES_CACHE: &str = "cache";

/// Pods and Deployments by a claim that they mount, and ModelCaches by the claim that holds their files.
pub const CLAIM: &str = "claim";

/// ModelCaches whose files come from a hub.
pub const IS_HUB: &str = "hub";

/// ModelDeployments by the reason of their Ready condition ([`ready_reason`]).
pub const IS_READY: &str = "ready";

/// The reason of a ModelDeployment that has no Ready condition yet.
pub const UNREPORTED: &str = "Unreported";

/// The reason of one whose condition somebody else wrote: foreign words are no label of ours.
pub const OTHER: &str = "Other";

/// What kubectl leaves on objects that it applied without the server's help: a copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

impl Kept for ModelDeployment {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        let namespace = self.namespace().unwrap_or_default();
        let card = self.spec.model.card.iter();
        let card = card.map(|card| Facet::new("", NAMES_CARD, card));
        let caches =
            observe::caches_of(self).map(|cache| Facet::new(&namespace, USES_CACHE, cache));
        let ready = Facet::new("", IS_READY, ready_reason(self));
        card.chain(caches).chain([ready]).collect()
    }
}

impl Kept for ModelCache {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        let namespace = self.namespace().unwrap_or_default();
        let claim = Facet::new(&namespace, CLAIM, &claim_name(self));
        let fetched = self.spec.source.hub.as_ref();
        let fetched = fetched.map(|_| Facet::new(&namespace, IS_HUB, ""));
        [claim].into_iter().chain(fetched).collect()
    }
}

impl Kept for ModelCard {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        Vec::new()
    }
}

impl Kept for StorageClass {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        Vec::new()
    }
}

impl Kept for Job {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        owners(self)
    }
}

impl Kept for Service {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        owners(self)
    }
}

impl Kept for PersistentVolumeClaim {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        owners(self)
    }
}

impl Kept for ControllerRevision {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        let namespace = self.namespace().unwrap_or_default();
        let mut facets = owners(self);
        facets.extend(cache_of(self).map(|cache| Facet::new(&namespace, USES_CACHE, cache)));
        facets
    }
}

impl Kept for PodDisruptionBudget {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        owners(self)
    }
}

impl Kept for RuntimeClass {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        Vec::new()
    }
}

impl Kept for Node {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
        self.metadata.annotations = None;
        self.spec = self.spec.take().map(|spec| NodeSpec {
            taints: spec.taints,
            unschedulable: spec.unschedulable,
            ..NodeSpec::default()
        });
        // A node's status is mostly the list of images that it has.
        self.status = self.status.take().map(|status| NodeStatus {
            allocatable: status.allocatable,
            conditions: status.conditions,
            ..NodeStatus::default()
        });
    }

    fn facets(&self) -> Vec<Facet> {
        Vec::new()
    }
}

impl Kept for Deployment {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
    }

    fn facets(&self) -> Vec<Facet> {
        let mut facets = owners(self);
        facets.extend(claims(self, self.spec.template.spec.as_ref()));
        facets
    }
}

impl Kept for Pod {
    fn strip(&mut self) {
        strip_meta(&mut self.metadata);
        self.spec = self.spec.take().map(pod_spec);
        self.status = self.status.take().map(pod_status);
    }

    fn facets(&self) -> Vec<Facet> {
        let mut facets = owners(self);
        facets.extend(claims(self, self.spec.as_ref()));
        facets
    }
}

/// Why a ModelDeployment is Ready or not.
fn ready_reason(object: &ModelDeployment) -> &'static str {
    let status = object.status.as_ref();
    let ready =
        status.and_then(|status| conditions::find(&status.conditions, ConditionType::Ready));
    ready.map_or(UNREPORTED, |ready| {
        Reason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .find(|reason| *reason == ready.reason)
            .unwrap_or(OTHER)
    })
}

/// Drops what no decision about any kind reads.
pub fn strip_meta(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

/// The owners of a child, by label.
#[must_use]
pub fn owners<K: Kind>(child: &K) -> Vec<Facet> {
    let namespace = child.namespace().unwrap_or_default();
    [MODEL_DEPLOYMENT, MODEL_CACHE]
        .into_iter()
        .filter_map(|label| Some(Facet::new(&namespace, label, child.labels().get(label)?)))
        .collect()
}

/// The claims that a pod mounts.
#[must_use]
pub fn claims<K: Kind>(object: &K, pod: Option<&PodSpec>) -> Vec<Facet> {
    let namespace = object.namespace().unwrap_or_default();
    pod.and_then(|pod| pod.volumes.as_ref())
        .into_iter()
        .flatten()
        .filter_map(|volume| volume.persistent_volume_claim.as_ref())
        .map(|source| Facet::new(&namespace, CLAIM, &source.claim_name))
        .collect()
}

/// Where a pod runs or could run, what it mounts and what its containers are: a pod is never compared with what we want.
fn pod_spec(spec: PodSpec) -> PodSpec {
    let slim = |containers: Vec<Container>| {
        containers
            .into_iter()
            .map(|container| Container {
                name: container.name,
                image: container.image,
                resources: container.resources,
                restart_policy: container.restart_policy,
                ..Container::default()
            })
            .collect()
    };
    // What the scheduler went by is only looked at while it has found no node.
    let is_placed = spec.node_name.is_some();
    let volumes = spec.volumes.into_iter().flatten();
    let volumes: Vec<Volume> = volumes
        .filter(|volume| volume.persistent_volume_claim.is_some())
        .collect();
    PodSpec {
        node_name: spec.node_name,
        containers: slim(spec.containers),
        init_containers: spec.init_containers.map(slim),
        overhead: spec.overhead,
        node_selector: spec.node_selector.filter(|_| !is_placed),
        affinity: spec.affinity.filter(|_| !is_placed),
        tolerations: spec.tolerations.filter(|_| !is_placed),
        scheduling_gates: spec.scheduling_gates.filter(|_| !is_placed),
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn pod_status(status: PodStatus) -> PodStatus {
    PodStatus {
        phase: status.phase,
        reason: status.reason,
        message: status.message,
        conditions: status.conditions,
        container_statuses: status.container_statuses,
        init_container_statuses: status.init_container_statuses,
        pod_ip: status.pod_ip,
        ..PodStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_pod_keeps_what_decisions_read_and_loses_the_rest() {
        let mut pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "name": "p", "namespace": "a", "uid": "1", "labels": {MODEL_DEPLOYMENT: "x"},
                "annotations": {"chandler.dev/revision": "r", LAST_APPLIED: "{}"},
                "managedFields": [{"manager": "kubelet"}],
            },
            "spec": {
                "nodeName": "n", "tolerations": [{"key": "k"}],
                "containers": [{"name": "serve", "image": "i", "args": ["long"], "env": [{"name": "E"}]}],
                "volumes": [
                    {"name": "weights", "persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "token", "projected": {}},
                ],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "hostIP": "10.0.0.2"},
        }))
        .unwrap();
        pod.strip();
        let kept: Value = serde_json::to_value(&pod).unwrap();
        assert_eq!(
            kept,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": "p", "namespace": "a", "uid": "1", "labels": {MODEL_DEPLOYMENT: "x"},
                    "annotations": {"chandler.dev/revision": "r"},
                },
                "spec": {
                    "nodeName": "n", "containers": [{"name": "serve", "image": "i"}],
                    "volumes": [{"name": "weights", "persistentVolumeClaim": {"claimName": "c"}}],
                },
                "status": {"phase": "Running", "podIP": "10.0.0.1"},
            })
        );
        assert_eq!(
            pod.facets(),
            [
                Facet::new("a", MODEL_DEPLOYMENT, "x"),
                Facet::new("a", CLAIM, "c")
            ]
        );
    }

    #[test]
    fn a_pod_without_a_node_keeps_what_the_scheduler_goes_by() {
        let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "containers": [], "nodeSelector": {"gpu": "yes"}, "tolerations": [{"key": "k"}],
        }}))
        .unwrap();
        pod.strip();
        let spec = pod.spec.unwrap();
        assert!(spec.node_selector.is_some() && spec.tolerations.is_some());
    }

    #[test]
    fn a_model_deployment_is_found_by_its_card_and_its_caches() {
        let user: ModelDeployment = serde_json::from_value(json!({
            "metadata": {"name": "m", "namespace": "a"},
            "spec": {"model": {"card": "c"}},
            "status": {"cache": "weights-1"},
        }))
        .unwrap();
        assert_eq!(
            user.facets(),
            [
                Facet::new("", NAMES_CARD, "c"),
                Facet::new("a", USES_CACHE, "weights-1"),
                Facet::new("", IS_READY, UNREPORTED),
            ]
        );
    }
}
