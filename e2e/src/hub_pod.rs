//! The hub stand-in as a pod: one for the whole run, with a repository and faults of its own for every story.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, DEPLOYMENT, POD, SERVICE};
use crate::forward::Forward;
use crate::hub::LoggedRequest;
use crate::images::Image;
use crate::namespace;
use crate::wait::{Seen, until};

/// The hub's namespace.
pub const NAMESPACE: &str = "chandler-e2e-hub";

/// How the Jobs reach the hub.
pub const ENDPOINT: &str = "http://hub.chandler-e2e-hub.svc.cluster.local";

/// How they reach its CDN: another host, as with the real one.
const CDN: &str = "http://cdn.chandler-e2e-hub.svc.cluster.local";

/// The repository with a tiny model that looks at pictures, in the layout of the hubs.
pub const VISION_REPOSITORY: &str = "chandler/mllama-tiny";

const RELAY_PORT: u16 = 8082;

/// The hub and the way to change what it answers.
pub struct HubPod {
    cluster: Cluster,
    pod: String,
    admin: Forward,
    http: reqwest::Client,
    /// The repository with the demo model, `ORG/NAME`.
    pub demo_repository: String,
}

impl HubPod {
    /// Starts the hub, or takes the one that runs with the same image.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(cluster: &Cluster, image: &Image) -> Result<Self> {
        namespace::make(cluster, NAMESPACE, "hub").await?;
        for (name, port) in [("hub", 8080), ("cdn", 8081)] {
            let service = json!({
                "metadata": { "name": name },
                "spec": {
                    "selector": { "app": "hub" },
                    "ports": [{ "name": "http", "port": 80, "targetPort": port }],
                },
            });
            cluster.apply(SERVICE, NAMESPACE, service).await?;
        }
        cluster
            .apply(DEPLOYMENT, NAMESPACE, deployment(image))
            .await?;
        let pod = ready_pod(cluster, image).await?;
        let admin = Forward::to_pod(&cluster.client, NAMESPACE, &pod, 8080).await?;
        let mut hub = Self {
            cluster: cluster.clone(),
            pod,
            admin,
            http: reqwest::Client::builder().no_proxy().build()?,
            demo_repository: String::new(),
        };
        // It may have served an earlier run.
        for path in ["/_faults", "/_requests"] {
            hub.ask(reqwest::Method::DELETE, path, None).await?;
        }
        let repositories = hub
            .ask(reqwest::Method::GET, "/_repositories", None)
            .await?;
        let names = repositories.as_array().into_iter().flatten();
        let mut names = names.filter_map(Value::as_str);
        hub.demo_repository = names
            .find(|name| *name != VISION_REPOSITORY)
            .context("the hub's image holds no repository with the demo model")?
            .to_owned();
        Ok(hub)
    }

    /// Makes `ORG/NAME` a copy of the demo model's repository under these settings, and gives its commit.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn offer(&self, repository: &str, settings: Value) -> Result<String> {
        self.offer_copy(repository, &self.demo_repository, settings)
            .await
    }

    /// The same with a copy of another repository of the hub's image.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn offer_copy(
        &self,
        repository: &str,
        original: &str,
        mut settings: Value,
    ) -> Result<String> {
        settings["copyOf"] = original.into();
        let path = format!("/_repositories/{repository}");
        let answer = self
            .ask(reqwest::Method::PUT, &path, Some(settings))
            .await?;
        Ok(answer["commit"].as_str().unwrap_or_default().to_owned())
    }

    /// Takes a repository away.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn withdraw(&self, repository: &str) -> Result<()> {
        let path = format!("/_repositories/{repository}");
        self.ask(reqwest::Method::DELETE, &path, None).await?;
        Ok(())
    }

    /// Adds a fault to one repository: see [`crate::hub::fault::Fault`].
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn spoil(&self, repository: &str, mut fault: Value) -> Result<()> {
        fault["repository"] = repository.into();
        self.ask(reqwest::Method::POST, "/_faults", Some(fault))
            .await?;
        Ok(())
    }

    /// Takes all faults of a repository away.
    ///
    /// # Errors
    /// When the hub refuses.
    pub async fn mend(&self, repository: &str) -> Result<()> {
        let path = format!("/_faults?repository={repository}");
        self.ask(reqwest::Method::DELETE, &path, None).await?;
        Ok(())
    }

    /// What was asked of a repository so far.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn requests(&self, repository: &str) -> Result<Vec<LoggedRequest>> {
        let path = format!("/_requests?repository={repository}");
        let log = self.ask(reqwest::Method::GET, &path, None).await?;
        Ok(serde_json::from_value(log)?)
    }

    /// The name of the model's file in the demo repository.
    ///
    /// # Errors
    /// When the hub does not answer, or the repository has no GGUF file.
    pub async fn model_file(&self) -> Result<String> {
        let path = format!("/api/models/{}", self.demo_repository);
        let model = self.ask(reqwest::Method::GET, &path, None).await?;
        let siblings = model["siblings"].as_array();
        siblings
            .into_iter()
            .flatten()
            .filter_map(|sibling| sibling["rfilename"].as_str())
            .find(|name| name.ends_with(".gguf"))
            .map(str::to_owned)
            .context("the demo repository has no GGUF file")
    }

    /// A way to `HOST:PORT` as a pod sees it: through DNS, cluster address and the node's rules.
    ///
    /// # Errors
    /// When no local port can be had.
    pub async fn way_to(&self, target: &str) -> Result<Forward> {
        let client = &self.cluster.client;
        Forward::through_relay(client, NAMESPACE, &self.pod, RELAY_PORT, target).await
    }

    async fn ask(&self, method: reqwest::Method, path: &str, body: Option<Value>) -> Result<Value> {
        let url = format!("http://{}{path}", self.admin.address);
        let mut request = self.http.request(method.clone(), url);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("the hub does not answer {method} {path}"))?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(
            status.is_success(),
            "the hub answers {method} {path} with {status}: {text}"
        );
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}

fn deployment(image: &Image) -> Value {
    json!({
        "metadata": { "name": "hub" },
        "spec": {
            "replicas": 1,
            "strategy": { "type": "Recreate" },
            "selector": { "matchLabels": { "app": "hub" } },
            "template": {
                "metadata": { "labels": { "app": "hub" } },
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
                    "containers": [{
                        "name": "hub",
                        "image": image.reference(),
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["--folder=/srv/hub", format!("--cdn-url={CDN}"), format!("--relay-listen=0.0.0.0:{RELAY_PORT}")],
                        "ports": [{ "containerPort": 8080 }, { "containerPort": 8081 }, { "containerPort": RELAY_PORT }],
                        "readinessProbe": { "httpGet": { "path": "/_healthz", "port": 8080 }, "periodSeconds": 1 },
                        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "256Mi" } },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": { "drop": ["ALL"] },
                        },
                    }],
                },
            },
        },
    })
}

async fn ready_pod(cluster: &Cluster, image: &Image) -> Result<String> {
    until(
        Duration::from_secs(120),
        "the hub's pod to be ready",
        async || {
            let pods = cluster.list(POD, NAMESPACE, "app=hub").await?;
            let ready = pods.iter().find(|pod| {
                pod["status"]["containerStatuses"][0]["ready"] == true
                    && pod["metadata"]["deletionTimestamp"].is_null()
                    && pod["spec"]["containers"][0]["image"] == image.reference().as_str()
            });
            Ok(match ready {
                Some(pod) => Seen::Yes(pod["metadata"]["name"].as_str().unwrap_or("").to_owned()),
                None => Seen::NotYet(
                    pods.iter()
                        .map(|pod| pod["status"]["containerStatuses"].to_string())
                        .collect(),
                ),
            })
        },
    )
    .await
}
