//! The cluster of `KUBECONFIG`: a client, and reading and applying objects of any kind.

use anyhow::{Context, Result};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::Value;

/// Who the stories are to the API server, beside the operator.
pub const FIELD_MANAGER: &str = "chandler-e2e";

/// A cluster that is there already.
#[derive(Clone)]
pub struct Cluster {
    /// The client, with the rights of the kubeconfig.
    pub client: Client,
}

/// A kind and its plural, as the URLs of the API have it.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
}

macro_rules! kinds {
    ($($name:ident: $group:literal $version:literal $kind:literal $plural:literal;)*) => {
        $(#[doc = concat!("Kind `", $kind, "`.")]
        pub const $name: Kind = Kind { group: $group, version: $version, kind: $kind, plural: $plural };)*
    };
}

kinds! {
    MODEL_CARD: "chandler.dev" "v1alpha1" "ModelCard" "modelcards";
    MODEL_CACHE: "chandler.dev" "v1alpha1" "ModelCache" "modelcaches";
    MODEL_DEPLOYMENT: "chandler.dev" "v1alpha1" "ModelDeployment" "modeldeployments";
    NAMESPACE: "" "v1" "Namespace" "namespaces";
    POD: "" "v1" "Pod" "pods";
    SERVICE: "" "v1" "Service" "services";
    SECRET: "" "v1" "Secret" "secrets";
    NODE: "" "v1" "Node" "nodes";
    QUOTA: "" "v1" "ResourceQuota" "resourcequotas";
    CLAIM: "" "v1" "PersistentVolumeClaim" "persistentvolumeclaims";
    PERSISTENT_VOLUME: "" "v1" "PersistentVolume" "persistentvolumes";
    DEPLOYMENT: "apps" "v1" "Deployment" "deployments";
    JOB: "batch" "v1" "Job" "jobs";
    BUDGET: "policy" "v1" "PodDisruptionBudget" "poddisruptionbudgets";
    LEASE: "coordination.k8s.io" "v1" "Lease" "leases";
    CONTROLLER_REVISION: "apps" "v1" "ControllerRevision" "controllerrevisions";
    STORAGE_CLASS: "storage.k8s.io" "v1" "StorageClass" "storageclasses";
    SERVICE_ACCOUNT: "" "v1" "ServiceAccount" "serviceaccounts";
    CRD: "apiextensions.k8s.io" "v1" "CustomResourceDefinition" "customresourcedefinitions";
}

impl Kind {
    /// The word for one object of it.
    #[must_use]
    pub fn word(self) -> &'static str {
        self.kind
    }
}

impl Cluster {
    /// Attaches to the cluster of `KUBECONFIG`.
    ///
    /// # Errors
    /// When there is none, or it does not answer.
    pub async fn attach() -> Result<Self> {
        let config = Config::infer()
            .await
            .context("no cluster to test on; set KUBECONFIG, or run the stories by `make e2e`")?;
        let address = config.cluster_url.to_string();
        let client = Client::try_from(config)?;
        client
            .apiserver_version()
            .await
            .with_context(|| format!("the API server at {address} does not answer"))?;
        Ok(Self { client })
    }

    /// Objects of one kind in a namespace, or of the whole cluster where the namespace is empty.
    #[must_use]
    pub fn api(&self, kind: Kind, namespace: &str) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk(kind.group, kind.version, kind.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural);
        if namespace.is_empty() {
            Api::all_with(self.client.clone(), &resource)
        } else {
            Api::namespaced_with(self.client.clone(), namespace, &resource)
        }
    }

    /// Applies one object, given as JSON without `apiVersion` and `kind`.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self, kind: Kind, namespace: &str, mut object: Value) -> Result<Value> {
        let version = if kind.group.is_empty() {
            kind.version.to_owned()
        } else {
            format!("{}/{}", kind.group, kind.version)
        };
        object["apiVersion"] = version.into();
        object["kind"] = kind.kind.into();
        let name = object["metadata"]["name"]
            .as_str()
            .context("an object to apply has no name")?
            .to_owned();
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applied = self
            .api(kind, namespace)
            .patch(&name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("cannot apply {} {name}", kind.kind))?;
        Ok(serde_json::to_value(applied)?)
    }

    /// Changes some fields of an object, as a user's merge patch does.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn change(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        patch: &Value,
    ) -> Result<Value> {
        let changed = self
            .api(kind, namespace)
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("cannot change {} {name}", kind.kind))?;
        Ok(serde_json::to_value(changed)?)
    }

    /// One object as JSON, if it exists.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Value>> {
        let found = self.api(kind, namespace).get_opt(name).await?;
        Ok(found.map(serde_json::to_value).transpose()?)
    }

    /// All objects of a kind that have the labels of the selector (empty: all), as JSON.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn list(&self, kind: Kind, namespace: &str, selector: &str) -> Result<Vec<Value>> {
        let params = ListParams::default().labels(selector);
        let found = self.api(kind, namespace).list(&params).await?;
        found
            .items
            .into_iter()
            .map(|object| Ok(serde_json::to_value(object)?))
            .collect()
    }

    /// Deletes an object; one that is not there counts as deleted.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete(&self, kind: Kind, namespace: &str, name: &str) -> Result<()> {
        match self
            .api(kind, namespace)
            .delete(name, &DeleteParams::background())
            .await
        {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot delete {} {name}", kind.kind)),
            Ok(_) => Ok(()),
        }
    }
}

/// Names of objects, sorted.
#[must_use]
pub fn names(objects: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = objects
        .iter()
        .filter_map(|object| Some(object["metadata"]["name"].as_str()?.to_owned()))
        .collect();
    names.sort();
    names
}
