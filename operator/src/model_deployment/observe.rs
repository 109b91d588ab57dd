//! Every fact that a decision about a ModelDeployment needs.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;
use serde::Deserialize;

use crate::api::{ModelCache, ModelCard, ModelDeployment};
use crate::child::{COMPONENT, MODEL_DEPLOYMENT};
use crate::context::Context;
use crate::kubernetes::{ClusterError, Stranger, is_controlled_by};
use crate::model_status::ModelStatus;
use crate::nodes::NodeFacts;
use crate::store::{Kept, Store};

/// What the cluster says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observed {
    /// The card that the spec names.
    pub card: Option<ModelCard>,
    /// Names of all cards, for a message.
    pub cards: Vec<String>,
    /// Our resolve Jobs.
    pub jobs: Vec<Job>,
    /// The pods of those Jobs.
    pub job_pods: Vec<Pod>,
    /// The serving pods.
    pub pods: Vec<Pod>,
    /// The Deployment, if it is ours.
    pub workload: Option<Deployment>,
    /// The Service, if it is ours.
    pub service: Option<Service>,
    /// Objects that have our children's names without being ours.
    pub strangers: Vec<Stranger>,
    /// What keeps drains from ending all pods, if it is ours.
    pub budget: Option<PodDisruptionBudget>,
    /// Our revisions.
    pub revisions: Vec<ControllerRevision>,
    /// The cluster's nodes, where something is to be placed.
    pub nodes: Option<Vec<NodeFacts>>,
    /// The volume of the weights, where something is to be placed.
    pub volume: Option<PersistentVolume>,
    /// Names of the cluster's RuntimeClasses.
    pub runtime_classes: Vec<String>,
    /// The cache that this spec wants; looked up when its name is known.
    pub cache: Option<ModelCache>,
    /// The token for that cache: of all users that bring one, the first by name.
    pub cache_token: Option<crate::api::SecretKey>,
    /// What pods say of themselves, by name.
    pub saying: BTreeMap<String, ModelStatus>,
}

/// Reads the facts from the watches' stores; names that no watch shows are asked for.
///
/// # Errors
///
/// When the API server does not answer.
pub async fn observe(object: &ModelDeployment, ctx: &Context) -> Result<Observed, ClusterError> {
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let stores = &ctx.stores;
    let card = object
        .spec
        .model
        .card
        .as_ref()
        .and_then(|card| stores.cards.get(&ObjectRef::new(card)));
    let mut cards = Vec::new();
    if object.spec.model.card.is_some() && card.is_none() {
        cards = stores
            .cards
            .names()
            .into_iter()
            .map(|card| card.name)
            .collect();
        cards.sort();
    }
    let mut strangers = Vec::new();
    let workload = own(object, &stores.workloads, ctx, &mut strangers).await?;
    let service = own(object, &stores.services, ctx, &mut strangers).await?;
    let budget = own(object, &stores.budgets, ctx, &mut strangers).await?;
    let (pods, job_pods) = stores
        .children(&stores.pods, &namespace, MODEL_DEPLOYMENT, &name)
        .into_iter()
        .partition(|pod| pod.labels().get(COMPONENT).map(String::as_str) == Some("serve"));
    let uid = object.uid().unwrap_or_default();
    let mut jobs = stores.children(&stores.jobs, &namespace, MODEL_DEPLOYMENT, &name);
    jobs.retain(|job| is_controlled_by(job, &uid));
    let mut revisions = stores.children(&stores.revisions, &namespace, MODEL_DEPLOYMENT, &name);
    revisions.retain(|revision| is_controlled_by(revision, &uid));
    let mut runtime_classes: Vec<String> = stores
        .runtime_classes
        .names()
        .into_iter()
        .map(|class| class.name)
        .collect();
    runtime_classes.sort();
    Ok(Observed {
        budget,
        revisions,
        runtime_classes,
        card,
        cards,
        jobs,
        job_pods,
        pods,
        workload,
        service,
        strangers,
        ..Observed::default()
    })
}

/// What the nodes have. Asked for when a decision weighs it.
///
/// # Errors
///
/// When the API server does not answer.
pub async fn nodes(ctx: &Context) -> Result<Vec<NodeFacts>, ClusterError> {
    // An operator of some namespaces has no right to see the pods of all.
    let usage = if ctx.config.namespaces.is_empty() {
        ctx.usage.read(&ctx.cluster).await?
    } else {
        None
    };
    Ok(ctx
        .stores
        .nodes
        .all()
        .iter()
        .map(|node| NodeFacts::read(node, usage.as_deref()))
        .collect())
}

/// The volume that a claim is bound to. Asked for when a decision weighs the nodes.
///
/// # Errors
///
/// When the API server does not answer.
pub async fn volume(
    namespace: &str,
    claim: &str,
    ctx: &Context,
) -> Result<Option<PersistentVolume>, ClusterError> {
    let claim = match ctx.stores.get(&ctx.stores.claims, namespace, claim) {
        Some(claim) => Some(claim),
        None => {
            ctx.cluster
                .get::<PersistentVolumeClaim>(namespace, claim)
                .await?
        }
    };
    let name = claim
        .and_then(|claim| claim.spec)
        .and_then(|spec| spec.volume_name)
        .filter(|name| !name.is_empty());
    match name {
        Some(name) => ctx.cluster.volume(&name).await,
        None => Ok(None),
    }
}

/// Our child of the same name, or a note that a stranger has its name.
async fn own<K>(
    object: &ModelDeployment,
    store: &Store<K>,
    ctx: &Context,
    strangers: &mut Vec<Stranger>,
) -> Result<Option<K>, ClusterError>
where
    K: Kept + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    let uid = object.uid().unwrap_or_default();
    match ctx.stores.get(store, &namespace, &name) {
        Some(live) if is_controlled_by(&live, &uid) => Ok(Some(live)),
        // Not ours, or not seen yet: only the API server knows.
        _ => {
            strangers.extend(ctx.cluster.stranger::<K, _>(object, &name).await?);
            Ok(None)
        }
    }
}
