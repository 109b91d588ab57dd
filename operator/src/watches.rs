//! One watch for each kind, shared by both controllers: it fills a store and says which objects to look at again.

use std::fmt::Debug;
use std::sync::Arc;

use futures::channel::mpsc::{Receiver, Sender, channel};
use futures::{SinkExt as _, StreamExt as _};
use kube::runtime::reflector::{self, ObjectRef, Store, store::Writer};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::task::JoinSet;

use crate::api::{ModelCache, ModelCard, ModelDeployment};
use crate::child::{MANAGED_BY, MANAGER, MODEL_CACHE, MODEL_DEPLOYMENT};
use crate::context::Stores;
use crate::kubernetes::Kind;

/// Waiting references of one controller. Its scheduler drops doubles at once,
/// so a full channel only means that a watch waits until the scheduler has looked.
const QUEUE: usize = 1_024;

/// Where references go.
#[derive(Clone)]
struct Queues {
    deployments: Sender<ObjectRef<ModelDeployment>>,
    caches: Sender<ObjectRef<ModelCache>>,
}

/// Everything that the watches give.
pub struct Watches {
    /// What they have seen.
    pub stores: Stores,
    /// ModelDeployments to look at.
    pub deployments: Receiver<ObjectRef<ModelDeployment>>,
    /// ModelCaches to look at.
    pub caches: Receiver<ObjectRef<ModelCache>>,
    /// The watches; dropping them ends them.
    pub tasks: JoinSet<()>,
}

/// Which objects a change concerns.
#[derive(Default)]
struct Concerned {
    deployments: Vec<ObjectRef<ModelDeployment>>,
    caches: Vec<ObjectRef<ModelCache>>,
}

/// Starts all watches, over one namespace or all.
#[must_use]
pub fn start(client: &Client, namespace: Option<&str>) -> Watches {
    let (deployment_queue, deployments) = channel(QUEUE);
    let (cache_queue, caches) = channel(QUEUE);
    let queues = Queues {
        deployments: deployment_queue,
        caches: cache_queue,
    };
    let mut tasks = JoinSet::new();
    let all = watcher::Config::default();
    let ours = watcher::Config::default().labels(&format!("{MANAGED_BY}={MANAGER}"));

    let (card_store, card_writer) = reflector::store();
    let (cache_store, cache_writer) = reflector::store();
    let (deployment_store, deployment_writer) = reflector::store();
    let (job_store, job_writer) = reflector::store();
    let (pod_store, pod_writer) = reflector::store();
    let (workload_store, workload_writer) = reflector::store();
    let (service_store, service_writer) = reflector::store();
    let (revision_store, revision_writer) = reflector::store();
    let (budget_store, budget_writer) = reflector::store();
    let (node_store, node_writer) = reflector::store();
    let (runtime_class_store, runtime_class_writer) = reflector::store();
    let (claim_store, claim_writer) = reflector::store();
    let (class_store, class_writer) = reflector::store();
    let stores = Stores {
        cards: card_store,
        caches: cache_store,
        deployments: deployment_store,
        jobs: job_store,
        pods: pod_store,
        workloads: workload_store,
        services: service_store,
        revisions: revision_store,
        budgets: budget_store,
        nodes: node_store,
        runtime_classes: runtime_class_store,
        claims: claim_store,
        storage_classes: class_store,
    };

    let users = stores.deployments.clone();
    watch(
        &mut tasks,
        Api::all(client.clone()),
        all.clone(),
        card_writer,
        &queues,
        move |card: &ModelCard| {
            let name = card.name_any();
            refs(&users, |user| {
                user.spec.model.card.as_deref() == Some(&name)
            })
        },
    );
    let users = stores.deployments.clone();
    watch(
        &mut tasks,
        api(client, namespace),
        all.clone(),
        cache_writer,
        &queues,
        move |cache: &ModelCache| {
            let (name, space) = (cache.name_any(), cache.namespace());
            let mut concerned = refs(&users, |user| {
                user.namespace() == space && crate::model_cache::observe::uses(user, &name)
            });
            concerned.caches.push(ObjectRef::from_obj(cache));
            concerned
        },
    );
    watch(
        &mut tasks,
        api(client, namespace),
        all.clone(),
        deployment_writer,
        &queues,
        |user: &ModelDeployment| {
            let space = user.namespace().unwrap_or_default();
            let recorded = user.status.as_ref().and_then(|status| status.cache.clone());
            let weights = user.spec.weights.as_ref();
            let named = weights.and_then(|weights| Some(weights.cache.as_ref()?.name.clone()));
            Concerned {
                deployments: vec![ObjectRef::from_obj(user)],
                caches: recorded
                    .into_iter()
                    .chain(named)
                    .map(|name| ObjectRef::new(&name).within(&space))
                    .collect(),
            }
        },
    );
    watch(
        &mut tasks,
        api(client, namespace),
        ours.clone(),
        job_writer,
        &queues,
        |job: &k8s_openapi::api::batch::v1::Job| family(job),
    );
    let caches_of_pods = stores.caches.clone();
    watch(
        &mut tasks,
        api(client, namespace),
        ours.clone(),
        pod_writer,
        &queues,
        move |pod: &k8s_openapi::api::core::v1::Pod| {
            let mut concerned = family(pod);
            // A leaving pod may have been the last user of a claim.
            if pod.metadata.deletion_timestamp.is_some() {
                concerned.caches.extend(
                    caches_of_pods
                        .state_filter(|cache| cache.namespace() == pod.namespace())
                        .iter()
                        .map(|cache| ObjectRef::from_obj(&**cache)),
                );
            }
            concerned
        },
    );
    watch(
        &mut tasks,
        api(client, namespace),
        ours.clone(),
        workload_writer,
        &queues,
        |workload: &k8s_openapi::api::apps::v1::Deployment| family(workload),
    );
    watch(
        &mut tasks,
        api(client, namespace),
        ours.clone(),
        service_writer,
        &queues,
        |service: &k8s_openapi::api::core::v1::Service| family(service),
    );
    watch(
        &mut tasks,
        api(client, namespace),
        ours.clone(),
        revision_writer,
        &queues,
        |revision: &k8s_openapi::api::apps::v1::ControllerRevision| family(revision),
    );
    watch(
        &mut tasks,
        api(client, namespace),
        ours.clone(),
        budget_writer,
        &queues,
        |budget: &k8s_openapi::api::policy::v1::PodDisruptionBudget| family(budget),
    );
    // Nodes inform a plan that is made for another reason; the scheduler says in the pods when one has come.
    watch(
        &mut tasks,
        Api::all(client.clone()),
        all.clone(),
        node_writer,
        &queues,
        |_: &k8s_openapi::api::core::v1::Node| Concerned::default(),
    );
    watch(
        &mut tasks,
        Api::all(client.clone()),
        all.clone(),
        runtime_class_writer,
        &queues,
        |_: &k8s_openapi::api::node::v1::RuntimeClass| Concerned::default(),
    );
    watch(
        &mut tasks,
        api(client, namespace),
        ours,
        claim_writer,
        &queues,
        |claim: &k8s_openapi::api::core::v1::PersistentVolumeClaim| family(claim),
    );
    let waiting = stores.caches.clone();
    watch(
        &mut tasks,
        Api::all(client.clone()),
        all,
        class_writer,
        &queues,
        move |_: &k8s_openapi::api::storage::v1::StorageClass| Concerned {
            caches: waiting
                .state_filter(|cache| {
                    cache
                        .status
                        .as_ref()
                        .is_none_or(|status| status.manifest_digest.is_none())
                })
                .iter()
                .map(|cache| ObjectRef::from_obj(&**cache))
                .collect(),
            ..Concerned::default()
        },
    );
    Watches {
        stores,
        deployments,
        caches,
        tasks,
    }
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Kind + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn refs(users: &Store<ModelDeployment>, concerns: impl Fn(&ModelDeployment) -> bool) -> Concerned {
    Concerned {
        deployments: users
            .state_filter(concerns)
            .iter()
            .map(|user| ObjectRef::from_obj(&**user))
            .collect(),
        ..Concerned::default()
    }
}

/// The owner of a child, by label: a label survives where a claim has no owner reference.
fn family<K: Kind>(child: &K) -> Concerned {
    let space = child.namespace().unwrap_or_default();
    let labels = child.labels();
    Concerned {
        deployments: labels
            .get(MODEL_DEPLOYMENT)
            .map(|name| ObjectRef::new(name).within(&space))
            .into_iter()
            .collect(),
        caches: labels
            .get(MODEL_CACHE)
            .map(|name| ObjectRef::new(name).within(&space))
            .into_iter()
            .collect(),
    }
}

/// Runs one watch: store first, then the queues, so that a reconcile always sees what woke it.
fn watch<K>(
    tasks: &mut JoinSet<()>,
    api: Api<K>,
    config: watcher::Config,
    writer: Writer<K>,
    queues: &Queues,
    concerns: impl Fn(&K) -> Concerned + Send + 'static,
) where
    K: Kind + Debug,
{
    let mut queues = queues.clone();
    tasks.spawn(async move {
        let store = writer.as_reader();
        let mut events = watcher(api, config)
            .default_backoff()
            .reflect(writer)
            .boxed();
        // Objects of a list are told when the list is complete: before that the store does not show them.
        let mut listed = Vec::new();
        // What the store had before: whatever went away while nobody watched concerns its owners too.
        let mut before = Vec::new();
        while let Some(event) = events.next().await {
            let told = match event {
                Ok(watcher::Event::Apply(object) | watcher::Event::Delete(object)) => vec![object],
                Ok(watcher::Event::Init) => {
                    listed.clear();
                    before = store.state();
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed.push(object);
                    continue;
                }
                Ok(watcher::Event::InitDone) => {
                    let gone = std::mem::take(&mut before)
                        .into_iter()
                        .filter(|old| store.get(&ObjectRef::from_obj(&**old)).is_none())
                        .map(Arc::unwrap_or_clone);
                    listed.extend(gone);
                    std::mem::take(&mut listed)
                }
                Err(error) => {
                    tracing::warn!(kind = %K::kind(&()), %error, "a watch was interrupted");
                    continue;
                }
            };
            for object in &told {
                let Concerned {
                    deployments,
                    caches,
                } = concerns(object);
                for reference in deployments {
                    if queues.deployments.send(reference).await.is_err() {
                        return;
                    }
                }
                for reference in caches {
                    if queues.caches.send(reference).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
}
