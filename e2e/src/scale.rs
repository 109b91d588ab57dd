//! Many ModelDeployments: how they are spread, made and watched, for the operator's benchmark.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::DynamicObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::{CLAIM, Cluster, MODEL_CACHE, MODEL_DEPLOYMENT};
use crate::faults::stories;
use crate::model::condition;
use crate::player;
use crate::stage::make_namespace;

/// ModelDeployments of one namespace.
const IN_A_NAMESPACE: usize = 200;

/// Requests under way at a time: what keeps the API server busy.
const CONCURRENCY: usize = 16;

/// The cache that half of a namespace's ModelDeployments name.
const CACHE: &str = "weights";

/// One ModelDeployment's place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// Its namespace.
    pub namespace: String,
    /// Its name, which no other has in any namespace.
    pub name: String,
}

/// Where `count` ModelDeployments stand.
#[must_use]
pub fn places(count: usize) -> Vec<Place> {
    (0..count)
        .map(|number| Place {
            namespace: format!("scale-{}", number / IN_A_NAMESPACE),
            name: format!("model-{number}"),
        })
        .collect()
}

/// Makes namespaces, a cache in each, and all ModelDeployments: one half of a namespace asks the hub and shares
/// the cache that the operator makes, the other half names the one that is there.
///
/// # Errors
/// When the API server refuses.
pub async fn fill(cluster: &Cluster, places: &[Place]) -> Result<()> {
    let namespaces: HashSet<&str> = places
        .iter()
        .map(|place| place.namespace.as_str())
        .collect();
    stream::iter(namespaces)
        .map(|namespace| make_weights(cluster, namespace))
        .buffer_unordered(CONCURRENCY)
        .try_collect::<()>()
        .await?;
    stream::iter(places.iter().enumerate())
        .map(async |(number, place)| {
            let mut object = stories::deployment(&place.name);
            if number % 2 == 0 {
                object["spec"]["weights"] = json!({ "cache": { "name": CACHE } });
            }
            let namespace = &place.namespace;
            cluster.apply(MODEL_DEPLOYMENT, namespace, object).await
        })
        .buffer_unordered(CONCURRENCY)
        .try_for_each(|_: Value| std::future::ready(Ok(())))
        .await
}

async fn make_weights(cluster: &Cluster, namespace: &str) -> Result<()> {
    make_namespace(cluster, namespace).await?;
    let claim = json!({
        "metadata": { "name": CACHE },
        "spec": {
            "storageClassName": player::CLASS, "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    cluster.apply(CLAIM, namespace, claim).await?;
    let cache = json!({
        "metadata": { "name": CACHE },
        "spec": { "source": { "claim": { "claimName": CACHE } } },
    });
    cluster.apply(MODEL_CACHE, namespace, cache).await?;
    Ok(())
}

/// What the watch on all ModelDeployments has told.
#[derive(Debug, Default, Clone)]
pub struct Told {
    /// Those that are Ready for their present spec.
    pub ready: HashSet<String>,
    /// Those whose RuntimeHealthy is False, and since when this was known.
    pub unhealthy: HashMap<String, Instant>,
}

/// Watches all ModelDeployments until it is dropped.
pub struct Tracker {
    told: watch::Receiver<Told>,
    task: JoinHandle<()>,
}

impl Tracker {
    /// Starts the watch.
    #[must_use]
    pub fn start(cluster: &Cluster) -> Self {
        let (sender, told) = watch::channel(Told::default());
        let api: Api<DynamicObject> = cluster.api(MODEL_DEPLOYMENT, "");
        let task = tokio::spawn(async move {
            watcher(api, watcher::Config::default())
                .default_backoff()
                .applied_objects()
                .for_each(async |object| {
                    let Ok(object) = object else { return };
                    note(&sender, &object);
                })
                .await;
        });
        Self { told, task }
    }

    /// What is known now.
    #[must_use]
    pub fn told(&self) -> Told {
        self.told.borrow().clone()
    }

    /// How many are Ready now.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.told.borrow().ready.len()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn note(sender: &watch::Sender<Told>, object: &DynamicObject) {
    let (name, now) = (object.name_any(), Instant::now());
    let value = json!({ "status": object.data["status"] });
    let observed = value["status"]["observedGeneration"].as_i64();
    let is_ready =
        observed == object.metadata.generation && condition(&value, "Ready")["status"] == "True";
    let is_unhealthy = condition(&value, "RuntimeHealthy")["status"] == "False";
    sender.send_modify(|told| {
        if is_ready {
            told.ready.insert(name.clone());
        } else {
            told.ready.remove(&name);
        }
        if is_unhealthy {
            told.unhealthy.entry(name).or_insert(now);
        } else {
            told.unhealthy.remove(&name);
        }
    });
}

/// The value below which this share of all values lie; zero where there are none.
#[must_use]
pub fn percentile(mut values: Vec<Duration>, share: f64) -> Duration {
    values.sort();
    let index = (values.len() as f64 * share).ceil() as usize;
    values
        .get(index.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(percentile(values.clone(), 0.99), Duration::from_millis(99));
        assert_eq!(percentile(values, 0.5), Duration::from_millis(50));
        assert_eq!(percentile(Vec::new(), 0.99), Duration::ZERO);
    }

    #[test]
    fn names_are_unique_over_all_namespaces() {
        let places = places(500);
        let names: HashSet<_> = places.iter().map(|place| &place.name).collect();
        assert_eq!((places.len(), names.len()), (500, 500));
        assert_eq!(places[499].namespace, "scale-2");
    }
}
