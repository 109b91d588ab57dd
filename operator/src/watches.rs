//! One watch for each kind and namespace, shared by both controllers: it fills a store and says which objects to look at again.

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::api::{ModelCache, ModelCacheStatus, ModelCard, ModelDeployment};
use crate::child::{MANAGED_BY, MANAGER, MODEL_CACHE, MODEL_DEPLOYMENT};
use crate::context::{Stored, Stores};
use crate::digest;
use crate::kept::{NAMES_CARD, USES_CACHE};
use crate::kubernetes::{Kind, PAGE};
use crate::model_cache::observe::caches_of;
use crate::model_deployment::revision::cache_of;
use crate::queue::Queue;
use crate::store::{Facet, Listed, Listing, Sight, Store};
use crate::telemetry::Metrics;

/// The scope of a watch over all namespaces.
const EVERYWHERE: &str = "";

/// Where references go.
#[derive(Clone, Default)]
pub struct Queues {
    /// ModelDeployments to look at.
    pub deployments: Queue<ModelDeployment>,
    /// ModelCaches to look at.
    pub caches: Queue<ModelCache>,
}

/// What is watched, and where it is told.
#[derive(Clone, Copy)]
pub struct Watched<'a> {
    /// The client.
    pub client: &'a Client,
    /// The namespaces; all when empty.
    pub namespaces: &'a [String],
    /// What is seen goes here.
    pub stores: &'a Stores,
    /// What is to be looked at goes here.
    pub queues: &'a Queues,
    /// Counters.
    pub metrics: &'a Arc<Metrics>,
}

/// Everything that runs.
pub struct Watches {
    /// Each is told when its watch has the first list.
    pub listed: Vec<oneshot::Receiver<()>>,
    /// The watches; dropping them ends them.
    pub tasks: JoinSet<()>,
}

/// Which objects a change concerns.
#[derive(Default)]
struct Concerned {
    deployments: Vec<ObjectRef<ModelDeployment>>,
    caches: Vec<ObjectRef<ModelCache>>,
}

/// Starts all watches, over these namespaces, or over all when none is named.
#[must_use]
pub fn start(to: Watched<'_>) -> Watches {
    let stores = to.stores;
    let mut starter = Starter {
        to,
        watches: Watches {
            listed: Vec::new(),
            tasks: JoinSet::new(),
        },
    };
    let all = watcher::Config::default().page_size(PAGE);
    let ours = all.clone().labels(&format!("{MANAGED_BY}={MANAGER}"));

    let users = stores.deployments.clone();
    starter.watch_everywhere(&all, move |card: &ModelCard, _| Concerned {
        deployments: users.names_by(&Facet::new("", NAMES_CARD, &card.name_any())),
        ..Concerned::default()
    });
    let users = stores.deployments.clone();
    let shown = Arc::new(Shown::default());
    starter.watch(&all, move |cache: &ModelCache, sight| {
        let mut concerned = Concerned::default();
        if sight != Sight::Own {
            concerned.caches.push(ObjectRef::from_obj(cache));
        }
        let said = (sight != Sight::Gone).then(|| said_to_users(cache));
        if shown.replace(cache, said.clone()) != said {
            let space = cache.namespace().unwrap_or_default();
            let facet = Facet::new(&space, USES_CACHE, &cache.name_any());
            concerned.deployments = users.names_by(&facet);
        }
        concerned
    });
    let shown = Arc::new(Shown::default());
    starter.watch(&all, move |user: &ModelDeployment, sight| {
        let is_leaving = sight == Sight::Gone || user.metadata.deletion_timestamp.is_some();
        let used = (!is_leaving).then(|| caches_of(user).map(str::to_owned).collect::<Box<[_]>>());
        let before = shown.replace(user, used.clone());
        let mut concerned = Concerned::default();
        // What a cache told before it was known whose it is has woken nobody.
        if sight != Sight::Own || before != used {
            concerned.deployments.push(ObjectRef::from_obj(user));
        }
        // A cache looks at its users when one comes or goes.
        if before != used {
            let names = before.iter().chain(&used).flatten();
            concerned.caches = names.map(|name| beside(user, name)).collect();
        }
        concerned
    });
    starter.watch(&ours, family::<Job>);
    let caches = stores.caches.clone();
    starter.watch(&ours, move |pod: &Pod, sight| {
        let mut concerned = family(pod, sight);
        // A leaving pod may have been the last user of a claim.
        if pod.metadata.deletion_timestamp.is_some() {
            let claims = crate::kept::claims(pod, pod.spec.as_ref());
            let held = claims.iter().flat_map(|claim| caches.names_by(claim));
            concerned.caches.extend(held);
        }
        concerned
    });
    starter.watch(&ours, unless_own::<Deployment>);
    starter.watch(&ours, unless_own::<Service>);
    starter.watch(&ours, |kept: &ControllerRevision, sight| {
        let mut concerned = family(kept, sight);
        // With a revision goes a use of its cache.
        let cache = cache_of(kept).map(|name| beside(kept, name));
        concerned.caches.extend(cache);
        concerned
    });
    starter.watch(&ours, unless_own::<PodDisruptionBudget>);
    starter.watch(&ours, family::<PersistentVolumeClaim>);
    // Nodes inform a plan that is made for another reason; the scheduler says in the pods when one has come.
    starter.watch_everywhere(&all, |_: &Node, _| Concerned::default());
    starter.watch_everywhere(&all, |_: &RuntimeClass, _| Concerned::default());
    let caches = stores.caches.clone();
    starter.watch_everywhere(&all, move |_: &StorageClass, _| {
        let is_waiting = |cache: &ModelCache| {
            let status = cache.status.as_ref();
            status.is_none_or(|status| status.manifest_digest.is_none())
        };
        let waiting = caches.all().into_iter().filter(is_waiting);
        Concerned {
            caches: waiting.map(|cache| ObjectRef::from_obj(&cache)).collect(),
            ..Concerned::default()
        }
    });
    starter.watches
}

struct Starter<'a> {
    to: Watched<'a>,
    watches: Watches,
}

impl Starter<'_> {
    /// Watches a kind in every namespace that is served.
    fn watch<K>(
        &mut self,
        config: &watcher::Config,
        concerns: impl Fn(&K, Sight) -> Concerned + Clone + Send + Sync + 'static,
    ) where
        K: Stored + Resource<Scope = NamespaceResourceScope>,
    {
        if self.to.namespaces.is_empty() {
            let api = Api::all(self.to.client.clone());
            self.spawn(EVERYWHERE, api, config, concerns);
            return;
        }
        for namespace in self.to.namespaces {
            let api = Api::namespaced(self.to.client.clone(), namespace);
            self.spawn(namespace, api, config, concerns.clone());
        }
    }

    /// Watches a kind that lives in no namespace.
    fn watch_everywhere<K>(
        &mut self,
        config: &watcher::Config,
        concerns: impl Fn(&K, Sight) -> Concerned + Send + Sync + 'static,
    ) where
        K: Stored + Resource<Scope = ClusterResourceScope>,
    {
        let api = Api::all(self.to.client.clone());
        self.spawn(EVERYWHERE, api, config, concerns);
    }

    fn spawn<K: Stored>(
        &mut self,
        scope: &str,
        api: Api<K>,
        config: &watcher::Config,
        concerns: impl Fn(&K, Sight) -> Concerned + Send + Sync + 'static,
    ) {
        let (listed, first_list) = oneshot::channel();
        self.watches.listed.push(first_list);
        let watch = Watch {
            scope: scope.to_owned(),
            api,
            store: K::store(self.to.stores).clone(),
            queues: self.to.queues.clone(),
            metrics: self.to.metrics.clone(),
            concerns,
        };
        self.watches.tasks.spawn(watch.run(config.clone(), listed));
    }
}

struct Watch<K: Stored, F> {
    scope: String,
    api: Api<K>,
    store: Store<K>,
    queues: Queues,
    metrics: Arc<Metrics>,
    concerns: F,
}

impl<K: Stored + Debug, F: Fn(&K, Sight) -> Concerned + Send + Sync + 'static> Watch<K, F> {
    /// Store first, then the queues, so that a reconcile always sees what woke it.
    async fn run(self, config: watcher::Config, listed: oneshot::Sender<()>) {
        let mut events = watcher(self.api.clone(), config)
            .default_backoff()
            .map_ok(stripped)
            .boxed();
        let mut first = Some(listed);
        let mut listing = self.store.begin_list();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Apply(object)) => {
                    let sight = self.store.seen(&self.scope, &object);
                    self.wake(&object, sight);
                }
                Ok(watcher::Event::Delete(object)) => {
                    self.store.gone(&self.scope, &object);
                    self.wake(&object, Sight::Gone);
                }
                Ok(watcher::Event::Init) => listing = self.store.begin_list(),
                Ok(watcher::Event::InitApply(object)) => {
                    let sight = self.store.listed(&mut listing, &object);
                    self.wake(&object, sight);
                }
                Ok(watcher::Event::InitDone) => {
                    let done = std::mem::replace(&mut listing, self.store.begin_list());
                    self.take(done).await;
                    if let Some(listed) = first.take() {
                        // Nobody waits for it any more when the operator is stopping.
                        let _ = listed.send(());
                    }
                }
                Err(error) => {
                    self.metrics.watch_restarted(&K::kind(&()));
                    tracing::warn!(kind = %K::kind(&()), scope = self.scope, %error, "a watch was interrupted");
                }
            }
        }
    }

    /// Takes a complete list over. What went away while nobody watched concerns its owners too.
    async fn take(&self, listing: Listing) {
        let Listed { gone, doubtful } = self.store.finish_list(&self.scope, listing);
        for object in &doubtful {
            if let Ok(false) = self.exists(object).await {
                self.store.forget(object);
            }
        }
        gone.iter()
            .chain(&doubtful)
            .for_each(|object| self.wake(object, Sight::Gone));
    }

    /// Asks the API server whether an object exists that a list does not show.
    async fn exists(&self, object: &K) -> kube::Result<bool> {
        let mut field = format!("metadata.name={}", object.name_any());
        if let Some(namespace) = object.namespace() {
            field.push_str(&format!(",metadata.namespace={namespace}"));
        }
        let found = self
            .api
            .list_metadata(&ListParams::default().fields(&field))
            .await?;
        Ok(!found.items.is_empty())
    }

    fn wake(&self, object: &K, sight: Sight) {
        if sight == Sight::Known {
            return;
        }
        let Concerned {
            deployments,
            caches,
        } = (self.concerns)(object, sight);
        for reference in deployments {
            self.queues.deployments.wake(reference);
        }
        for reference in caches {
            self.queues.caches.wake(reference);
        }
    }
}

fn stripped<K: Stored>(event: watcher::Event<K>) -> watcher::Event<K> {
    let strip = |mut object: K| {
        object.strip();
        object
    };
    match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(strip(object)),
        watcher::Event::Delete(object) => watcher::Event::Delete(strip(object)),
        watcher::Event::InitApply(object) => watcher::Event::InitApply(strip(object)),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

/// What a watch has shown last of each object, as far as others care.
/// The store cannot tell: it has our own writes before the watch shows them.
struct Shown<V>(Mutex<HashMap<String, V>>);

impl<V> Default for Shown<V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<V> Shown<V> {
    /// Notes what an object shows now, nothing if it is gone. Returns what it showed before.
    fn replace<K: Kind>(&self, object: &K, shows: Option<V>) -> Option<V> {
        let name = ObjectRef::from_obj(object).to_string();
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match shows {
            Some(shows) => shown.insert(name, shows),
            None => shown.remove(&name),
        }
    }
}

/// A digest of what users of a cache read of it: who else uses it and how far a fetch is are not among that.
fn said_to_users(cache: &ModelCache) -> String {
    let mut cache = cache.clone();
    cache.metadata.resource_version = None;
    cache.status = cache.status.map(|status| ModelCacheStatus {
        used_by: Vec::new(),
        last_used_time: None,
        bytes_fetched: None,
        bytes_per_second: None,
        seconds_left: None,
        progress: None,
        ..status
    });
    digest::of(&cache)
}

/// An object of that name in the same namespace.
fn beside<K: Kind, O: Kind>(object: &K, name: &str) -> ObjectRef<O> {
    ObjectRef::new(name).within(&object.namespace().unwrap_or_default())
}

/// The owner of a child, by label: a label survives where a claim has no owner reference.
fn family<K: Kind>(child: &K, _: Sight) -> Concerned {
    let labels = child.labels();
    let (deployment, cache) = (labels.get(MODEL_DEPLOYMENT), labels.get(MODEL_CACHE));
    Concerned {
        deployments: deployment
            .map(|name| beside(child, name))
            .into_iter()
            .collect(),
        caches: cache.map(|name| beside(child, name)).into_iter().collect(),
    }
}

/// The same, but for our own writes: the reconcile that made them went on with what the API server answered.
fn unless_own<K: Kind>(child: &K, sight: Sight) -> Concerned {
    match sight {
        Sight::Own => Concerned::default(),
        Sight::News | Sight::Known | Sight::Gone => family(child, sight),
    }
}
