//! What was decided → the objects that should exist now. Pure; it cannot fail.

pub mod cache;
pub mod container;
pub mod engine;
pub mod python;
pub mod runtime;
pub mod service;
pub mod transformers;
pub mod vllm;
pub mod workload;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;

use super::observe::Observed;
use super::progress::Resolution;
use super::validate::{Origin, Validated};
use crate::answer::Answer;
use crate::api::{ModelCache, ModelDeployment};
use crate::child::{Family, PodShape, REQUEST};
use crate::config::PodDefaults;
use crate::digest;
use crate::job_state::JobState;
use crate::weights_job::{self, Asked, Task, WeightsJob};

/// What should exist now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// The Service in front of the pods.
    pub service: Option<Service>,
    /// The Job that asks the hub.
    pub job: Option<Job>,
    /// The cache that we make.
    pub cache: Option<ModelCache>,
    /// The revision that the spec wants.
    pub revision: Option<ControllerRevision>,
    /// The serving pods.
    pub workload: Option<Deployment>,
    /// What keeps drains from ending all of them.
    pub budget: Option<PodDisruptionBudget>,
    /// Jobs of older specs, or without their answer.
    pub stale_jobs: Vec<Job>,
    /// Revisions that nobody returns to.
    pub stale_revisions: Vec<ControllerRevision>,
}

/// The Job that asks the hub, and those that have to go first.
#[must_use]
pub fn question(
    object: &ModelDeployment,
    validated: &Validated,
    resolution: &Resolution,
    observed: &Observed,
    defaults: &PodDefaults,
) -> (Option<Job>, Vec<Job>) {
    let Origin::Hub { request, token } = &validated.origin else {
        return (None, observed.jobs.clone());
    };
    let asked = digest::of(request);
    let is_old = |job: &&Job| job.annotations().get(REQUEST) != Some(&asked);
    let mut stale: Vec<Job> = observed.jobs.iter().filter(is_old).cloned().collect();
    let Resolution::Asking(state) = resolution else {
        return (None, stale);
    };
    // Where the answer comes from does not matter, so the Job may run anywhere.
    let shape = PodShape {
        node_selector: Default::default(),
        affinity: None,
        topology_spread: Vec::new(),
        runtime_class: None,
        ..validated.shape.clone()
    };
    let parts = WeightsJob {
        task: Task::Resolve(Asked {
            request,
            token: token.as_ref(),
        }),
        shape: &shape,
        resources: None,
        defaults,
    };
    let job = weights_job::build(object, Family::Deployment, &parts);
    let over = matches!(
        state,
        JobState::Lost
            | JobState::Done(Answer::Failed(_) | Answer::Fetched(_) | Answer::Verified(_))
    );
    let replaced = observed
        .jobs
        .iter()
        .filter(|old| !is_old(old))
        .filter(|old| old.name_any() != job.name_any() || over);
    stale.extend(replaced.cloned());
    let in_the_way = stale.iter().any(|old| old.name_any() == job.name_any());
    ((!in_the_way).then_some(job), stale)
}
