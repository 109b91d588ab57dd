//! The Deployment of the serving pods, and what keeps node drains from ending all of them. Pure.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::{container, engine};
use crate::api::ModelDeployment;
use crate::child::{self, Family, REVISION};
use crate::config::PodDefaults;
use crate::digest;
use crate::model_deployment::progress::Weights;
use crate::model_deployment::rollout::Strategy;
use crate::model_deployment::validate::Validated;

/// Builds the pods' template. It names the commit's folder, so replicas of one revision cannot differ.
#[must_use]
pub fn build_template(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    defaults: &PodDefaults,
) -> PodTemplateSpec {
    let name = object.name_any();
    let (temporary, temporary_mount) = child::temporary_volume();
    let (mut container, more_volumes, more_mounts) =
        engine::build_container(object, validated, weights, defaults);
    let mut volumes = vec![
        child::claim_volume("weights", &weights.claim, true),
        temporary,
    ];
    volumes.extend(more_volumes);
    let mut mounts = vec![
        child::mount("weights", container::WEIGHTS_FOLDER, true),
        temporary_mount,
    ];
    mounts.extend(more_mounts);
    container.volume_mounts = Some(mounts);
    let mut pod = child::restricted_pod(&validated.shape, container, volumes, defaults);
    pod.termination_grace_period_seconds = Some(container::GRACE_SECONDS);
    let extra = object.spec.pod.clone().unwrap_or_default();
    let mut labels = extra.labels;
    labels.extend(child::labels(Family::Deployment, &name, "serve"));
    let mut annotations = extra.annotations;
    annotations.remove(REVISION);
    let mut template = PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: Some(annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(pod),
    };
    annotations.insert(REVISION.to_owned(), digest::of(&template));
    if let Some(metadata) = &mut template.metadata {
        metadata.annotations = Some(annotations);
    }
    template
}

/// Builds the Deployment from a revision's template.
#[must_use]
pub fn build_workload(
    object: &ModelDeployment,
    template: PodTemplateSpec,
    strategy: Strategy,
) -> Deployment {
    let name = object.name_any();
    let (max_surge, max_unavailable) = match strategy {
        Strategy::SurgeFirst => (1, 0),
        Strategy::TerminateFirst => (0, 1),
    };
    Deployment {
        metadata: child::owned_meta(
            object,
            name.clone(),
            child::labels(Family::Deployment, &name, "serve"),
        ),
        spec: DeploymentSpec {
            replicas: Some(object.spec.replicas),
            revision_history_limit: Some(2),
            selector: selector(&name),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(max_surge)),
                    max_unavailable: Some(IntOrString::Int(max_unavailable)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        },
        status: None,
    }
}

fn selector(name: &str) -> LabelSelector {
    LabelSelector {
        match_labels: Some(child::identity(Family::Deployment, name, "serve")),
        ..LabelSelector::default()
    }
}

/// Builds the budget: a drain ends one replica at a time, and never waits for one that does not answer anyway.
#[must_use]
pub fn build_budget(object: &ModelDeployment) -> PodDisruptionBudget {
    let name = object.name_any();
    PodDisruptionBudget {
        metadata: child::owned_meta(
            object,
            name.clone(),
            child::labels(Family::Deployment, &name, "serve"),
        ),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(selector(&name)),
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}
