//! Reads `/status` of pods: how far a serving one has come that is not ready yet, and once what a ready one computes on;
//! and how far a fetching one is.
//!
//! Bounded: a short answer within two seconds, a few pods at a time. What cannot be read blocks nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::child::MANAGEMENT_PORT;
use crate::pod_health;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes of an answer; the contract's is below 1 KiB.
const MAX_ANSWER: usize = 16 * 1024;

/// Pods that are asked in one reconcile: enough to see what is going on, and never a storm.
const MAX_PODS: usize = 4;

/// What a serving pod says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// `Loading`, `Warming`, `Ready`, `Draining` or `Failed`.
    pub phase: String,
    /// What it computes on: `cpu` or `cuda`.
    #[serde(default)]
    pub device: Option<String>,
    /// Why it does not compute on the device that it was told.
    #[serde(default)]
    pub device_obstacle: Option<String>,
    /// Type of the weights in memory.
    #[serde(default)]
    pub dtype: Option<String>,
    /// How long its start took.
    #[serde(default)]
    pub phases: Phases,
    /// Bytes of weights that are in memory.
    #[serde(default)]
    pub bytes_resident: Option<i64>,
    /// Why it failed.
    #[serde(default)]
    pub error: Option<StatusError>,
}

/// Seconds of the runtime's own phases, once they are over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Phases {
    /// Until the weights were in memory.
    pub loaded_seconds: Option<f64>,
    /// Until the first computation was done.
    pub warm_seconds: Option<f64>,
}

/// Why a model could not be loaded, or is answered no more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusError {
    /// One word.
    pub reason: String,
    /// The same for a person.
    pub message: String,
}

/// What a fetching pod says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchStatus {
    /// Bytes that are on the volume.
    pub bytes_fetched: i64,
    /// Bytes of all files, where the hub tells.
    #[serde(default)]
    pub bytes_total: Option<i64>,
    /// Bytes a second that come from the hub now.
    pub bytes_per_second: i64,
}

/// An HTTP client for pods.
#[derive(Clone)]
pub struct StatusReader(reqwest::Client);

impl StatusReader {
    /// A client that follows no redirect and uses no proxy.
    ///
    /// # Errors
    ///
    /// When the client cannot be made.
    pub fn new() -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self(client))
    }

    /// What each of these pods says, by its name; of too many only some are asked.
    pub async fn read(&self, pods: &[Pod]) -> BTreeMap<String, ModelStatus> {
        let waiting: Vec<(String, String)> = pods
            .iter()
            .filter_map(|pod| Some((pod.name_any(), pod.status.as_ref()?.pod_ip.clone()?)))
            .take(MAX_PODS)
            .collect();
        futures::stream::iter(waiting)
            .map(|(name, address)| async move { Some((name, self.ask(&address).await?)) })
            .buffer_unordered(MAX_PODS)
            .filter_map(std::future::ready)
            .collect()
            .await
    }

    /// How far a fetching pod is; nothing where it does not answer.
    pub async fn read_fetch(&self, pod: &Pod) -> Option<FetchStatus> {
        self.ask(pod.status.as_ref()?.pod_ip.as_ref()?).await
    }

    async fn ask<T: DeserializeOwned>(&self, address: &str) -> Option<T> {
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let url = format!("http://{host}:{MANAGEMENT_PORT}/status");
        let mut response = self.0.get(url).send().await.ok()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.ok()? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return None;
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).ok()
    }
}

/// Whether a pod runs and is not ready.
#[must_use]
pub fn is_waiting(pod: &Pod) -> bool {
    is_running(pod) && !pod_health::is_ready(pod)
}

/// Whether a pod runs and stays.
#[must_use]
pub fn is_running(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let phase = status.and_then(|status| status.phase.as_deref());
    phase == Some("Running") && !pod_health::is_leaving(pod)
}
