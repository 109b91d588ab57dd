//! Every state that the ModelDeployments and ModelCaches of a namespace go through, from a watch that runs beside the story.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::{StreamExt, pin_mut};
use kube::api::{Api, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{Config, Event, watcher};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::cluster::{Cluster, Kind, MODEL_CACHE, MODEL_DEPLOYMENT, POD};
use crate::model::condition;
use crate::steadiness::{Entry, Judgement, State, violations};
use crate::tools::{checkout, run_with_input};
use crate::wait::{Seen, until};

const KINDS: [Kind; 2] = [MODEL_DEPLOYMENT, MODEL_CACHE];

/// A watch lags behind by milliseconds; one that broke off comes back with growing pauses.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(30);

/// A pod is unready when its probe failed three times, a second apart. A kubelet that says so sooner, of a container that
/// runs, has written what it knew before the first answer over what it knew since (its `syncPod` races with its probes), and
/// takes that back with the next answer.
const BEFORE_A_PROBE_FAILS: Duration = Duration::from_secs(2);

/// A watch on a namespace, ended when it is dropped.
pub struct Record {
    cluster: Cluster,
    namespace: String,
    log: Arc<Mutex<Log>>,
    /// Kept for its end: the watches stop with it.
    _watches: JoinSet<()>,
}

#[derive(Default)]
struct Log {
    entries: Vec<Logged>,
    /// A watch that resumes tells again what it told already.
    seen: HashSet<String>,
    /// When each pod that is ready became so, by uid.
    ready: HashMap<String, Instant>,
}

enum Logged {
    Object(Value),
    Disturbance,
}

impl Record {
    /// Starts to record.
    #[must_use]
    pub fn start(cluster: &Cluster, namespace: &str) -> Self {
        let log = Arc::new(Mutex::new(Log::default()));
        let mut watches = JoinSet::new();
        for kind in KINDS {
            watches.spawn(watch(
                cluster.api(kind, namespace),
                Arc::clone(&log),
                Log::add,
            ));
        }
        let pods = cluster.api(POD, namespace);
        watches.spawn(watch(pods, Arc::clone(&log), |log, pod| {
            log.note_slip(&pod, Instant::now());
        }));
        Self {
            cluster: cluster.clone(),
            namespace: namespace.to_owned(),
            log,
            _watches: watches,
        }
    }

    /// Notes that from now on something that was ready may stop being so once.
    pub fn disturbance(&self) {
        lock(&self.log).entries.push(Logged::Disturbance);
    }

    /// Checks that tools of GitOps were told the truth all the way, and never two things in turn.
    ///
    /// # Errors
    /// When they were not; the error holds each violation with the states of its object.
    pub async fn check(self) -> Result<()> {
        self.catch_up().await?;
        let log = std::mem::take(&mut lock(&self.log).entries);
        note_reasons(&self.namespace, &log)?;
        let found = violations(&judged(&log).await?);
        ensure!(
            found.is_empty(),
            "what tools of GitOps saw in {} was not steady or not true:\n{}",
            self.namespace,
            found.join("\n")
        );
        Ok(())
    }

    /// Waits until everything that is there now has been recorded.
    async fn catch_up(&self) -> Result<()> {
        let mut latest = Vec::new();
        for kind in KINDS {
            latest.extend(self.cluster.list(kind, &self.namespace, "").await?);
        }
        until(
            CAUGHT_UP_WITHIN,
            "the last states to be recorded",
            async || {
                let log = lock(&self.log);
                let missing = latest
                    .iter()
                    .find(|object| !log.seen.contains(&version(object)));
                Ok(Seen::when(missing.is_none(), || {
                    missing.map_or_else(String::new, |object| object["metadata"].to_string())
                }))
            },
        )
        .await
    }
}

impl Log {
    fn add(&mut self, object: Value) {
        if self.seen.insert(version(&object)) {
            self.entries.push(Logged::Object(object));
        }
    }

    /// Lets Ready follow a kubelet once that took back that a pod is ready before a probe could have failed.
    fn note_slip(&mut self, pod: &Value, now: Instant) {
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let before = self.ready.remove(uid);
        if condition(pod, "Ready")["status"] == "True" {
            self.ready.insert(uid.to_owned(), before.unwrap_or(now));
            return;
        }
        let is_leaving = pod["metadata"]["deletionTimestamp"].is_string();
        let runs = pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
        let is_early = |since| now.duration_since(since) < BEFORE_A_PROBE_FAILS;
        if runs && !is_leaving && before.is_some_and(is_early) {
            eprintln!(
                "the kubelet took back that pod {} is ready; Ready may follow it",
                pod["metadata"]["name"]
            );
            // At the front: the watch of what followed it may have told that first.
            self.entries.insert(0, Logged::Disturbance);
        }
    }
}

async fn watch(api: Api<DynamicObject>, log: Arc<Mutex<Log>>, note: fn(&mut Log, Value)) {
    let events = watcher(api, Config::default()).default_backoff();
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                if let Ok(object) = serde_json::to_value(object) {
                    note(&mut lock(&log), object);
                }
            }
            Ok(Event::Delete(_) | Event::Init | Event::InitDone) => {}
            // The watch comes back by itself, and lists again first.
            Err(error) => eprintln!("a watch of the record broke off: {error}"),
        }
    }
}

fn lock(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes down which reasons were seen, one file for each namespace; `hack/conditions` reads them.
fn note_reasons(namespace: &str, log: &[Logged]) -> Result<()> {
    let mut reasons = BTreeSet::new();
    for entry in log {
        if let Logged::Object(object) = entry {
            let conditions = object["status"]["conditions"].as_array();
            let seen = conditions.into_iter().flatten();
            reasons.extend(seen.filter_map(|condition| condition["reason"].as_str()));
        }
    }
    let folder = checkout().join("build/reasons");
    std::fs::create_dir_all(&folder)?;
    let text: String = reasons.iter().map(|reason| format!("{reason}\n")).collect();
    std::fs::write(folder.join(namespace), text)?;
    Ok(())
}

/// One state of one object.
fn version(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!("{}/{}", metadata["uid"], metadata["resourceVersion"])
}

/// Lets the program `kstatus` say how each state is read.
async fn judged(log: &[Logged]) -> Result<Vec<Entry>> {
    let mut lines = String::new();
    for entry in log {
        if let Logged::Object(object) = entry {
            lines.push_str(&object.to_string());
            lines.push('\n');
        }
    }
    let program = checkout().join("build/bin/kstatus");
    ensure!(
        program.is_file(),
        "{} is not there; run the stories by `make e2e`",
        program.display()
    );
    let answer = run_with_input::<&str>(&program.to_string_lossy(), &[], &lines).await?;
    let mut judgements = answer.lines();
    log.iter()
        .map(|entry| match entry {
            Logged::Disturbance => Ok(Entry::Disturbance),
            Logged::Object(object) => {
                let judgement: Judgement =
                    serde_json::from_str(judgements.next().unwrap_or_default())?;
                Ok(Entry::State(State::new(object, judgement)))
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_no_probe_and_no_end_can_have_caused_is_a_slip_of_the_kubelet() {
        let pod = |ready: &str, state: Value, leaves: Option<&str>| {
            json!({
                "metadata": { "uid": "u", "deletionTimestamp": leaves },
                "status": {
                    "conditions": [{ "type": "Ready", "status": ready }],
                    "containerStatuses": [{ "state": state }],
                },
            })
        };
        let running = || json!({ "running": {} });
        let began = Instant::now();
        let later = |seconds| began + Duration::from_secs(seconds);
        let slips = |unready: Value, seconds| {
            let mut log = Log::default();
            log.note_slip(&pod("False", running(), None), began);
            log.note_slip(&pod("True", running(), None), began);
            log.note_slip(&unready, later(seconds));
            log.note_slip(&pod("True", running(), None), later(seconds));
            log.entries.len()
        };
        assert_eq!(slips(pod("False", running(), None), 1), 1);
        assert_eq!(slips(pod("False", running(), None), 3), 0);
        assert_eq!(slips(pod("False", json!({ "terminated": {} }), None), 1), 0);
        assert_eq!(slips(pod("False", running(), Some("now")), 1), 0);
    }
}
