//! Reads `/status` of serving pods: how far one has come that is not ready yet, and once what a ready one computes on.
//!
//! Bounded: a short answer within two seconds, a few pods at a time. What cannot be read blocks nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::pod_health;

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Most bytes of an answer; the contract's is below 1 KiB.
const MAX_ANSWER: usize = 16 * 1024;

/// Pods that are asked in one reconcile: enough to see what is going on, and never a storm.
const MAX_PODS: usize = 4;

/// Port of a pod's management routes.
const PORT: u16 = 8081;

/// What a serving pod says about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// `Loading`, `Warming`, `Ready`, `Draining` or `Failed`.
    pub phase: String,
    /// What it computes on: `cpu` or `cuda`.
    #[serde(default)]
    pub device: Option<String>,
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

/// Why a model could not be loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusError {
    /// One word.
    pub reason: String,
    /// The same for a person.
    pub message: String,
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

    async fn ask(&self, address: &str) -> Option<ModelStatus> {
        let host = if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        };
        let url = format!("http://{host}:{PORT}/status");
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
    let running = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        == Some("Running");
    running && !pod_health::is_ready(pod) && !pod_health::is_leaving(pod)
}
