//! Decision + facts + old status → new status. Pure; the time is passed in.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::build::service;
use super::decide::{Decision, Model};
use super::observe::Observed;
use super::progress::{CacheState, Known, Resolution};
use super::revision::{Fate, Revision, digest_of_template};
use super::rollout::{self, Deadline, Strategy, pods_of};
use super::validate::Origin;
use super::{scheduling, startup};
use crate::answer::is_commit;
use crate::api::{
    ConditionType, DeviceStatus, ModelDeployment, ModelDeploymentStatus, Reason, ResolvedModel,
    Startup,
};
use crate::child::{self, Family, MANAGEMENT_PORT};
use crate::conditions::{self, Holds, Verdict, shortened};
use crate::digest;
use crate::model_status::ModelStatus;
use crate::pod_health;

/// A pod that answers nothing for so long after its start is failing its probe.
const PROBE_PATIENCE_SECONDS: i64 = 30;

/// Longest reason of a pod for computing elsewhere that is repeated in the status.
const MAX_OBSTACLE: usize = 512;

/// The usual reason, where the pod gives none.
const NOT_HANDED_OUT: &str =
    "the node's driver or runtime class does not hand the accelerator to the container";

/// The status after a reconcile. `observed` holds the Deployment as the API server returned it;
/// `refused` what it said to an object that it did not take.
#[must_use]
pub fn status(
    object: &ModelDeployment,
    decision: &Decision,
    refused: Option<&(Reason, String)>,
    observed: &Observed,
    now: Timestamp,
) -> ModelDeploymentStatus {
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation.unwrap_or_default();
    let name = object.name_any();
    let counts = observed
        .workload
        .as_ref()
        .and_then(|workload| workload.status.clone())
        .unwrap_or_default();
    let serving = decision.serving.as_ref();
    let pods = serving.map_or_else(Vec::new, |serving| {
        pods_of(observed, serving.template_digest())
    });
    let seen = Seen {
        object,
        decision,
        observed,
        device: device(&pods, observed, old.device.as_ref()),
        pods,
        now,
    };
    let (model, cache) = match &decision.model {
        Err(_) => (old.model, old.cache),
        Ok(model) => (
            Some(resolved_model(model, observed)),
            model
                .cache
                .as_ref()
                .map(|cache| cache.name.clone())
                .or(old.cache),
        ),
    };
    let selector: Vec<String> = child::identity(Family::Deployment, &name, "serve")
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let verdicts = seen.verdicts(refused);
    ModelDeploymentStatus {
        observed_generation: generation,
        model,
        cache,
        endpoint: observed.service.as_ref().map(|_| service::endpoint(object)),
        plan: decision.plan.clone(),
        startup: seen.startup(old.startup),
        device: seen.device,
        revision: serving.map(|serving| serving.name.clone()),
        replicas: counts.replicas.unwrap_or_default(),
        updated_replicas: counts.updated_replicas.unwrap_or_default(),
        ready_replicas: counts.ready_replicas.unwrap_or_default(),
        selector: Some(selector.join(",")),
        conditions: conditions::merge(&old.conditions, verdicts, generation, now),
    }
}

/// Whether all replicas are made from this revision and ready, as the Deployment's controller counts them.
#[must_use]
pub fn all_ready(object: &ModelDeployment, observed: &Observed, revision: &Revision) -> bool {
    let Some(workload) = &observed.workload else {
        return false;
    };
    let wanted = Some(object.spec.replicas);
    let counts = workload.status.clone().unwrap_or_default();
    digest_of_template(&workload.spec.template) == revision.template_digest()
        && is_current(object, observed)
        && counts.updated_replicas.or(Some(0)) == wanted
        && counts.replicas.or(Some(0)) == wanted
        && counts.ready_replicas.or(Some(0)) == wanted
}

/// Whether the Deployment's controller has seen what we applied.
fn is_current(object: &ModelDeployment, observed: &Observed) -> bool {
    observed.workload.as_ref().is_some_and(|workload| {
        let seen = workload
            .status
            .as_ref()
            .and_then(|status| status.observed_generation);
        let wanted = workload.spec.replicas;
        seen.is_some()
            && seen == workload.metadata.generation
            && wanted == Some(object.spec.replicas)
    })
}

fn resolved_model(model: &Model, observed: &Observed) -> ResolvedModel {
    let choice = &model.validated.choice;
    let mut resolved = ResolvedModel {
        hub: Some(choice.source.hub),
        id: choice.source.id.clone(),
        commit: None,
        format: choice.format,
        size_in_billions: choice.size_in_billions.clone(),
        quantization: choice.quantization.clone(),
        bytes: None,
        architecture: None,
        supported: None,
        dimensions: None,
        request: None,
    };
    match (&model.resolution, &model.validated.origin) {
        (Resolution::Known(Known::Found(found)), _) => {
            resolved.id.clone_from(&found.id);
            resolved.commit = Some(found.commit.clone());
            resolved.bytes = Some(found.bytes);
            resolved.architecture.clone_from(&found.architecture);
            resolved.supported = found.supported;
            resolved.dimensions = found.dimensions;
            resolved.request = Some(found.request.clone());
        }
        (Resolution::Asking(_), Origin::Hub { request, .. }) => {
            resolved.request = Some(digest::of(request));
        }
        (_, origin) => {
            if let Origin::Claim(_) = origin {
                resolved.hub = None;
            }
            if let Some(status) = observed
                .cache
                .as_ref()
                .and_then(|cache| cache.status.as_ref())
            {
                resolved.commit = status.commit.clone().filter(|commit| is_commit(commit));
                resolved.bytes = status.bytes_total;
                resolved.architecture.clone_from(&status.architecture);
            }
        }
    }
    resolved
}

/// What the pods of the revision that serves say they compute on; an answer stays as long as its pod is ready:
/// a process that starts again may find another device.
fn device(pods: &[&Pod], observed: &Observed, old: Option<&DeviceStatus>) -> Option<DeviceStatus> {
    let said = pods.iter().find_map(|pod| {
        let said = observed.saying.get(&pod.name_any())?;
        Some(DeviceStatus {
            kind: said.device.clone().filter(|_| said.phase == "Ready")?,
            obstacle: said
                .device_obstacle
                .as_ref()
                .map(|words| shortened(words.clone(), MAX_OBSTACLE)),
            dtype: said.dtype.clone(),
            bytes_resident: said.bytes_resident,
            pod: pod.name_any(),
        })
    });
    let answers = |pod: &&Pod, name: &str| pod.name_any() == name && pod_health::is_ready(pod);
    let kept = old.filter(|old| pods.iter().any(|pod| answers(pod, &old.pod)));
    kept.cloned().or(said)
}

/// Everything that the conditions are read from.
struct Seen<'a> {
    object: &'a ModelDeployment,
    decision: &'a Decision,
    observed: &'a Observed,
    /// Pods of the revision that serves.
    pods: Vec<&'a Pod>,
    device: Option<DeviceStatus>,
    now: Timestamp,
}

impl Seen<'_> {
    fn verdicts(&self, refused: Option<&(Reason, String)>) -> Vec<(ConditionType, Verdict)> {
        let resolved = self.model_resolved();
        let weights = self.weights_cached();
        let schedulable = self.schedulable();
        let healthy = self.runtime_healthy();
        let available = self.available(&schedulable);
        let ready = match refused {
            _ if resolved.holds != Holds::Yes => resolved.clone(),
            Some((reason, words)) => Verdict::no(*reason, words),
            None if self.object.spec.replicas == 0 && weights.holds == Holds::Yes => {
                self.suspended()
            }
            None if weights.holds != Holds::Yes => weights.clone(),
            None => self.ready(&healthy, &schedulable),
        };
        // What is not known yet is not ready.
        let ready = if ready.holds == Holds::Unknown {
            Verdict {
                holds: Holds::No,
                ..ready
            }
        } else {
            ready
        };
        let mut verdicts = vec![
            (ConditionType::Ready, ready.clone()),
            (ConditionType::ModelResolved, resolved),
            (ConditionType::WeightsCached, weights),
            (ConditionType::Schedulable, schedulable),
            (ConditionType::RuntimeHealthy, healthy),
            (ConditionType::Available, available),
        ];
        verdicts.extend(conditions::progress(&ready, self.is_out_of_time(&ready)));
        verdicts
    }

    /// Whether the pods had their time. What is missing outside them has none.
    fn is_out_of_time(&self, ready: &Verdict) -> bool {
        self.decision.deadline == Deadline::Passed
            && matches!(
                ready.reason,
                Reason::ImagePullFailed
                    | Reason::CrashLooping
                    | Reason::OutOfMemory
                    | Reason::LoadFailed
                    | Reason::DeviceLost
                    | Reason::ProbeFailing
                    | Reason::RollingOut
                    | Reason::Starting
            )
    }

    fn model_resolved(&self) -> Verdict {
        let model = match &self.decision.model {
            Err(violation) => return Verdict::no(violation.reason, &violation.message),
            Ok(model) => model,
        };
        let choice = &model.validated.choice;
        match &model.resolution {
            Resolution::Asking(state) => {
                let (reason, message) = state.verdict(Reason::Resolving);
                Verdict::no(reason, message)
            }
            Resolution::Known(Known::Found(found)) => Verdict::yes(
                Reason::Succeeded,
                format!(
                    "{} at commit {} ({}, {} billion parameters, quantization {}, {} bytes){}",
                    found.id,
                    found.commit,
                    choice.format.as_str(),
                    choice.size_in_billions,
                    choice.quantization,
                    found.bytes,
                    self.card_news()
                ),
            ),
            Resolution::Known(Known::Given) => Verdict::yes(
                Reason::Succeeded,
                format!(
                    "the weights come from ModelCache {}{}",
                    model.cache.as_ref().map_or("", |cache| &cache.name),
                    self.card_news()
                ),
            ),
        }
    }

    /// What became of the card since the pods were made from it.
    fn card_news(&self) -> String {
        let wanted = self.decision.wanted.as_ref();
        let Some((card, used)) = self
            .object
            .spec
            .model
            .card
            .as_ref()
            .zip(wanted.and_then(|wanted| wanted.record.card_digest.as_ref()))
        else {
            return String::new();
        };
        let what = match &self.observed.card {
            None => "was deleted",
            Some(card) if digest::of(&card.spec) != *used => "has changed",
            Some(_) => return String::new(),
        };
        format!(
            ". ModelCard {card} {what} since; pods stay as they are until the spec changes (a new value in spec.pod.annotations is enough to take it up)"
        )
    }

    fn weights_cached(&self) -> Verdict {
        let Ok(model) = &self.decision.model else {
            return Verdict::waiting("the model is not resolved");
        };
        match &model.weights {
            CacheState::Unknown => match &model.resolution {
                // Whatever keeps the hub from naming the commit keeps the weights away.
                Resolution::Asking(state) => {
                    let (reason, message) = state.verdict(Reason::Resolving);
                    Verdict::no(reason, message)
                }
                Resolution::Known(_) => Verdict::waiting("the commit is not known yet"),
            },
            CacheState::Waiting { reason, message } => Verdict::no(*reason, message),
            CacheState::Ready(weights) => Verdict::yes(
                Reason::Succeeded,
                format!(
                    "every file is on claim {} in /{}",
                    weights.claim, weights.path
                ),
            ),
        }
    }

    fn schedulable(&self) -> Verdict {
        match &self.decision.serving {
            None => Verdict::waiting("no pod has been asked for yet"),
            Some(serving) => scheduling::verdict(
                self.observed,
                &serving.record,
                &self.pods,
                &self.decision.waiting,
            ),
        }
    }

    fn runtime_healthy(&self) -> Verdict {
        let (Some(serving), Some(_)) = (&self.decision.serving, &self.observed.workload) else {
            return Verdict::waiting("no pod has been asked for yet");
        };
        for pod in &self.pods {
            if pod_health::unscheduled(pod).is_some() {
                continue;
            }
            if let Some(trouble) = pod_health::trouble(pod) {
                return Verdict::no(trouble.reason, trouble.message);
            }
            if let Some(error) = self
                .observed
                .saying
                .get(&pod.name_any())
                .and_then(|said| said.error.as_ref())
            {
                let message = format!("pod {}: {}", pod.name_any(), error.message);
                let reason = Reason::from_serve(&error.reason).unwrap_or(Reason::LoadFailed);
                return Verdict::no(reason, message);
            }
            if let Some(verdict) = silent(pod, self.now) {
                return verdict;
            }
        }
        let accelerator = &serving.record.accelerator.kind;
        match &self.device {
            Some(device) if device.kind == "cpu" && accelerator != "cpu" => Verdict::no(
                Reason::WrongDevice,
                format!(
                    "pod {} asked for {accelerator} and computes on the CPU: {}; see the node's driver, spec.pod.runtimeClassName and spec.runtime.image",
                    device.pod,
                    device.obstacle.as_deref().unwrap_or(NOT_HANDED_OUT)
                ),
            ),
            _ => Verdict::yes(Reason::Succeeded, "no pod is failing"),
        }
    }

    fn available(&self, schedulable: &Verdict) -> Verdict {
        let ready = self
            .observed
            .workload
            .as_ref()
            .and_then(|workload| workload.status.as_ref()?.ready_replicas)
            .unwrap_or_default();
        if ready > 0 {
            return Verdict::yes(Reason::Answering, format!("{ready} replicas answer"));
        }
        if self.object.spec.replicas == 0 {
            return Verdict::no(Reason::Suspended, "spec.replicas is 0");
        }
        match schedulable.holds {
            Holds::No => schedulable.clone(),
            Holds::Yes | Holds::Unknown => {
                Verdict::no(Reason::NoReadyReplica, "no replica answers yet")
            }
        }
    }

    fn suspended(&self) -> Verdict {
        // The Deployment no longer counts pods that are leaving, and they still answer.
        let left = self
            .observed
            .pods
            .iter()
            .filter(|pod| !pod_health::is_over(pod))
            .count();
        if left > 0 || !is_current(self.object, self.observed) {
            return Verdict::no(
                Reason::RollingOut,
                format!("spec.replicas is 0; {left} pods are leaving"),
            );
        }
        Verdict::yes(
            Reason::Suspended,
            "spec.replicas is 0: nothing runs and the weights are kept",
        )
    }

    fn ready(&self, healthy: &Verdict, schedulable: &Verdict) -> Verdict {
        let wanted = self.object.spec.replicas;
        let (Some(revision), Some(serving)) = (&self.decision.wanted, &self.decision.serving)
        else {
            return Verdict::no(Reason::Starting, "the pods are being made");
        };
        if let (Fate::Failed(why), true) = (&revision.fate, revision.name != serving.name) {
            return Verdict::no(
                Reason::RolledBack,
                format!(
                    "revision {} was {why}, so revision {} serves again; correct the spec to try anew",
                    revision.name, serving.name
                ),
            );
        }
        if all_ready(self.object, self.observed, revision) {
            if healthy.reason == Reason::WrongDevice {
                return healthy.clone();
            }
            return Verdict::yes(
                Reason::AllReplicasReady,
                format!(
                    "{wanted} of {wanted} replicas are ready at {}",
                    service::endpoint(self.object)
                ),
            );
        }
        if healthy.holds == Holds::No {
            return healthy.clone();
        }
        if schedulable.holds == Holds::No {
            return schedulable.clone();
        }
        let counts = self
            .observed
            .workload
            .as_ref()
            .and_then(|workload| workload.status.clone())
            .unwrap_or_default();
        let (all, updated, ready) = (
            counts.replicas.unwrap_or_default(),
            counts.updated_replicas.unwrap_or_default(),
            counts.ready_replicas.unwrap_or_default(),
        );
        if self.decision.deadline == Deadline::Passed {
            return Verdict::no(
                Reason::DeadlineExceeded,
                format!(
                    "{ready} of {wanted} replicas are ready {} s (spec.rollout.progressDeadlineSeconds) after the pods had their nodes{}",
                    rollout::deadline_seconds(self.object),
                    self.loading()
                ),
            );
        }
        if is_current(self.object, self.observed) && all > updated {
            let order = match self.decision.strategy {
                Strategy::SurgeFirst => "",
                Strategy::TerminateFirst => {
                    "; an old replica ends before a new one starts, one at a time (spec.rollout.policy, or no node has room for one more)"
                }
            };
            return Verdict::no(
                Reason::RollingOut,
                format!(
                    "{updated} of {wanted} replicas have the new revision, {} of the old one are left{order}",
                    all - updated
                ),
            );
        }
        Verdict::no(
            Reason::Starting,
            format!("{ready} of {wanted} replicas are ready{}", self.loading()),
        )
    }

    /// How long the slowest replica took; an older answer about the same pod knows more.
    fn startup(&self, old: Option<Startup>) -> Option<Startup> {
        let now = startup::slowest(&self.pods, |pod| self.observed.saying.get(pod));
        match (now, old) {
            (Some(now), Some(old)) if old.pod == now.pod && now.loaded_seconds.is_none() => {
                Some(old)
            }
            (Some(now), _) => Some(now),
            (None, old) => old.filter(|old| self.pods.iter().any(|pod| pod.name_any() == old.pod)),
        }
    }

    /// How far the slowest pod is, in its own words.
    fn loading(&self) -> String {
        let total = self
            .observed
            .cache
            .as_ref()
            .and_then(|cache| cache.status.as_ref())
            .and_then(|s| s.bytes_total);
        self.pods
            .iter()
            .filter(|pod| !pod_health::is_ready(pod))
            .find_map(|pod| Some((pod.name_any(), self.observed.saying.get(&pod.name_any())?)))
            .map(|(name, said)| {
                format!(
                    "; pod {name} says: {}{}",
                    said.phase.to_lowercase(),
                    percent(said, total)
                )
            })
            .unwrap_or_default()
    }
}

/// A container that runs and does not even answer its startup probe.
fn silent(pod: &Pod, now: Timestamp) -> Option<Verdict> {
    let container = pod
        .status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .iter()
        .find(|c| c.name == "serve")?;
    let since = container
        .state
        .as_ref()?
        .running
        .as_ref()?
        .started_at
        .as_ref()?;
    let seconds = now.duration_since(since.0).as_secs();
    (container.started != Some(true) && seconds > PROBE_PATIENCE_SECONDS).then(|| {
        Verdict::no(
            Reason::ProbeFailing,
            format!(
                "pod {} has run for more than {PROBE_PATIENCE_SECONDS} s without answering /healthz on port {MANAGEMENT_PORT}; see its log",
                pod.name_any()
            ),
        )
    })
}

fn percent(said: &ModelStatus, total: Option<i64>) -> String {
    match (said.phase.as_str(), said.bytes_resident, total) {
        // In steps of ten, so that the status is not written at every look.
        ("Loading", Some(resident), Some(total)) if total > 0 => {
            let percent = (resident.clamp(0, total) as f64 / total as f64 * 10.0).floor() * 10.0;
            format!(" {percent} %")
        }
        _ => String::new(),
    }
}
