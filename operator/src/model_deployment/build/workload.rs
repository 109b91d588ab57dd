//! The Deployment of the serving pods. Pure.

use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use super::runtime;
use crate::api::ModelDeployment;
use crate::child::{self, Family, REVISION};
use crate::config::PodDefaults;
use crate::digest;
use crate::model_deployment::progress::Weights;
use crate::model_deployment::validate::Validated;

/// Builds the Deployment. Its template names the commit's folder, so replicas of one revision cannot differ.
#[must_use]
pub fn build_workload(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    defaults: &PodDefaults,
) -> Deployment {
    let name = object.name_any();
    let own_labels = child::labels(Family::Deployment, &name, "serve");
    let (temporary, temporary_mount) = child::temporary_volume();
    let container = runtime::build_container(object, validated, weights, defaults, temporary_mount);
    let volumes = vec![
        child::claim_volume("weights", &weights.claim, true),
        temporary,
    ];
    let mut pod = child::restricted_pod(&validated.shape, container, volumes, defaults);
    pod.termination_grace_period_seconds = Some(runtime::GRACE_SECONDS);
    let extra = object.spec.pod.clone().unwrap_or_default();
    let mut labels = extra.labels;
    labels.extend(own_labels.clone());
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
    Deployment {
        metadata: child::owned_meta(object, name.clone(), own_labels),
        spec: DeploymentSpec {
            replicas: Some(object.spec.replicas),
            revision_history_limit: Some(2),
            selector: LabelSelector {
                match_labels: Some(child::identity(Family::Deployment, &name, "serve")),
                ..LabelSelector::default()
            },
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template,
            ..DeploymentSpec::default()
        },
        status: None,
    }
}
