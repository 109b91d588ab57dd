//! How one revision takes the place of another: which one serves, in which order pods are replaced,
//! when the next accelerator is tried, and when a revision has had its time. Pure; the time is passed in.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::observe::Observed;
use super::revision::{Fate, Revision, digest_of_template};
use crate::api::{Accelerator, AccessMode, ModelDeployment, OnFailure, RolloutPolicy};
use crate::child::REVISION;
use crate::conditions;
use crate::nodes;
use crate::pod_health;

/// Seconds without a node until the next accelerator is tried, where the spec does not say.
const WAIT_SECONDS: i32 = 300;

/// Seconds that a revision has to become ready, where the spec does not say.
const DEADLINE_SECONDS: i32 = 900;

/// Which of old and new pods goes or comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// A new pod comes before an old one goes.
    SurgeFirst,
    /// An old pod goes before a new one comes.
    TerminateFirst,
}

/// The pods of a revision that are neither leaving nor over.
#[must_use]
pub fn pods_of<'a>(observed: &'a Observed, template_digest: Option<&str>) -> Vec<&'a Pod> {
    observed
        .pods
        .iter()
        .filter(|pod| !pod_health::is_leaving(pod) && !pod_health::is_over(pod))
        .filter(|pod| pod.annotations().get(REVISION).map(String::as_str) == template_digest)
        .collect()
}

/// How long all replicas have waited for a node with their accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Nobody waits, or there is nothing else to try.
    No,
    /// They wait; the next option is tried in so many seconds.
    For(i64),
    /// Some have a node and some have not, so none moves.
    Partly {
        /// Replicas with a node.
        placed: usize,
        /// Replicas.
        of: usize,
    },
    /// Time to try this option.
    Over(usize),
}

/// Reads how long the replicas of a revision have waited.
#[must_use]
pub fn waiting(
    revision: &Revision,
    options: &[Accelerator],
    observed: &Observed,
    now: Timestamp,
) -> Waiting {
    let next = revision.record.option + 1;
    let Some(option) = options.get(revision.record.option) else {
        return Waiting::No;
    };
    // Once it was ready, its nodes were there: a lost node is waited for.
    if next >= options.len() || revision.fate == Fate::Ready {
        return Waiting::No;
    }
    let pods = pods_of(observed, revision.template_digest());
    let unplaced: Vec<Timestamp> = pods
        .iter()
        .filter_map(|pod| pod_health::unschedulable_since(pod))
        .collect();
    let placed = pods.iter().filter(|pod| pod_health::has_node(pod)).count();
    let Some(since) = unplaced.iter().min() else {
        return Waiting::No;
    };
    if placed > 0 {
        return Waiting::Partly {
            placed,
            of: pods.len(),
        };
    }
    let patience = i64::from(option.wait_seconds.unwrap_or(WAIT_SECONDS));
    let left = patience - now.duration_since(*since).as_secs();
    if left > 0 {
        Waiting::For(left)
    } else {
        Waiting::Over(next)
    }
}

/// How much time a revision has left to become ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    /// The clock does not run: everything is ready, or something outside the pods is missing.
    Stopped,
    /// So many seconds are left.
    Left(i64),
    /// It is over.
    Passed,
}

/// Reads the clock of a revision. It starts when its pods have their nodes, and for one that was ready before, when it stopped being so.
#[must_use]
pub fn deadline(
    object: &ModelDeployment,
    revision: &Revision,
    observed: &Observed,
    now: Timestamp,
) -> Deadline {
    let pods = pods_of(observed, revision.template_digest());
    let unready: Vec<&&Pod> = pods
        .iter()
        .filter(|pod| !pod_health::is_ready(pod))
        .collect();
    let placed: Option<Vec<Timestamp>> = unready
        .iter()
        .map(|pod| pod_health::placed_at(pod))
        .collect();
    let Some(start) = placed.and_then(|placed| placed.into_iter().max()) else {
        return Deadline::Stopped;
    };
    let start = match revision.fate {
        Fate::Ready => unready_since(object).map_or(now, |since| since.max(start)),
        Fate::Open | Fate::Failed(_) => start,
    };
    let left = i64::from(deadline_seconds(object)) - now.duration_since(start).as_secs();
    if left > 0 {
        Deadline::Left(left)
    } else {
        Deadline::Passed
    }
}

/// Seconds that a revision has to become ready.
#[must_use]
pub fn deadline_seconds(object: &ModelDeployment) -> i32 {
    object
        .spec
        .rollout
        .as_ref()
        .and_then(|rollout| rollout.progress_deadline_seconds)
        .unwrap_or(DEADLINE_SECONDS)
}

fn unready_since(object: &ModelDeployment) -> Option<Timestamp> {
    let status = object.status.as_ref()?;
    let ready = conditions::find(&status.conditions, crate::api::ConditionType::Ready)?;
    (ready.status != "True").then_some(ready.last_transition_time.0)
}

/// The revision that pods are made from: the wanted one, or the last that was ready where the wanted one failed and the spec says so.
#[must_use]
pub fn serving<'a>(
    object: &ModelDeployment,
    wanted: &'a Revision,
    kept: &'a [Revision],
) -> &'a Revision {
    let rolls_back = object
        .spec
        .rollout
        .as_ref()
        .is_some_and(|rollout| rollout.on_failure == OnFailure::RollBack);
    if rolls_back && matches!(wanted.fate, Fate::Failed(_)) {
        last_ready(wanted, kept).unwrap_or(wanted)
    } else {
        wanted
    }
}

/// The newest other revision that was ready.
#[must_use]
pub fn last_ready<'a>(wanted: &Revision, kept: &'a [Revision]) -> Option<&'a Revision> {
    kept.iter()
        .find(|revision| revision.name != wanted.name && revision.fate == Fate::Ready)
}

/// In which order pods are replaced. What was chosen for a rollout stays until the next one, but for one thing:
/// where a new pod finds no node while old ones hold theirs, an old one goes first.
#[must_use]
pub fn strategy(object: &ModelDeployment, revision: &Revision, observed: &Observed) -> Strategy {
    match policy(object) {
        RolloutPolicy::SurgeFirst => return Strategy::SurgeFirst,
        RolloutPolicy::TerminateFirst => return Strategy::TerminateFirst,
        RolloutPolicy::Auto => {}
    }
    let Some(live) = &observed.workload else {
        return Strategy::SurgeFirst;
    };
    let terminates = match stage(live, revision, observed) {
        Stage::Due => {
            !has_room_for_one_more(revision, observed) && an_end_makes_room(revision, observed)
        }
        Stage::Running => terminates_first(live),
        Stage::Stuck => terminates_first(live) || an_end_makes_room(revision, observed),
    };
    if terminates {
        Strategy::TerminateFirst
    } else {
        Strategy::SurgeFirst
    }
}

/// Whether the strategy depends on what room the nodes have.
#[must_use]
pub fn weighs_room(object: &ModelDeployment, revision: &Revision, observed: &Observed) -> bool {
    let stage = |live| stage(live, revision, observed);
    let weighs = |stage| matches!(stage, Stage::Due | Stage::Stuck);
    policy(object) == RolloutPolicy::Auto
        && observed.workload.as_ref().map(stage).is_some_and(weighs)
}

fn policy(object: &ModelDeployment) -> RolloutPolicy {
    let rollout = object.spec.rollout.as_ref();
    rollout.map(|rollout| rollout.policy).unwrap_or_default()
}

/// Where the replacement of pods by those of a revision stands.
enum Stage {
    /// It is to begin.
    Due,
    /// It goes on, or is over.
    Running,
    /// A new pod finds no node.
    Stuck,
}

fn stage(live: &Deployment, revision: &Revision, observed: &Observed) -> Stage {
    let digest = digest_of_template(&live.spec.template);
    if digest != revision.template_digest() {
        return Stage::Due;
    }
    let mut pods = pods_of(observed, digest).into_iter();
    if pods.any(|pod| pod_health::unschedulable_since(pod).is_some()) {
        Stage::Stuck
    } else {
        Stage::Running
    }
}

/// Whether a Deployment ends an old pod before it starts a new one.
#[must_use]
pub fn terminates_first(workload: &Deployment) -> bool {
    let rolling = workload
        .spec
        .strategy
        .as_ref()
        .and_then(|strategy| strategy.rolling_update.as_ref());
    rolling.is_some_and(|rolling| {
        rolling.max_surge == Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(0))
    })
}

fn has_room_for_one_more(revision: &Revision, observed: &Observed) -> bool {
    let (Some(pod), Some(nodes)) = (&revision.record.template.spec, &observed.nodes) else {
        return true;
    };
    let requests = nodes::requests(pod);
    let bound = volume_nodes(observed);
    nodes.iter().any(|node| {
        node.admits(pod)
            && node.has_room(&requests)
            && (bound.is_empty() || bound.contains(&node.name.as_str()))
    })
}

/// Whether a pod of the revision would have room where one of another revision is now.
/// Else nothing is won by ending that one: it had better go on answering.
fn an_end_makes_room(revision: &Revision, observed: &Observed) -> bool {
    let (Some(pod), Some(nodes)) = (&revision.record.template.spec, &observed.nodes) else {
        return false;
    };
    let requests = nodes::requests(pod);
    let others = observed.pods.iter().filter(|other| {
        !pod_health::is_over(other)
            && other.annotations().get(REVISION).map(String::as_str) != revision.template_digest()
    });
    others.filter_map(|other| other.spec.as_ref()).any(|other| {
        let place = nodes
            .iter()
            .find(|node| Some(&node.name) == other.node_name.as_ref());
        place.is_some_and(|node| {
            let without = node.without(&nodes::requests(other));
            without.admits(pod) && without.has_room(&requests)
        })
    })
}

/// Nodes that hold a volume which only one node can mount; none where the volume goes everywhere.
fn volume_nodes(observed: &Observed) -> Vec<&str> {
    let modes = observed
        .cache
        .as_ref()
        .filter(|cache| cache.spec.source.hub.is_some())
        .map(|cache| {
            let storage = cache.spec.storage.clone().unwrap_or_default();
            storage
                .access_modes
                .unwrap_or_else(|| vec![AccessMode::ReadWriteOnce])
        });
    match modes {
        Some(modes) if !modes.contains(&AccessMode::ReadWriteMany) => observed
            .pods
            .iter()
            .filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref())
            .collect(),
        _ => Vec::new(),
    }
}
