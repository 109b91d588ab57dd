//! Validated and its progress → the objects that should exist now. Pure; it cannot fail.

pub mod cache;
pub mod runtime;
pub mod service;
pub mod workload;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

use super::observe::Observed;
use super::progress::{CacheState, Resolution};
use super::validate::{Validated, WeightsFrom};
use crate::answer::Answer;
use crate::api::{ModelCache, ModelDeployment};
use crate::child::{Family, PodShape, REQUEST};
use crate::config::PodDefaults;
use crate::digest;
use crate::hub_job::{self, HubJob, Task};
use crate::job_state::JobState;

/// What should exist now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Objects {
    /// The Service in front of the pods.
    pub service: Option<Service>,
    /// The Job that asks the hub.
    pub job: Option<Job>,
    /// The cache that we make.
    pub cache: Option<ModelCache>,
    /// The serving pods.
    pub workload: Option<Deployment>,
    /// Jobs of older specs, or without their answer.
    pub stale_jobs: Vec<Job>,
}

/// Builds what should exist now.
#[must_use]
pub fn build(
    object: &ModelDeployment,
    validated: &Validated,
    resolution: &Resolution,
    cache_state: &CacheState,
    observed: &Observed,
    defaults: &PodDefaults,
) -> Objects {
    let mut objects = Objects {
        service: Some(service::build_service(object)),
        ..Objects::default()
    };
    if let WeightsFrom::Hub { request, token } = &validated.weights {
        let asked = digest::of(request);
        let old = observed
            .jobs
            .iter()
            .filter(|job| job.annotations().get(REQUEST) != Some(&asked));
        objects.stale_jobs = old.cloned().collect();
        match resolution {
            Resolution::Asking(state) => {
                // Where the answer comes from does not matter, so the Job may run anywhere.
                let shape = PodShape {
                    node_selector: Default::default(),
                    affinity: None,
                    topology_spread: Vec::new(),
                    runtime_class: None,
                    ..validated.shape.clone()
                };
                let parts = HubJob {
                    task: Task::Resolve,
                    request,
                    token: token.as_ref(),
                    shape: &shape,
                    resources: None,
                    defaults,
                };
                let job = hub_job::build(object, Family::Deployment, &parts);
                let over = matches!(
                    state,
                    JobState::Lost | JobState::Done(Answer::Failed(_) | Answer::Fetched(_))
                );
                let replaced = observed
                    .jobs
                    .iter()
                    .filter(|old| old.annotations().get(REQUEST) == Some(&asked))
                    .filter(|old| old.name_any() != job.name_any() || over);
                objects.stale_jobs.extend(replaced.cloned());
                let in_the_way = objects
                    .stale_jobs
                    .iter()
                    .any(|old| old.name_any() == job.name_any());
                objects.job = (!in_the_way).then_some(job);
            }
            Resolution::Found(found) => {
                objects.cache = Some(cache::build_cache(object, validated, found, observed));
            }
            Resolution::Cached { .. } => {}
        }
    }
    if let CacheState::Ready(weights) = cache_state {
        objects.workload = Some(workload::build_workload(
            object, validated, weights, defaults,
        ));
    }
    objects
}
