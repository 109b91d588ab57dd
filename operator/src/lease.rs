//! The Lease by which replicas of the operator agree on one leader, and the guard that every write passes.
//!
//! The decisions stand in `election`; here are the requests and the waiting.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use thiserror::Error;
use tokio::sync::watch;

use crate::election::{Election, Look, RETRY, Step, Term};

/// Name of the Lease, in the operator's namespace.
pub const NAME: &str = "chandler-operator";

/// Longest wait for one look at the Lease: a slow API server may be asked twice before the leader must stop.
const LOOK: Duration = Duration::from_secs(5);

/// The right to write, as every part of the operator asks for it. Cloning gives another handle to the same right.
#[derive(Clone)]
pub struct Leadership(Arc<watch::Sender<Term>>);

/// The leader has lost its Lease; another replica goes on.
#[derive(Debug, Error)]
#[error("lost the Lease {NAME:?}: it could not be renewed in time, or somebody else took it")]
pub struct Lost;

impl Leadership {
    /// Of one replica among several: it begins as a standby.
    #[must_use]
    pub fn contested() -> Self {
        Self(Arc::new(watch::Sender::new(Term::Standby)))
    }

    /// Of an operator that runs alone.
    #[must_use]
    pub fn uncontested() -> Self {
        Self(Arc::new(watch::Sender::new(Term::Endless)))
    }

    /// Whether a write may begin now.
    #[must_use]
    pub fn may_write(&self) -> bool {
        self.0.borrow().may_write(Instant::now())
    }

    /// Waits until this process leads.
    pub async fn begins(&self) {
        let mut terms = self.0.subscribe();
        // The sender lives in `self`, so this can only end by its condition.
        let _ = terms.wait_for(|term| term.may_write(Instant::now())).await;
    }

    fn after(&self, look: Look) -> Term {
        let term = self.0.borrow().after(look, Instant::now());
        self.0.send_replace(term);
        term
    }
}

/// A name for this process that no other has, even in a pod that was started again.
#[must_use]
pub fn identity(pod: Option<&str>) -> String {
    // The standard library seeds each of these from the system's randomness.
    let random = RandomState::new().build_hasher().finish();
    format!("{}_{random:016x}", pod.unwrap_or("operator"))
}

/// Takes and renews the Lease until `stopped`, then gives it back.
///
/// # Errors
///
/// When the Lease was ours and no longer is: the process must end without another write.
pub async fn hold(
    client: Client,
    namespace: &str,
    mut election: Election,
    leadership: Leadership,
    stopped: impl Future<Output = ()>,
) -> Result<(), Lost> {
    let api: Api<Lease> = Api::namespaced(client, namespace);
    let mut stopped = std::pin::pin!(stopped);
    let mut told = String::new();
    // The Lease as we wrote it last: the holder need not read what only it may write.
    let mut held = None;
    loop {
        let asked = Instant::now();
        let looked = tokio::time::timeout(LOOK, look(&api, &mut election, &mut held)).await;
        let (look, words) = match looked {
            Ok(Ok(Step::Wait { holder })) => (Look::Foreign, format!("{holder} leads")),
            Ok(Ok(_)) => (Look::Held(asked), "this process leads".to_owned()),
            Ok(Err(error)) => (Look::Unclear, trouble(&error, namespace)),
            Err(_) => (Look::Unclear, "the API server does not answer".to_owned()),
        };
        if words != told {
            let identity = election.identity();
            match look {
                Look::Unclear => tracing::warn!(identity, error = words, "who leads is unclear"),
                Look::Held(_) | Look::Foreign => tracing::info!(identity, "{words}"),
            }
            told = words;
        }
        if leadership.after(look) == Term::Over {
            return Err(Lost);
        }
        tokio::select! {
            () = tokio::time::sleep_until((asked + RETRY).into()) => {}
            () = &mut stopped => break,
        }
    }
    // No write begins after the Lease is given back.
    leadership.0.send_replace(Term::Over);
    let released = tokio::time::timeout(LOOK, release(&api, &election)).await;
    if !matches!(released, Ok(Ok(()))) {
        tracing::warn!(
            "the Lease was not given back; another replica takes it when it has run out"
        );
    }
    Ok(())
}

/// One look at the Lease. The API server refuses a write over a record that somebody has changed since we read it.
/// Only a write that has succeeded is remembered, so after any trouble the Lease is read anew.
async fn look(
    api: &Api<Lease>,
    election: &mut Election,
    held: &mut Option<Lease>,
) -> kube::Result<Step> {
    let lease = match held.take() {
        Some(lease) => Some(lease),
        None => api.get_opt(NAME).await?,
    };
    let step = election.step(lease.as_ref(), Instant::now(), Timestamp::now());
    match (&step, lease) {
        (Step::Create(record) | Step::Replace(record), None) => {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(NAME.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: Some(LeaseSpec::clone(record)),
            };
            *held = Some(api.create(&PostParams::default(), &lease).await?);
        }
        (Step::Create(record) | Step::Replace(record), Some(lease)) => {
            *held = Some(write(api, lease, LeaseSpec::clone(record)).await?);
        }
        (Step::Wait { .. }, _) => {}
    }
    Ok(step)
}

async fn write(api: &Api<Lease>, lease: Lease, record: LeaseSpec) -> kube::Result<Lease> {
    let lease = Lease {
        metadata: ObjectMeta {
            managed_fields: None,
            ..lease.metadata
        },
        spec: Some(record),
    };
    let parameters = PostParams::default();
    api.replace(NAME, &parameters, &lease).await
}

async fn release(api: &Api<Lease>, election: &Election) -> kube::Result<()> {
    let Some(lease) = api.get_opt(NAME).await? else {
        return Ok(());
    };
    match election.release(&lease, Timestamp::now()) {
        Some(record) => write(api, lease, record).await.map(drop),
        None => Ok(()),
    }
}

fn trouble(error: &kube::Error, namespace: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 409 => {
            "another replica wrote the Lease at the same time".to_owned()
        }
        kube::Error::Api(status) => format!(
            "failed to take Lease {NAME:?} in namespace {namespace:?}: {}; make the namespace or name another with --namespace, \
             allow get, create and update of leases, or run a single operator with --leader-elect=false",
            status.message
        ),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_standby_may_not_write_before_its_term_begins() {
        let leadership = Leadership::contested();
        assert!(!leadership.may_write());
        leadership.after(Look::Held(Instant::now()));
        leadership.begins().await;
        assert!(leadership.may_write());
        leadership.after(Look::Foreign);
        assert!(!leadership.may_write());
        assert!(Leadership::uncontested().may_write());
    }

    #[test]
    fn two_processes_of_one_pod_have_different_names() {
        assert_ne!(identity(Some("pod")), identity(Some("pod")));
        assert!(identity(None).starts_with("operator_"));
    }
}
