//! What one reconcile is handed: the cluster, the watches' stores, the installation's settings, metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::reflector::ObjectRef;

use crate::api::{ModelCache, ModelCard, ModelDeployment};
use crate::config::Config;
use crate::kubernetes::{Cluster, Kind};
use crate::model_status::StatusReader;
use crate::nodes::UsageReader;
use crate::store::{Facet, Kept, Store};
use crate::telemetry::Metrics;

/// What one reconcile is handed.
pub struct Context {
    /// The API server.
    pub cluster: Cluster,
    /// What the watches have seen.
    pub stores: Stores,
    /// The installation's settings.
    pub config: Config,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Reads `/status` of pods that are not ready yet.
    pub status_reader: StatusReader,
    /// What all pods use of the nodes.
    pub usage: UsageReader,
    /// How often each object failed in a row.
    pub failures: Failures,
}

impl Context {
    /// The time, read once for a reconcile and passed in from there.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        // Conditions carry whole seconds; more would differ from what the API server keeps.
        let now = Timestamp::now();
        Timestamp::from_second(now.as_second()).unwrap_or(now)
    }
}

/// What the watches have seen. Children are watched by our label only, so that memory does not grow with the cluster.
#[derive(Clone, Default)]
pub struct Stores {
    /// Every card.
    pub cards: Store<ModelCard>,
    /// Every cache.
    pub caches: Store<ModelCache>,
    /// Every ModelDeployment.
    pub deployments: Store<ModelDeployment>,
    /// Our Jobs.
    pub jobs: Store<Job>,
    /// Their pods and the serving pods.
    pub pods: Store<Pod>,
    /// Our Deployments.
    pub workloads: Store<Deployment>,
    /// Our Services.
    pub services: Store<Service>,
    /// Our revisions.
    pub revisions: Store<ControllerRevision>,
    /// Our disruption budgets.
    pub budgets: Store<PodDisruptionBudget>,
    /// Every node.
    pub nodes: Store<Node>,
    /// Every RuntimeClass.
    pub runtime_classes: Store<RuntimeClass>,
    /// Our claims.
    pub claims: Store<PersistentVolumeClaim>,
    /// Every StorageClass.
    pub storage_classes: Store<StorageClass>,
}

/// A kind that has a store. What we write of it is read back from there at once.
pub trait Stored: Kept {
    /// Its store.
    fn store(stores: &Stores) -> &Store<Self>;
}

macro_rules! stored {
    ($($kind:ty => $store:ident),+ $(,)?) => {
        $(impl Stored for $kind {
            fn store(stores: &Stores) -> &Store<Self> {
                &stores.$store
            }
        })+
    };
}

stored! {
    ModelCard => cards,
    ModelCache => caches,
    ModelDeployment => deployments,
    Job => jobs,
    Pod => pods,
    Deployment => workloads,
    Service => services,
    ControllerRevision => revisions,
    PodDisruptionBudget => budgets,
    Node => nodes,
    RuntimeClass => runtime_classes,
    PersistentVolumeClaim => claims,
    StorageClass => storage_classes,
}

impl Stores {
    /// The children of an owner, by label.
    #[must_use]
    pub fn children<K: Kept>(
        &self,
        store: &Store<K>,
        namespace: &str,
        label: &'static str,
        owner: &str,
    ) -> Vec<K> {
        store.by(&Facet::new(namespace, label, owner))
    }

    /// One object of a namespace.
    #[must_use]
    pub fn get<K: Kept>(&self, store: &Store<K>, namespace: &str, name: &str) -> Option<K> {
        store.get(&ObjectRef::new(name).within(namespace))
    }
}

/// How often each object failed in a row, for growing pauses.
#[derive(Default)]
pub struct Failures(Mutex<HashMap<(&'static str, String, String), u32>>);

/// First and longest pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

impl Failures {
    /// Notes a failure and returns the pause before the next try.
    #[must_use]
    pub fn pause<K: Kind>(&self, kind: &'static str, reference: &ObjectRef<K>) -> Duration {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key(kind, reference)).or_insert(0);
        *count = count.saturating_add(1);
        FIRST_PAUSE
            .saturating_mul(2_u32.saturating_pow((*count - 1).min(16)))
            .min(LONGEST_PAUSE)
    }

    /// Notes that it went well, or that the object is gone.
    pub fn forget<K: Kind>(&self, kind: &'static str, reference: &ObjectRef<K>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key(kind, reference));
    }
}

fn key<K: Kind>(kind: &'static str, reference: &ObjectRef<K>) -> (&'static str, String, String) {
    let namespace = reference.namespace.clone().unwrap_or_default();
    (kind, namespace, reference.name.clone())
}
