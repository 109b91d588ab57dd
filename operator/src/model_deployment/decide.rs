//! Facts → what should exist, and what is so. Pure; the driver and the golden cases walk the same way.
//!
//! revision of this spec, if there is one → model → cache → revision wanted → revision served → objects.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use super::build::{self, Objects, cache, service, workload};
use super::observe::Observed;
use super::plan;
use super::progress::{self, CacheState, Known, Resolution, Weights};
use super::revision::{self, CacheRecord, Fate, Record, Revision};
use super::rollout::{self, Deadline, Strategy, Waiting};
use super::status::all_ready;
use super::validate::{self, Validated};
use crate::api::{ModelCache, ModelDeployment, Plan, SecretKey, Upgrade};
use crate::config::PodDefaults;
use crate::digest;
use crate::model_cache::validate::Violation;
use crate::pod_health;

/// Finds a cache by its name, and the token that it fetches with.
pub type FindCache<'a> = dyn Fn(&str, &Validated) -> (Option<ModelCache>, Option<SecretKey>) + 'a;

/// What was decided.
#[derive(Clone, Debug)]
pub struct Decision {
    /// What is known of the model that the spec wants.
    pub model: Result<Model, Violation>,
    /// The revision that the spec wants, once its weights are there.
    pub wanted: Option<Revision>,
    /// The revision that pods are made from.
    pub serving: Option<Revision>,
    /// In which order pods are replaced.
    pub strategy: Strategy,
    /// How long replicas have waited for a node.
    pub waiting: Waiting,
    /// How much time the wanted revision has left.
    pub deadline: Deadline,
    /// What a replica needs.
    pub plan: Option<Plan>,
    /// Whether it would be another decision if the nodes were others.
    pub weighs_nodes: bool,
    /// What should exist.
    pub objects: Objects,
}

/// What is known of the model that a spec wants.
#[derive(Clone, Debug)]
pub struct Model {
    /// The spec as meant.
    pub validated: Validated,
    /// How far the question what the model is has come.
    pub resolution: Resolution,
    /// The cache, once the commit is known.
    pub cache: Option<CacheRecord>,
    /// How far the weights are.
    pub weights: CacheState,
}

impl Decision {
    /// When something is due without anybody's change.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let waiting = match self.waiting {
            Waiting::For(seconds) => Some(seconds),
            Waiting::No | Waiting::Partly { .. } | Waiting::Over(_) => None,
        };
        let deadline = match self.deadline {
            Deadline::Left(seconds) => Some(seconds),
            Deadline::Stopped | Deadline::Passed => None,
        };
        let soonest = waiting.into_iter().chain(deadline).min()?;
        Some(Duration::from_secs(soonest.max(1).unsigned_abs()))
    }
}

/// Decides. The cache that is wanted is looked up on the way and kept in `observed`.
#[must_use]
pub fn decide(
    object: &ModelDeployment,
    observed: &mut Observed,
    defaults: &PodDefaults,
    now: Timestamp,
    find_cache: &FindCache<'_>,
) -> Decision {
    let kept = revision::read(&observed.revisions);
    let spec = revision::spec_digest(object);
    let pinned = kept.first().filter(|newest| newest.record.spec == spec);
    let options = object.spec.accelerators.clone().unwrap_or_default();
    let waiting = pinned.map_or(Waiting::No, |revision| {
        rollout::waiting(revision, &options, observed, now)
    });
    let option = match (&waiting, pinned) {
        (Waiting::Over(next), _) => *next,
        (_, Some(revision)) => revision.record.option,
        (_, None) => 0,
    };
    let record = pinned.map(|revision| &revision.record);
    let model = model(object, observed, defaults, record, option, find_cache);
    let moves = matches!(waiting, Waiting::Over(_));
    let fresh = |model: &Model| {
        let record = new_record(object, observed, defaults, &spec, model, record)?;
        Some(revision::revision_of(object, record, &kept))
    };
    let wanted = match (&model, pinned) {
        (Ok(model), Some(pinned)) if moves || follows_operator(object) => {
            fresh(model).or_else(|| Some(pinned.clone()))
        }
        (Ok(model), None) => fresh(model),
        (_, pinned) => pinned.cloned(),
    };
    let deadline = wanted.as_ref().map_or(Deadline::Stopped, |wanted| {
        rollout::deadline(object, wanted, observed, now)
    });
    let wanted = wanted.map(|wanted| with_fate(object, wanted, observed, deadline));
    let serving = wanted
        .as_ref()
        .or(kept.first())
        .map(|newest| rollout::serving(object, newest, &kept).clone());
    let strategy = serving.as_ref().map_or(Strategy::SurgeFirst, |serving| {
        rollout::strategy(object, serving, observed)
    });
    let plan = made_plan(object, observed, defaults, &spec, &model);
    let is_new = |wanted: &Revision| kept.iter().all(|kept| kept.name != wanted.name);
    let weighs_nodes = plan.is_stale
        || wanted.as_ref().is_some_and(is_new)
        || serving
            .as_ref()
            .is_some_and(|serving| rollout::weighs_room(object, serving, observed))
        || serving
            .as_ref()
            .is_some_and(|serving| has_no_pod(object, serving, observed))
        || observed
            .pods
            .iter()
            .any(|pod| pod_health::unscheduled(pod).is_some());
    let objects = objects(
        object,
        observed,
        defaults,
        Parts {
            kept: &kept,
            model: &model,
            wanted: wanted.as_ref(),
            serving: serving.as_ref(),
            strategy,
        },
    );
    Decision {
        model,
        wanted,
        serving,
        strategy,
        waiting,
        deadline,
        plan: plan.plan,
        weighs_nodes,
        objects,
    }
}

/// Whether the first pod of what is served has not been made yet.
fn has_no_pod(object: &ModelDeployment, serving: &Revision, observed: &Observed) -> bool {
    object.spec.replicas > 0 && rollout::pods_of(observed, serving.template_digest()).is_empty()
}

/// Whether pods are also replaced for a new runtime image or a new way of building pods.
fn follows_operator(object: &ModelDeployment) -> bool {
    let runtime = object.spec.runtime.as_ref();
    runtime.is_some_and(|runtime| runtime.upgrade == Upgrade::Always)
}

fn model(
    object: &ModelDeployment,
    observed: &mut Observed,
    defaults: &PodDefaults,
    pinned: Option<&Record>,
    option: usize,
    find_cache: &FindCache<'_>,
) -> Result<Model, Violation> {
    let validated = validate::validate(object, observed, defaults, pinned, option)?;
    let resolution = match pinned {
        Some(record) => Resolution::Known(record.known.clone()),
        None => progress::resolution(object, &validated, observed, defaults)?,
    };
    let known = resolution.known();
    // A pinned number of accelerators belongs to the pinned option only.
    let settled = pinned.filter(|record| record.option == option);
    let validated = plan::settle(validated, known, observed.nodes.as_deref(), settled);
    if pinned.is_none() {
        progress::check_spread(object, &validated, known)?;
    }
    let cache = match (pinned, known) {
        (Some(record), _) => Some(record.cache.clone()),
        (None, Some(known)) => Some(cache::wanted(object, &validated, known)),
        (None, None) => None,
    };
    if let Some(cache) = &cache {
        (observed.cache, observed.cache_token) = find_cache(&cache.name, &validated);
    }
    let weights = progress::cache_state(&validated, &resolution, observed);
    Ok(Model {
        validated,
        resolution,
        cache,
        weights,
    })
}

fn new_record(
    object: &ModelDeployment,
    observed: &Observed,
    defaults: &PodDefaults,
    spec: &str,
    model: &Model,
    pinned: Option<&Record>,
) -> Option<Record> {
    let known = model.resolution.known()?;
    let found = match &model.weights {
        CacheState::Ready(weights) => Some(weights.clone()),
        CacheState::Unknown | CacheState::Waiting { .. } => None,
    };
    let weights = pinned.map(|record| record.weights.clone()).or(found)?;
    let weights = Weights {
        dimensions: match known {
            Known::Found(found) => found.dimensions,
            Known::Given => None,
        },
        ..weights
    };
    let validated = &model.validated;
    let card_digest = match pinned {
        Some(record) => record.card_digest.clone(),
        None => observed.card.as_ref().map(|card| digest::of(&card.spec)),
    };
    Some(Record {
        spec: spec.to_owned(),
        option: validated.option,
        accelerator: validated.accelerator.clone(),
        card: validated.card.clone(),
        card_digest,
        origin: validated.origin.clone(),
        known: known.clone(),
        cache: model.cache.clone()?,
        template: workload::build_template(object, validated, &weights, defaults),
        weights,
    })
}

/// The revision with what can now be said of how it fared.
fn with_fate(
    object: &ModelDeployment,
    wanted: Revision,
    observed: &Observed,
    deadline: Deadline,
) -> Revision {
    let fate = match &wanted.fate {
        Fate::Ready => Fate::Ready,
        _ if object.spec.replicas > 0 && all_ready(object, observed, &wanted) => Fate::Ready,
        Fate::Open if deadline == Deadline::Passed => Fate::Failed(format!(
            "not ready {} s after its pods had their nodes",
            rollout::deadline_seconds(object)
        )),
        other => other.clone(),
    };
    wanted.with_fate(fate)
}

fn made_plan(
    object: &ModelDeployment,
    observed: &Observed,
    defaults: &PodDefaults,
    spec: &str,
    model: &Result<Model, Violation>,
) -> MadePlan {
    let old = object
        .status
        .as_ref()
        .and_then(|status| status.plan.clone());
    let Ok(model) = model else {
        return MadePlan {
            plan: old,
            is_stale: false,
        };
    };
    let (validated, known) = (&model.validated, model.resolution.known());
    let basis = plan::basis(spec, validated, known);
    let is_stale = old.as_ref().is_none_or(|old| old.basis != basis);
    let plan = match &observed.nodes {
        Some(nodes) if is_stale => {
            Some(plan::plan(object, validated, known, nodes, defaults, basis))
        }
        Some(_) | None => old,
    };
    MadePlan { plan, is_stale }
}

/// A plan, and whether the one before was for something else.
struct MadePlan {
    plan: Option<Plan>,
    is_stale: bool,
}

struct Parts<'a> {
    kept: &'a [Revision],
    model: &'a Result<Model, Violation>,
    wanted: Option<&'a Revision>,
    serving: Option<&'a Revision>,
    strategy: Strategy,
}

fn objects(
    object: &ModelDeployment,
    observed: &Observed,
    defaults: &PodDefaults,
    parts: Parts<'_>,
) -> Objects {
    if !observed.strangers.is_empty() {
        return Objects::default();
    }
    let mut objects = Objects {
        service: (parts.model.is_ok() || parts.serving.is_some())
            .then(|| service::build_service(object)),
        revision: parts.wanted.map(|wanted| revision::build(object, wanted)),
        ..Objects::default()
    };
    if let Ok(model) = parts.model {
        (objects.job, objects.stale_jobs) = build::question(
            object,
            &model.validated,
            &model.resolution,
            observed,
            defaults,
        );
        objects.cache = model
            .cache
            .as_ref()
            .and_then(|record| cache::build_cache(object, record, observed.cache_token.clone()));
    }
    if let Some(serving) = parts.serving {
        let template = serving.record.template.clone();
        objects.workload = Some(workload::build_workload(object, template, parts.strategy));
        objects.budget = Some(workload::build_budget(object));
    }
    if let Some(wanted) = parts.wanted {
        let way_back = match wanted.fate {
            Fate::Ready => None,
            Fate::Open | Fate::Failed(_) => rollout::last_ready(wanted, parts.kept),
        };
        let needed = [Some(wanted), parts.serving, way_back];
        let names: Vec<&str> = needed
            .into_iter()
            .flatten()
            .map(|revision| revision.name.as_str())
            .collect();
        objects.stale_revisions = observed
            .revisions
            .iter()
            .filter(|kept| !names.contains(&kept.name_any().as_str()))
            .cloned()
            .collect();
    }
    objects
}
