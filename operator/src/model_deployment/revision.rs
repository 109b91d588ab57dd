//! Revisions: what pods were made from, kept as apps/v1 ControllerRevisions. Pure.
//!
//! A revision holds the whole pod template and everything that was decided on the way to it.
//! As long as the spec stays the same, nothing of that is decided anew: an operator's upgrade, an edited card
//! or a branch that moved on the hub rolls no pod, and a roll-back needs no template to be rebuilt.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::progress::{Known, Weights};
use super::validate::Origin;
use crate::api::{Accelerator, ModelCacheSpec, ModelCardSpec, ModelDeployment};
use crate::child::{self, Family, REVISION};
use crate::digest;

/// Annotation with the digest of the spec that a revision was made for.
const SPEC: &str = "chandler.dev/spec";

/// Annotation that says how a revision fared: `Ready`, or `Failed: ` and why.
const OUTCOME: &str = "chandler.dev/outcome";

const READY: &str = "Ready";
const FAILED: &str = "Failed: ";

/// Everything that pods were made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Digest of the spec.
    pub spec: String,
    /// Place of the accelerator in the spec's list.
    pub option: usize,
    /// The accelerator.
    pub accelerator: Accelerator,
    /// The part of the card that was used, where the spec names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<ModelCardSpec>,
    /// Digest of the whole card, to see that it changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card_digest: Option<String>,
    /// Where the weights come from.
    pub origin: Origin,
    /// What was found there.
    pub known: Known,
    /// The cache.
    pub cache: CacheRecord,
    /// Where pods open the weights.
    pub weights: Weights,
    /// The pods.
    pub template: PodTemplateSpec,
}

/// The cache of a revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheRecord {
    /// Its name.
    pub name: String,
    /// What it is made from, where the operator makes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<ModelCacheSpec>,
}

/// How a revision fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody knows yet.
    Open,
    /// All its replicas were ready once.
    Ready,
    /// It was not ready in time.
    Failed(String),
}

/// A revision, as kept or about to be kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Revision {
    /// Name of the ControllerRevision.
    pub name: String,
    /// Its number; the newest has the highest.
    pub number: i64,
    /// How it fared.
    pub fate: Fate,
    /// What it is.
    pub record: Record,
    /// The record as it is kept. It cannot change, so a later version of the operator writes it back as it was read.
    data: Value,
}

impl Revision {
    /// The same revision, having fared so.
    #[must_use]
    pub fn with_fate(self, fate: Fate) -> Self {
        Self { fate, ..self }
    }

    /// Digest that stands on the pods.
    #[must_use]
    pub fn template_digest(&self) -> Option<&str> {
        digest_of_template(&self.record.template)
    }
}

/// The digest that a template carries.
#[must_use]
pub fn digest_of_template(template: &PodTemplateSpec) -> Option<&str> {
    let annotations = template.metadata.as_ref()?.annotations.as_ref()?;
    annotations.get(REVISION).map(String::as_str)
}

/// Digest of the parts of a spec that decide what a pod is.
///
/// Fields that are absent do not count, so a field that a later version adds leaves old digests as they are,
/// as long as it is left out when it has its default.
#[must_use]
pub fn spec_digest(object: &ModelDeployment) -> String {
    let mut spec = serde_json::to_value(&object.spec).unwrap_or_default();
    if let Value::Object(fields) = &mut spec {
        for outside in ["replicas", "rollout", "service"] {
            fields.remove(outside);
        }
        if let Some(Value::Object(runtime)) = fields.get_mut("runtime") {
            runtime.remove("upgrade");
        }
    }
    digest::of(&spec)
}

/// The revisions that can be read, the newest first. What cannot be read is not ours to use.
#[must_use]
pub fn read(kept: &[ControllerRevision]) -> Vec<Revision> {
    let mut revisions: Vec<Revision> = kept.iter().filter_map(parse).collect();
    revisions.sort_by_key(|revision| std::cmp::Reverse(revision.number));
    revisions
}

fn parse(kept: &ControllerRevision) -> Option<Revision> {
    if kept.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let data = kept.data.0.clone();
    let record = serde_json::from_value(data.clone()).ok()?;
    let fate = match kept.annotations().get(OUTCOME).map(String::as_str) {
        Some(READY) => Fate::Ready,
        Some(text) => text
            .strip_prefix(FAILED)
            .map_or(Fate::Open, |why| Fate::Failed(why.to_owned())),
        None => Fate::Open,
    };
    Some(Revision {
        name: kept.name_any(),
        number: kept.revision.unwrap_or_default(),
        fate,
        record,
        data,
    })
}

/// The revision of a record, numbered after those that are kept: an equal one that is the newest stays as it is,
/// an older one is taken up again with a clean slate.
#[must_use]
pub fn revision_of(object: &ModelDeployment, record: Record, kept: &[Revision]) -> Revision {
    let name = format!("{}-{}", object.name_any(), digest::of(&record));
    match kept.first() {
        Some(newest) if newest.name == name => newest.clone(),
        newest => Revision {
            fate: Fate::Open,
            number: newest.map_or(0, |newest| newest.number) + 1,
            name,
            data: serde_json::to_value(&record).unwrap_or_default(),
            record,
        },
    }
}

/// The object that keeps a revision.
#[must_use]
pub fn build(object: &ModelDeployment, revision: &Revision) -> ControllerRevision {
    let labels = child::labels(Family::Deployment, &object.name_any(), "revision");
    let mut metadata = child::owned_meta(object, revision.name.clone(), labels);
    let mut annotations: BTreeMap<String, String> =
        [(SPEC.to_owned(), revision.record.spec.clone())].into();
    let outcome = match &revision.fate {
        Fate::Open => None,
        Fate::Ready => Some(READY.to_owned()),
        Fate::Failed(why) => Some(format!("{FAILED}{why}")),
    };
    annotations.extend(outcome.map(|outcome| (OUTCOME.to_owned(), outcome)));
    metadata.annotations = Some(annotations);
    ControllerRevision {
        metadata,
        revision: Some(revision.number),
        data: RawExtension(revision.data.clone()),
    }
}

/// Names of caches that a kept revision needs.
#[must_use]
pub fn cache_of(kept: &ControllerRevision) -> Option<&str> {
    kept.data.0.get("cache")?.get("name")?.as_str()
}
