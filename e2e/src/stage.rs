//! A stage: a namespace with one operator process of its own behind a fault proxy, on a cluster that is played.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cluster::{Cluster, MODEL_CARD, NAMESPACE, SERVICE_ACCOUNT};
use crate::end_state::{self, EndState, diff, is_on_the_way};
use crate::fault_proxy::{Fault, FaultProxy};
use crate::local_operator::{LocalOperator, Program};
use crate::tools::checkout;
use crate::wait::{Seen, until};

/// The label by which leftovers of earlier runs are found.
const LABEL: &str = "chandler.dev/stage";

/// A state counts as settled when nothing was written for so long: more than the operator's first pauses after a failure.
pub const SETTLED: Duration = Duration::from_millis(1_500);

/// The same while something is on its way, which a busy machine may keep waiting.
const SETTLED_ON_THE_WAY: Duration = Duration::from_secs(30);

/// Nothing is compared while the operator writes; this is how long it must have been quiet.
const QUIET: Duration = Duration::from_millis(150);

/// Longest way to a state: several of the operator's growing pauses, on a machine that is busy with other things.
const CONVERGES_WITHIN: Duration = Duration::from_secs(120);

/// A namespace with an operator of its own.
pub struct Stage {
    /// The cluster.
    pub cluster: Cluster,
    /// The namespace; also the name of the card that only this stage uses.
    pub namespace: String,
    /// What the operator writes goes through here.
    pub proxy: FaultProxy,
    /// The operator.
    pub operator: LocalOperator,
}

impl Stage {
    /// Makes the namespace and starts the operator.
    ///
    /// # Errors
    /// When the API server refuses, or the operator cannot be started.
    pub async fn start(
        cluster: &Cluster,
        program: &Program,
        namespace: &str,
        plan: Option<(Fault, usize)>,
    ) -> Result<Self> {
        make_namespace(cluster, namespace).await?;
        let (sender, kills) = mpsc::channel(1);
        let proxy = FaultProxy::start(cluster.client.clone(), plan, sender).await?;
        let operator = LocalOperator::start(program, namespace, &folder(), &proxy, kills)?;
        Ok(Self {
            cluster: cluster.clone(),
            namespace: namespace.to_owned(),
            proxy,
            operator,
        })
    }

    /// The present state.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn state(&self) -> Result<EndState> {
        end_state::read(&self.cluster, &self.namespace).await
    }

    /// Waits until nothing has changed for a while, and gives the state.
    ///
    /// # Errors
    /// When it goes on changing.
    pub async fn settled(&self) -> Result<EndState> {
        let mut before = self.state().await?;
        let mut since = tokio::time::Instant::now();
        until(CONVERGES_WITHIN, "nothing to change any more", async || {
            let now = self.state().await?;
            if now != before {
                before = now;
                since = tokio::time::Instant::now();
            }
            let quiet = self.proxy.quiet_for().min(since.elapsed());
            let needed = if is_on_the_way(&before) {
                SETTLED_ON_THE_WAY
            } else {
                SETTLED
            };
            Ok(if quiet >= needed {
                Seen::Yes(before.clone())
            } else {
                Seen::NotYet(format!("quiet for {} ms", quiet.as_millis()))
            })
        })
        .await
    }

    /// Waits until the state is this one and the operator has nothing more to write.
    ///
    /// # Errors
    /// When the deadline passes; the error says what differs.
    pub async fn reaches(&self, expected: &EndState, what: &str) -> Result<()> {
        until(CONVERGES_WITHIN, what, async || {
            let quiet = self.proxy.quiet_for();
            if quiet < QUIET {
                return Ok(Seen::NotYet("the operator is writing".to_owned()));
            }
            let lines = diff(expected, &self.state().await?);
            Ok(Seen::when(lines.is_empty(), || {
                format!("\n    {}", lines.join("\n    "))
            }))
        })
        .await
    }

    /// Takes the stage down. The namespace goes in the background.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn end(self) -> Result<()> {
        self.cluster.delete(MODEL_CARD, "", &self.namespace).await?;
        self.cluster.delete(NAMESPACE, "", &self.namespace).await
    }
}

/// Where operators' logs are kept.
#[must_use]
pub fn folder() -> PathBuf {
    checkout().join("build/stages")
}

/// Makes a namespace in which pods can be made.
///
/// # Errors
/// When the API server refuses, or the namespace's service account does not come.
pub async fn make_namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let namespace = json!({ "metadata": { "name": name, "labels": { LABEL: "true" } } });
    cluster.apply(NAMESPACE, "", namespace).await?;
    let what = format!("the service account of namespace {name}");
    until(Duration::from_secs(30), &what, async || {
        let found = cluster.get(SERVICE_ACCOUNT, name, "default").await?;
        Ok(Seen::when(found.is_some(), || "none yet".to_owned()))
    })
    .await
}

/// Removes what earlier runs left, and waits until it is gone.
///
/// # Errors
/// When something stays.
pub async fn remove_leftovers(cluster: &Cluster) -> Result<()> {
    let selector = format!("{LABEL}=true");
    for namespace in cluster.list(NAMESPACE, "", &selector).await? {
        let name = namespace["metadata"]["name"].as_str().unwrap_or_default();
        cluster.delete(NAMESPACE, "", name).await?;
    }
    until(
        Duration::from_secs(300),
        "earlier stages to be gone",
        async || {
            let left: Vec<Value> = cluster.list(NAMESPACE, "", &selector).await?;
            Ok(Seen::when(left.is_empty(), || {
                format!("{} namespaces", left.len())
            }))
        },
    )
    .await
}
