//! What all children have in common: labels, owners, and pods that the restricted Pod Security Standard accepts.
//!
//! Pure: objects in, objects out.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, Container, ContainerPort, EmptyDirVolumeSource, LocalObjectReference,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, ResourceRequirements,
    SeccompProfile, SecurityContext, Toleration, TopologySpreadConstraint, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use crate::api::{self, PodSecurity, Resources};
use crate::config::PodDefaults;

/// Field manager of every write, and the value of the managed-by label.
pub const MANAGER: &str = "chandler-operator";

/// Label that says who manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Label with the part that an object plays.
pub const COMPONENT: &str = "app.kubernetes.io/component";

/// Label with the ModelDeployment that an object belongs to.
pub const MODEL_DEPLOYMENT: &str = "chandler.dev/model-deployment";

/// Label with the ModelCache that an object belongs to.
pub const MODEL_CACHE: &str = "chandler.dev/model-cache";

/// Label of a ModelCache that the operator made.
pub const GENERATED: &str = "chandler.dev/generated";

/// Label by which people keep a ModelCache that nobody uses.
pub const PINNED: &str = "chandler.dev/pinned";

/// Name of the port of our runtime with health, metrics and status.
pub const MANAGEMENT_PORT_NAME: &str = "management";

/// That port.
pub const MANAGEMENT_PORT: i32 = 8081;

/// Annotation with the digest of what a Job was asked.
pub const REQUEST: &str = "chandler.dev/request";

/// Annotation of a pod template with the template's digest.
pub const REVISION: &str = "chandler.dev/revision";

/// Annotation of a child with the digest of what was applied, so that a field that we no longer write is noticed.
pub const APPLIED: &str = "chandler.dev/applied";

/// Whose child an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A ModelDeployment's.
    Deployment,
    /// A ModelCache's.
    Cache,
}

/// Labels of a child.
#[must_use]
pub fn labels(family: Family, owner: &str, component: &str) -> BTreeMap<String, String> {
    let mut labels = identity(family, owner, component);
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.insert(
        "app.kubernetes.io/name".to_owned(),
        "chandler-runtime".to_owned(),
    );
    labels.insert("app.kubernetes.io/instance".to_owned(), owner.to_owned());
    labels
}

/// The labels that select a child's pods.
#[must_use]
pub fn identity(family: Family, owner: &str, component: &str) -> BTreeMap<String, String> {
    let key = match family {
        Family::Deployment => MODEL_DEPLOYMENT,
        Family::Cache => MODEL_CACHE,
    };
    [
        (key.to_owned(), owner.to_owned()),
        (COMPONENT.to_owned(), component.to_owned()),
    ]
    .into()
}

/// Whether the operator made an object: it carries our managed-by label.
#[must_use]
pub fn is_managed<K: Resource>(object: &K) -> bool {
    object.labels().get(MANAGED_BY).map(String::as_str) == Some(MANAGER)
}

/// Metadata of a child that goes with its owner.
#[must_use]
pub fn owned_meta<K: Resource<DynamicType = ()>>(
    owner: &K,
    name: String,
    labels: BTreeMap<String, String>,
) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: owner.namespace(),
        labels: Some(labels),
        owner_references: Some(vec![owner_reference(owner)]),
        ..ObjectMeta::default()
    }
}

fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    owner
        .controller_owner_ref(&())
        .expect("an object that the API server sent has a name and a UID")
}

/// Where and as whom a pod runs: what users said, in Kubernetes' own types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodShape {
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that do not matter.
    pub tolerations: Vec<Toleration>,
    /// Affinity.
    pub affinity: Option<Affinity>,
    /// Spread over zones or nodes.
    pub topology_spread: Vec<TopologySpreadConstraint>,
    /// ServiceAccount, without its token.
    pub service_account: Option<String>,
    /// PriorityClass.
    pub priority_class: Option<String>,
    /// RuntimeClass.
    pub runtime_class: Option<String>,
    /// Scheduler.
    pub scheduler: Option<String>,
    /// User and groups.
    pub security: Option<PodSecurity>,
    /// Secrets with registry logins, besides the installation's.
    pub pull_secrets: Vec<String>,
}

/// A pod that the restricted Pod Security Standard accepts.
#[must_use]
pub fn restricted_pod(
    shape: &PodShape,
    container: Container,
    volumes: Vec<Volume>,
    defaults: &PodDefaults,
) -> PodSpec {
    let mut pull_secrets: Vec<String> = defaults.pull_secrets.clone();
    for name in &shape.pull_secrets {
        if !pull_secrets.contains(name) {
            pull_secrets.push(name.clone());
        }
    }
    let security = shape.security.as_ref();
    let fs_group = security.and_then(|s| s.fs_group).or(defaults.fs_group);
    PodSpec {
        containers: vec![Container {
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                capabilities: Some(Capabilities {
                    drop: Some(vec!["ALL".to_owned()]),
                    ..Capabilities::default()
                }),
                read_only_root_filesystem: Some(true),
                // What the container's own builder says about its user.
                ..container.security_context.clone().unwrap_or_default()
            }),
            termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
            ..container
        }],
        volumes: some(volumes),
        node_selector: (!shape.node_selector.is_empty()).then(|| shape.node_selector.clone()),
        tolerations: some(shape.tolerations.clone()),
        affinity: shape.affinity.clone(),
        topology_spread_constraints: some(shape.topology_spread.clone()),
        // Always named: the API server keeps the old field `serviceAccount` beside it, and would go back to that one.
        service_account_name: Some(
            shape
                .service_account
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
        ),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        priority_class_name: shape.priority_class.clone(),
        runtime_class_name: shape.runtime_class.clone(),
        scheduler_name: shape.scheduler.clone(),
        image_pull_secrets: some(
            pull_secrets
                .into_iter()
                .map(|name| LocalObjectReference { name })
                .collect(),
        ),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: security.and_then(|s| s.run_as_user),
            run_as_group: security.and_then(|s| s.run_as_group),
            fs_group,
            fs_group_change_policy: fs_group.map(|_| "OnRootMismatch".to_owned()),
            supplemental_groups: security
                .map(|s| s.supplemental_groups.clone())
                .filter(|groups| !groups.is_empty()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

fn some<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

/// A volume from a claim.
#[must_use]
pub fn claim_volume(name: &str, claim: &str, read_only: bool) -> Volume {
    Volume {
        name: name.to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
            claim_name: claim.to_owned(),
            // Written only where it says something: the API server drops `false`.
            read_only: read_only.then_some(true),
        }),
        ..Volume::default()
    }
}

/// The one writable folder of a container with a read-only root.
#[must_use]
pub fn temporary_volume() -> (Volume, VolumeMount) {
    let volume = Volume {
        name: "tmp".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity("256Mi".to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    };
    (volume, mount("tmp", "/tmp", false))
}

/// A port of a container.
#[must_use]
pub fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

/// Where a volume appears in a container.
#[must_use]
pub fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}

/// Requests and limits: what the user said, over defaults, entry by entry.
///
/// A request above a limit is refused by the API server, so a default gives way to what the user said.
#[must_use]
pub fn resources(
    user: Option<&Resources>,
    requests: &[(&str, String)],
    limits: &[(&str, String)],
) -> ResourceRequirements {
    let said = |map: &BTreeMap<String, api::QuantityText>| -> BTreeMap<String, Quantity> {
        map.iter()
            .map(|(name, amount)| (name.clone(), Quantity(amount.0.clone())))
            .collect()
    };
    let user = user.cloned().unwrap_or_default();
    let (mut requested, mut limited) = (said(&user.requests), said(&user.limits));
    let value = |quantity: &Quantity| crate::quantity::parse(&quantity.0).unwrap_or(f64::MAX);
    for (name, amount) in limits {
        let default = Quantity(amount.clone());
        let asked = requested
            .get(*name)
            .filter(|asked| value(asked) > value(&default));
        let entry = asked.cloned().unwrap_or(default);
        limited.entry((*name).to_owned()).or_insert(entry);
    }
    for (name, amount) in requests {
        let default = Quantity(amount.clone());
        let cap = limited
            .get(*name)
            .filter(|cap| value(cap) < value(&default));
        let entry = cap.cloned().unwrap_or(default);
        requested.entry((*name).to_owned()).or_insert(entry);
    }
    ResourceRequirements {
        requests: Some(requested),
        limits: Some(limited),
        ..ResourceRequirements::default()
    }
}

/// Tolerations in Kubernetes' own type.
#[must_use]
pub fn tolerations(list: &[api::Toleration]) -> Vec<Toleration> {
    list.iter()
        .map(|toleration| Toleration {
            key: toleration.key.clone(),
            operator: toleration.operator.map(|operator| {
                match operator {
                    api::TolerationOperator::Equal => "Equal",
                    api::TolerationOperator::Exists => "Exists",
                }
                .to_owned()
            }),
            value: toleration.value.clone(),
            effect: toleration.effect.map(|effect| {
                match effect {
                    api::TaintEffect::NoSchedule => "NoSchedule",
                    api::TaintEffect::PreferNoSchedule => "PreferNoSchedule",
                    api::TaintEffect::NoExecute => "NoExecute",
                }
                .to_owned()
            }),
            toleration_seconds: toleration.toleration_seconds,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(map: Option<BTreeMap<String, Quantity>>) -> Vec<(String, String)> {
        map.unwrap_or_default()
            .into_iter()
            .map(|(name, amount)| (name, amount.0))
            .collect()
    }

    #[test]
    fn defaults_give_way_to_what_the_user_said() {
        let user: Resources =
            serde_json::from_value(serde_json::json!({"limits": {"memory": "1Gi"}})).unwrap();
        let merged = resources(
            Some(&user),
            &[("memory", "2Gi".to_owned())],
            &[("memory", "4Gi".to_owned())],
        );
        assert_eq!(
            text(merged.limits),
            [("memory".to_owned(), "1Gi".to_owned())]
        );
        assert_eq!(
            text(merged.requests),
            [("memory".to_owned(), "1Gi".to_owned())]
        );
        let user: Resources =
            serde_json::from_value(serde_json::json!({"requests": {"memory": "8Gi"}})).unwrap();
        let merged = resources(
            Some(&user),
            &[("memory", "2Gi".to_owned())],
            &[("memory", "4Gi".to_owned())],
        );
        assert_eq!(
            text(merged.limits),
            [("memory".to_owned(), "8Gi".to_owned())]
        );
    }
}
