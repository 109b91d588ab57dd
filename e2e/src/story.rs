//! What every story starts from: a cluster with the operator and the hub, made once per run, and a namespace of its own.

use std::panic::AssertUnwindSafe;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use futures::FutureExt;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{OnceCell, RwLock};

use crate::chat::Endpoint;
use crate::cluster::{
    CLAIM, Cluster, DEPLOYMENT, JOB, Kind, MODEL_CACHE, MODEL_DEPLOYMENT, NAMESPACE, POD, SERVICE,
};
use crate::hub_pod::HubPod;
use crate::images::Images;
use crate::record::Record;
use crate::wait::{Seen, until};
use crate::{collector, model, namespace, operator};

/// How long nothing must be written until everything counts as settled.
const STILL: Duration = Duration::from_secs(3);

const SETTLED_WITHIN: Duration = Duration::from_secs(60);
/// The longest between a ready pod and rules and names that lead to it.
const LED_TO_WITHIN: Duration = Duration::from_secs(30);

/// What one run shares.
pub struct World {
    /// The cluster of `KUBECONFIG`.
    pub cluster: Cluster,
    /// The images of `make images`.
    pub images: Images,
    /// The hub stand-in.
    pub hub: HubPod,
}

/// Whether a story bears others beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Company {
    /// Runs beside others.
    Welcome,
    /// Takes the operator away for a while, so it runs alone.
    Alone,
}

/// One story: the world, and a namespace of its own.
pub struct Story {
    /// What all stories share.
    pub world: &'static World,
    /// The story's namespace; restricted Pod Security is enforced on it.
    pub namespace: String,
    /// What tools of GitOps are told about it.
    record: Record,
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| Runtime::new().expect("a machine that runs the stories has threads"));
/// The failure is kept too, so that it is told at once to every story.
static WORLD: OnceCell<Result<World, String>> = OnceCell::const_new();
static TURNS: RwLock<()> = RwLock::const_new(());

/// Runs a story in the namespace `chandler-e2e-NAME`, tells the state of things if it fails, and cleans up.
///
/// # Panics
/// When the story fails: this is what a test is told by.
pub fn story(name: &str, company: Company, body: impl AsyncFnOnce(&Story) -> Result<()>) {
    RUNTIME.block_on(async {
        let world = WORLD.get_or_init(make_world).await;
        let world = match world {
            Ok(world) => world,
            Err(error) => panic!("the stories cannot start: {error}"),
        };
        let _shared;
        let _alone;
        match company {
            Company::Welcome => _shared = TURNS.read().await,
            Company::Alone => _alone = TURNS.write().await,
        }
        if let Err(error) = Story::run(world, name, body).await {
            panic!("{error:#}");
        }
    });
}

/// Runs a test that needs no cluster.
///
/// # Panics
/// When it fails.
pub fn without_cluster(body: impl Future<Output = Result<()>>) {
    if let Err(error) = RUNTIME.block_on(body) {
        panic!("{error:#}");
    }
}

async fn make_world() -> Result<World, String> {
    let made = async {
        let cluster = Cluster::attach().await?;
        namespace::remove_leftovers(&cluster).await?;
        let images = Images::read()?;
        let hub = HubPod::start(&cluster, &images.hub).await?;
        if let Err(error) = operator::install(&cluster, &images).await {
            namespace::dump(&cluster, operator::NAMESPACE).await;
            return Err(error);
        }
        collector::knows_our_kinds(&cluster).await?;
        Ok(World {
            cluster,
            images,
            hub,
        })
    };
    made.await.map_err(|error| format!("{error:#}"))
}

impl Story {
    async fn run(
        world: &'static World,
        name: &str,
        body: impl AsyncFnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let cluster = &world.cluster;
        let namespace = format!("chandler-e2e-{name}");
        namespace::gone(cluster, &namespace).await?;
        namespace::make(cluster, &namespace, name).await?;
        let story = Self {
            world,
            record: Record::start(cluster, &namespace),
            namespace,
        };
        let told = AssertUnwindSafe(body(&story))
            .catch_unwind()
            .await
            .unwrap_or_else(|panic| Err(anyhow!("{}", words(&*panic))));
        let Self {
            namespace, record, ..
        } = story;
        let recorded = record.check().await;
        let result = match (told, recorded) {
            // What the story itself found is the reason; what was recorded may explain it.
            (Err(error), Err(also)) => {
                eprintln!("{also:#}");
                Err(error)
            }
            (told, recorded) => told.and(recorded),
        };
        if result.is_err() {
            namespace::dump(cluster, &namespace).await;
        }
        if !namespace::is_kept() {
            cluster.delete(NAMESPACE, "", &namespace).await?;
        }
        result
    }

    /// Declares that something that is Ready is about to be broken, so that it may stop being Ready once, or fail again once.
    ///
    /// Without it, whatever became Ready must stay so until its spec changes.
    pub fn disturbs(&self) {
        self.record.disturbance();
    }

    /// The story's own repository on the hub: faults on it touch no other story.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/SmolLM2-135M-Instruct-GGUF", self.namespace)
    }

    /// Applies one object in the story's namespace.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self, kind: Kind, object: Value) -> Result<Value> {
        self.world
            .cluster
            .apply(kind, &self.namespace, object)
            .await
    }

    /// Offers the story's repository and applies a ModelDeployment of it.
    ///
    /// # Errors
    /// When hub or API server refuses.
    pub async fn deploy(&self) -> Result<()> {
        self.deploy_with(json!({})).await
    }

    /// The same with these fields of its spec instead.
    ///
    /// # Errors
    /// When hub or API server refuses.
    pub async fn deploy_with(&self, fields: Value) -> Result<()> {
        self.world.hub.offer(&self.repository(), json!({})).await?;
        self.respec(fields).await
    }

    /// Applies the story's ModelDeployment with these fields of its spec instead of the usual ones.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn respec(&self, fields: Value) -> Result<()> {
        let mut object = model::deployment(&self.repository());
        for (name, value) in fields.as_object().into_iter().flatten() {
            object["spec"][name] = value.clone();
        }
        self.apply(MODEL_DEPLOYMENT, object).await?;
        Ok(())
    }

    /// Waits until the story's ModelDeployment is Ready.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn ready(&self) -> Result<Value> {
        model::ready(&self.world.cluster, &self.namespace, model::NAME).await
    }

    /// Waits until the story's ModelDeployment is Ready, and checks that nothing is left of what it told before:
    /// every condition is true, and neither Stalled nor Reconciling stands there.
    ///
    /// # Errors
    /// When the deadline passes, or a condition is stale.
    pub async fn healed(&self) -> Result<Value> {
        let object = self.ready().await?;
        let conditions = object["status"]["conditions"].as_array();
        let stale = conditions.into_iter().flatten().find(|condition| {
            condition["status"] != "True"
                || condition["type"] == "Stalled"
                || condition["type"] == "Reconciling"
        });
        ensure!(
            stale.is_none(),
            "Ready, and not all is well:\n  {}",
            model::describe(&object)
        );
        Ok(object)
    }

    /// Waits until a condition of the story's ModelDeployment has this status and reason, and gives its message.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn reason(&self, within: Duration, wanted: (&str, &str, &str)) -> Result<String> {
        let cluster = &self.world.cluster;
        let found = model::reason(cluster, &self.namespace, model::NAME, within, wanted).await?;
        Ok(found["message"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until each of these conditions has its status for this reason, and checks that each message holds these texts.
    ///
    /// # Errors
    /// When the deadline passes, or a message lacks a text.
    pub async fn told(
        &self,
        within: Duration,
        conditions: &[(&str, &str)],
        reason: &str,
        texts: &[&str],
    ) -> Result<()> {
        for (condition, status) in conditions {
            let message = self.reason(within, (condition, status, reason)).await?;
            for text in texts {
                ensure!(
                    message.contains(text),
                    "{condition} lacks {text:?}: {message}"
                );
            }
        }
        Ok(())
    }

    /// Waits until the story's weights are on their way from the hub.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn fetching(&self) -> Result<()> {
        const WITHIN: Duration = Duration::from_secs(90);
        until(WITHIN, "the fetch to be under way", async || {
            let log = self.world.hub.requests(&self.repository()).await?;
            let is_loading = log.iter().any(|entry| entry.is_download());
            Ok(Seen::when(is_loading, || format!("{} requests", log.len())))
        })
        .await
    }

    /// Kind, name and resource version of everything of the story.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn versions(&self) -> Result<Vec<String>> {
        let mut versions = Vec::new();
        for kind in [
            MODEL_DEPLOYMENT,
            MODEL_CACHE,
            DEPLOYMENT,
            SERVICE,
            JOB,
            CLAIM,
        ] {
            for object in self.world.cluster.list(kind, &self.namespace, "").await? {
                let metadata = &object["metadata"];
                versions.push(format!(
                    "{} {} {}",
                    kind.word(),
                    metadata["name"],
                    metadata["resourceVersion"]
                ));
            }
        }
        Ok(versions)
    }

    /// Waits until nobody writes any more, and gives the versions then.
    /// Other controllers write last: the Jobs' completion, the Deployment's progress, pods that leave.
    ///
    /// # Errors
    /// When somebody goes on writing.
    pub async fn settled(&self) -> Result<Vec<String>> {
        let (cluster, namespace) = (&self.world.cluster, &self.namespace);
        let mut before = self.versions().await?;
        until(SETTLED_WITHIN, "everything to be settled", async || {
            tokio::time::sleep(STILL).await;
            let now = self.versions().await?;
            let pods = cluster.list(POD, namespace, model::SERVING).await?;
            let leaves = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_string();
            let is_settled = now == before && !pods.iter().any(leaves);
            before = now;
            Ok(if is_settled {
                Seen::Yes(before.clone())
            } else {
                Seen::NotYet(format!("{before:?}"))
            })
        })
        .await
    }

    /// The Service of the story's ModelDeployment, reached as a pod reaches it: by the address that its status names.
    /// A pod is ready before its node's rules and the cluster's DNS lead to it, so the first way is waited for.
    ///
    /// # Errors
    /// When the status names none, or nobody answers there.
    pub async fn endpoint(&self, object: &Value) -> Result<Endpoint> {
        let address = object["status"]["endpoint"]
            .as_str()
            .context("status.endpoint is empty")?;
        let host = address
            .trim_start_matches("http://")
            .split('/')
            .next()
            .unwrap_or_default();
        let target = if host.contains(':') {
            host.to_owned()
        } else {
            format!("{host}:80")
        };
        let endpoint = Endpoint::new(self.world.hub.way_to(&target).await?)?;
        until(LED_TO_WITHIN, "a way to the Service", async || {
            Ok(match endpoint.get("/models").await {
                Ok(_) => Seen::Yes(()),
                Err(error) => Seen::NotYet(format!("{error:#}")),
            })
        })
        .await?;
        Ok(endpoint)
    }
}

/// What a panic said.
fn words(panic: &(dyn std::any::Any + Send)) -> String {
    if let Some(text) = panic.downcast_ref::<String>() {
        text.clone()
    } else if let Some(text) = panic.downcast_ref::<&str>() {
        (*text).to_owned()
    } else {
        "the story panicked".to_owned()
    }
}
