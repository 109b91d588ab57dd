//! The one wrapper over the client: get, apply, delete, report.
//!
//! Children are applied whole by server-side apply under one field manager, and only when something of ours differs.
//! An object that somebody else controls is never applied over.
//! Every write passes one guard: only the leader writes, and each write ends before another leader can begin.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::core::Status;
use kube::core::object::HasStatus;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use thiserror::Error;

use crate::api::Reason;
use crate::child::{APPLIED, MANAGER};
use crate::conditions::{Transition, shortened};
use crate::context::{Stored, Stores};
use crate::lease::Leadership;
use crate::telemetry::Metrics;
use crate::{digest, drift};

/// Longest note of an Event that the API server takes.
const MAX_NOTE: usize = 1_024;

/// Longest time for one write. With the time in which a leader must renew it stays below the time after which
/// another replica takes the Lease (`election`), so a slow write never meets another leader's.
pub const LONGEST_WRITE: Duration = Duration::from_secs(4);

/// Objects of one page of a list: a bound on the memory that a list of many objects takes.
pub const PAGE: u32 = 100;

/// Longest time for one read.
const LONGEST_READ: Duration = Duration::from_secs(10);

/// What the operator knows of a kind that it reads or writes.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = ()>
        + Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// The cluster, as far as the operator may touch it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    recorder: Recorder,
    stores: Stores,
    leadership: Leadership,
    metrics: Arc<Metrics>,
}

/// What a `Cluster` is made of.
pub struct Parts {
    /// The client.
    pub client: Client,
    /// Names this process in Events.
    pub instance: Option<String>,
    /// What is written enters them at once.
    pub stores: Stores,
    /// The right to write.
    pub leadership: Leadership,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// Why a request was not made, or not waited for.
#[derive(Debug, Error)]
enum Unasked {
    /// Another replica leads, or may begin to lead at any moment.
    #[error("this process does not lead, so it does not write")]
    NotLeader,
    /// It took too long.
    #[error("the API server did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// What the API server refused, or did not answer.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// A read failed.
    #[error("failed to read {kind} {name:?}")]
    Get {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// A child could not be applied.
    #[error("failed to apply {kind} {name:?}: {reason}")]
    Apply {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's words.
        reason: String,
        /// Why.
        source: kube::Error,
    },
    /// A child could not be deleted.
    #[error("failed to delete {kind} {name:?}")]
    Delete {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
    /// A status could not be written.
    #[error("failed to write the status of {kind} {name:?}")]
    Status {
        /// Kind of the object.
        kind: String,
        /// Its name.
        name: String,
        /// Why.
        source: kube::Error,
    },
}

impl ClusterError {
    /// A stable word for metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        let (Self::Get { source, .. }
        | Self::Apply { source, .. }
        | Self::Delete { source, .. }
        | Self::Status { source, .. }) = self;
        if let kube::Error::Service(cause) = source
            && let Some(unasked) = cause.downcast_ref::<Unasked>()
        {
            return match unasked {
                Unasked::NotLeader => "NotLeader",
                Unasked::TimedOut(_) => "TimedOut",
            };
        }
        match self {
            Self::Get { .. } => "Get",
            Self::Apply { .. } => "Apply",
            Self::Delete { .. } => "Delete",
            Self::Status { .. } => "Status",
        }
    }

    /// The reason to tell where trying again without a change is no use: the API server has read the object and refuses it.
    #[must_use]
    pub fn refused(&self) -> Option<(Reason, String)> {
        let Self::Apply {
            kind,
            name,
            source: kube::Error::Api(status),
            ..
        } = self
        else {
            return None;
        };
        let reason = match status.code {
            403 if is_of_a_leaving_namespace(status) => Reason::NamespaceTerminating,
            400 | 403 | 422 => Reason::Refused,
            _ => return None,
        };
        let words = &status.message;
        Some((
            reason,
            format!("{kind} {name} was refused by the API server: {words}"),
        ))
    }
}

/// Whether nothing new is taken because the whole namespace is being deleted.
fn is_of_a_leaving_namespace(status: &Status) -> bool {
    let mut causes = status.details.iter().flat_map(|details| &details.causes);
    causes.any(|cause| cause.reason == "NamespaceTerminating")
}

/// What stands in the way of a child's name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stranger {
    /// Kind of the object.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Whether it belongs to a deleted object of the same kind and name as the owner: then it is about to go.
    #[serde(default)]
    pub is_left_over: bool,
}

impl Cluster {
    /// Wraps a client.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            client,
            instance,
            stores,
            leadership,
            metrics,
        } = parts;
        let reporter = Reporter {
            controller: format!("chandler.dev/{MANAGER}"),
            instance,
        };
        let recorder = Recorder::new(client.clone(), reporter);
        Self {
            client,
            recorder,
            stores,
            leadership,
            metrics,
        }
    }

    /// The guard of all writes.
    async fn write<T>(&self, request: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        if !self.leadership.may_write() {
            return Err(kube::Error::Service(Unasked::NotLeader.into()));
        }
        let written = within(LONGEST_WRITE, request).await?;
        self.metrics.written();
        Ok(written)
    }

    /// The client, for watches only.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Kind + Resource<Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads one object.
    ///
    /// # Errors
    ///
    /// When the API server does not answer; an absent object is no error.
    pub async fn get<K>(&self, namespace: &str, name: &str) -> Result<Option<K>, ClusterError>
    where
        K: Kind + Resource<Scope = NamespaceResourceScope>,
    {
        let api = self.api::<K>(namespace);
        within(LONGEST_READ, api.get_opt(name))
            .await
            .map_err(|source| ClusterError::Get {
                kind: K::kind(&()).into_owned(),
                name: name.to_owned(),
                source,
            })
    }

    /// Whether the API server still has this very object, and it is to stay.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub async fn is_there<K>(&self, object: &K) -> Result<bool, ClusterError>
    where
        K: Kind + Resource<Scope = NamespaceResourceScope>,
    {
        let namespace = object.namespace().unwrap_or_default();
        let found = self.get::<K>(&namespace, &object.name_any()).await?;
        Ok(found.is_some_and(|found| {
            found.uid() == object.uid() && found.meta().deletion_timestamp.is_none()
        }))
    }

    /// Reads a volume.
    ///
    /// # Errors
    ///
    /// When the API server does not answer; an absent one is no error.
    pub async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, ClusterError> {
        let api = Api::<PersistentVolume>::all(self.client.clone());
        within(LONGEST_READ, api.get_opt(name))
            .await
            .map_err(|source| ClusterError::Get {
                kind: "PersistentVolume".to_owned(),
                name: name.to_owned(),
                source,
            })
    }

    /// Looks at every pod that has a node and has not ended, a page at a time. False where the operator may not see all of them.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub async fn each_running_pod(&self, mut look: impl FnMut(&Pod)) -> Result<bool, ClusterError> {
        let mut parameters = ListParams::default()
            .fields("spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed")
            .limit(PAGE);
        let api = Api::<Pod>::all(self.client.clone());
        loop {
            match within(LONGEST_READ, api.list(&parameters)).await {
                Ok(pods) => {
                    pods.items.iter().for_each(&mut look);
                    match pods.metadata.continue_.filter(|next| !next.is_empty()) {
                        Some(next) => parameters = parameters.continue_token(&next),
                        None => return Ok(true),
                    }
                }
                Err(kube::Error::Api(status)) if status.code == 403 => return Ok(false),
                Err(source) => {
                    return Err(ClusterError::Get {
                        kind: "Pod".to_owned(),
                        name: "(all)".to_owned(),
                        source,
                    });
                }
            }
        }
    }

    /// The object that takes the name of a child of `owner` without being controlled by it.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub async fn stranger<K, O>(
        &self,
        owner: &O,
        name: &str,
    ) -> Result<Option<Stranger>, ClusterError>
    where
        K: Kind + Resource<Scope = NamespaceResourceScope>,
        O: Kind,
    {
        let namespace = owner.namespace().unwrap_or_default();
        let uid = owner.uid().unwrap_or_default();
        let found = self.get::<K>(&namespace, name).await?;
        let is_predecessor = |other: &OwnerReference| {
            other.controller == Some(true)
                && other.kind == O::kind(&())
                && other.name == owner.name_any()
        };
        Ok(found
            .filter(|object| !is_controlled_by(object, &uid))
            .map(|object| Stranger {
                kind: K::kind(&()).into_owned(),
                name: name.to_owned(),
                is_left_over: object.owner_references().iter().any(is_predecessor),
            }))
    }

    /// Applies a child whole, unless `live` already is what we want. Returns the object as the server has it.
    ///
    /// # Errors
    ///
    /// When the API server refuses the object or does not answer.
    pub async fn apply<K>(&self, mut wanted: K, live: Option<&K>) -> Result<K, ClusterError>
    where
        K: Stored + Resource<Scope = NamespaceResourceScope>,
    {
        let digest = digest::of(&wanted);
        wanted
            .annotations_mut()
            .insert(APPLIED.to_owned(), digest.clone());
        let body = body_of(&wanted);
        if let Some(live) = live
            && live.annotations().get(APPLIED) == Some(&digest)
            && drift::holds(&serde_json::to_value(live).unwrap_or_default(), &body)
        {
            return Ok(live.clone());
        }
        let (kind, name) = (K::kind(&()).into_owned(), wanted.name_any());
        let namespace = wanted.namespace().unwrap_or_default();
        let parameters = PatchParams::apply(MANAGER).force();
        let (api, patch) = (self.api::<K>(&namespace), Patch::Apply(&body));
        let applied = self
            .write(api.patch(&name, &parameters, &patch))
            .await
            .map_err(|source| ClusterError::Apply {
                kind: kind.clone(),
                name: name.clone(),
                reason: words(&source),
                source,
            })?;
        K::store(&self.stores).wrote(&applied);
        tracing::info!(kind, name, namespace, "applied");
        Ok(applied)
    }

    /// Applies an object that lives in no namespace.
    ///
    /// # Errors
    ///
    /// When the API server refuses the object or does not answer.
    pub async fn apply_cluster_wide<K>(&self, wanted: &K) -> Result<(), ClusterError>
    where
        K: Kind + Resource<Scope = k8s_openapi::ClusterResourceScope>,
    {
        let parameters = PatchParams::apply(MANAGER).force();
        let name = wanted.name_any();
        let (api, patch) = (
            Api::<K>::all(self.client.clone()),
            Patch::Apply(body_of(wanted)),
        );
        self.write(api.patch(&name, &parameters, &patch))
            .await
            .map(drop)
            .map_err(|source| ClusterError::Apply {
                kind: K::kind(&()).into_owned(),
                name,
                reason: words(&source),
                source,
            })
    }

    /// Deletes exactly this object, its children in the background. An object that is gone is no error.
    ///
    /// # Errors
    ///
    /// When the API server does not answer.
    pub async fn delete<K>(&self, object: &K) -> Result<(), ClusterError>
    where
        K: Stored + Resource<Scope = NamespaceResourceScope>,
    {
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        let namespace = object.namespace().unwrap_or_default();
        let parameters = DeleteParams {
            preconditions: Some(Preconditions {
                uid: object.uid(),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        let api = self.api::<K>(&namespace);
        match self.write(api.delete(&name, &parameters)).await {
            Ok(_) => {
                K::store(&self.stores).deleted(object);
                tracing::info!(kind, name, namespace, "deleted");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(source) => Err(ClusterError::Delete { kind, name, source }),
        }
    }

    /// Writes a status if it differs from the object's, and tells the transitions as Events.
    ///
    /// # Errors
    ///
    /// When the API server does not answer. Events that cannot be written are only logged.
    pub async fn report<K>(
        &self,
        object: &K,
        status: &K::Status,
        transitions: &[Transition],
    ) -> Result<(), ClusterError>
    where
        K: Stored + HasStatus + Resource<Scope = NamespaceResourceScope>,
        K::Status: Serialize + PartialEq,
    {
        if object.status() == Some(status) {
            return Ok(());
        }
        let (kind, name) = (K::kind(&()).into_owned(), object.name_any());
        let namespace = object.namespace().unwrap_or_default();
        let body = json!({
            "apiVersion": K::api_version(&()),
            "kind": kind,
            // With the version, so that a late write reaches neither a changed object nor a successor of the same name.
            // A UID would not do: the API server passes over another one here.
            "metadata": { "name": name, "resourceVersion": object.resource_version() },
            "status": status,
        });
        let parameters = PatchParams::apply(MANAGER).force();
        let (api, patch) = (self.api::<K>(&namespace), Patch::Apply(&body));
        let written = self
            .write(api.patch_status(&name, &parameters, &patch))
            .await;
        match written {
            Ok(written) => K::store(&self.stores).wrote(&written),
            // It was deleted meanwhile: there is nobody left to tell.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            // A conflict means that it was changed or made anew meanwhile: the next try works on what is there then.
            Err(source) => return Err(ClusterError::Status { kind, name, source }),
        }
        let reference = object.object_ref(&());
        for transition in transitions {
            self.tell(&reference, transition).await;
        }
        Ok(())
    }

    async fn tell(&self, reference: &ObjectReference, transition: &Transition) {
        let event = Event {
            type_: if transition.good {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: transition.reason.clone(),
            note: Some(shortened(transition.message.clone(), MAX_NOTE)),
            action: transition.condition.to_owned(),
            secondary: None,
        };
        if let Err(error) = self.write(self.recorder.publish(&event, reference)).await {
            tracing::warn!(%error, reason = transition.reason, "failed to write an Event");
        }
    }
}

async fn within<T>(
    longest: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> kube::Result<T> {
    tokio::time::timeout(longest, request)
        .await
        .unwrap_or_else(|_| Err(kube::Error::Service(Unasked::TimedOut(longest).into())))
}

/// Whether an object's controller has this UID.
#[must_use]
pub fn is_controlled_by<K: Resource>(object: &K, uid: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// The object as a server-side apply wants it: with its kind, without a status and without empty fields.
fn body_of<K: Kind>(object: &K) -> Value {
    let mut body = serde_json::to_value(object).expect("an object of our own making is plain JSON");
    body["apiVersion"] = json!(K::api_version(&()));
    body["kind"] = json!(K::kind(&()));
    if let Value::Object(fields) = &mut body {
        fields.remove("status");
    }
    body
}

fn words(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
