//! `chandler-operator run`: client, watches, controllers, probes, shutdown.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::channel::mpsc::Receiver;
use futures::{FutureExt as _, StreamExt as _};
use kube::runtime::controller::{
    Action, Config as ControllerConfig, Error as ControllerError, applier,
};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::api::ModelCard;
use crate::config::Config;
use crate::context::{Context, Failures, Stores};
use crate::kubernetes::{Cluster, ClusterError, Kind};
use crate::model_status::StatusReader;
use crate::nodes::UsageReader;
use crate::probes::{self, Probes};
use crate::telemetry::Metrics;
use crate::watches::{self, Watches};
use crate::{cards, model_cache, model_deployment};

/// Reconciles of one kind at a time: a bound on requests to the API server and on memory.
const CONCURRENCY: u16 = 16;

/// Changes of one object within this time are looked at once.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Pause before the cards are tried again.
const CARDS_PAUSE: Duration = Duration::from_secs(5);

/// Longest wait for running reconciles at shutdown, below a pod's usual 30 seconds.
const SHUTDOWN: Duration = Duration::from_secs(20);

/// Why the operator could not run.
#[derive(Debug, Error)]
pub enum RunError {
    /// There is no usable kubeconfig or service account.
    #[error("failed to find a cluster: set KUBECONFIG, or run in a pod with a service account")]
    Client(#[source] Box<kube::Error>),
    /// The HTTP client cannot be made.
    #[error("failed to make the HTTP client for pods")]
    Http(#[from] reqwest::Error),
    /// The probes' address is taken.
    #[error("failed to listen on {address} (--listen-probes)")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A built-in card cannot be read.
    #[error("failed to read a built-in ModelCard: {0}")]
    Cards(String),
    /// Something that never ends by itself has ended.
    #[error("{0} ended by an internal fault; see the log above")]
    Ended(&'static str),
}

/// Runs until `shutdown` is done.
///
/// # Errors
///
/// When there is no cluster, or the probes' address cannot be listened on.
pub async fn run(
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let client = Client::try_default()
        .await
        .map_err(|error| RunError::Client(Box::new(error)))?;
    let address = config.listen_probes;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address, source })?;
    let builtin = if config.builtin_cards {
        cards::builtin().map_err(|error| RunError::Cards(error.to_string()))?
    } else {
        Vec::new()
    };
    let instance = std::env::var("HOSTNAME").ok();
    let Watches {
        stores,
        deployments,
        caches,
        mut tasks,
    } = watches::start(&client, config.watch_namespace.as_deref());
    let ctx = Arc::new(Context {
        cluster: Cluster::new(client, instance),
        stores,
        metrics: Metrics::new(&config.namespace),
        status_reader: StatusReader::new()?,
        usage: UsageReader::default(),
        failures: Failures::default(),
        config,
    });
    tracing::info!(
        namespace = ctx.config.namespace,
        image = ctx.config.pods.image,
        "operator started"
    );

    let (stop, stopped) = watch::channel(false);
    let ready = Arc::new(AtomicBool::new(false));
    let probes = tokio::spawn(probes::serve(
        listener,
        Probes {
            ctx: ctx.clone(),
            ready: ready.clone(),
        },
        wait(stopped.clone()),
    ));
    let cards = tokio::spawn(keep_cards(ctx.clone(), builtin));
    let mut controllers = tokio::spawn(control(ctx, deployments, caches, ready, stopped));

    // Nothing but a fault of ours ends a watch or the controllers; a fresh process is the way on.
    let fault = tokio::select! {
        () = shutdown => None,
        _ = tasks.join_next() => Some("a watch"),
        _ = &mut controllers => Some("a controller"),
    };
    cards.abort();
    if let Some(what) = fault {
        return Err(RunError::Ended(what));
    }
    tracing::info!("operator is stopping");
    // Nobody waits for this any more when all receivers are gone.
    let _ = stop.send(true);
    if tokio::time::timeout(SHUTDOWN, async { tokio::join!(controllers, probes) })
        .await
        .is_err()
    {
        tracing::warn!(
            seconds = SHUTDOWN.as_secs(),
            "reconciles did not end in time"
        );
    }
    drop(tasks);
    Ok(())
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Applies the built-in cards once, trying until the API server takes them.
async fn keep_cards(ctx: Arc<Context>, builtin: Vec<ModelCard>) {
    while let Err(error) = cards::apply(&ctx.cluster, &builtin).await {
        tracing::warn!(
            error = chain(&error),
            "the built-in cards are not applied yet"
        );
        tokio::time::sleep(CARDS_PAUSE).await;
    }
}

async fn control(
    ctx: Arc<Context>,
    deployments: Receiver<ObjectRef<crate::api::ModelDeployment>>,
    caches: Receiver<ObjectRef<crate::api::ModelCache>>,
    ready: Arc<AtomicBool>,
    stopped: watch::Receiver<bool>,
) {
    if listed(&ctx.stores).await.is_err() {
        return;
    }
    ready.store(true, Ordering::Release);
    tracing::info!("every watch has its first list");
    let deployment_store = ctx.stores.deployments.clone();
    let cache_store = ctx.stores.caches.clone();
    tokio::join!(
        controller(
            model_deployment::KIND,
            deployment_store,
            deployments,
            ctx.clone(),
            stopped.clone(),
            |object, ctx| {
                async move { model_deployment::reconcile(&object, &ctx).await }.boxed()
            }
        ),
        controller(
            model_cache::KIND,
            cache_store,
            caches,
            ctx.clone(),
            stopped,
            |object, ctx| { async move { model_cache::reconcile(&object, &ctx).await }.boxed() }
        ),
    );
}

/// Waits until every store shows what the cluster has: a decision on half a list would be wrong.
async fn listed(stores: &Stores) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
    stores.cards.wait_until_ready().await?;
    stores.caches.wait_until_ready().await?;
    stores.deployments.wait_until_ready().await?;
    stores.jobs.wait_until_ready().await?;
    stores.pods.wait_until_ready().await?;
    stores.workloads.wait_until_ready().await?;
    stores.services.wait_until_ready().await?;
    stores.revisions.wait_until_ready().await?;
    stores.budgets.wait_until_ready().await?;
    stores.nodes.wait_until_ready().await?;
    stores.runtime_classes.wait_until_ready().await?;
    stores.claims.wait_until_ready().await?;
    stores.storage_classes.wait_until_ready().await
}

type Reconciling = Pin<Box<dyn Future<Output = Result<Action, ClusterError>> + Send>>;

async fn controller<K>(
    kind: &'static str,
    store: Store<K>,
    queue: Receiver<ObjectRef<K>>,
    ctx: Arc<Context>,
    stopped: watch::Receiver<bool>,
    reconcile: fn(Arc<K>, Arc<Context>) -> Reconciling,
) where
    K: Kind,
{
    let queue = queue.take_until(wait(stopped)).map(Ok::<_, Infallible>);
    let config = ControllerConfig::default()
        .concurrency(CONCURRENCY)
        .debounce(DEBOUNCE);
    applier(
        move |object: Arc<K>, ctx: Arc<Context>| measured(kind, object, ctx, reconcile).boxed(),
        move |object, error: &ClusterError, ctx| failed(kind, &*object, error, &ctx),
        ctx,
        store,
        queue,
        config,
    )
    .for_each(|result| async move {
        match result {
            // Told where it happened; an object that is gone needs nothing.
            Ok(_)
            | Err(ControllerError::ReconcilerFailed(..) | ControllerError::ObjectNotFound(_)) => {}
            Err(error) => tracing::warn!(kind, %error, "the controller stumbled"),
        }
    })
    .await;
}

async fn measured<K: Kind>(
    kind: &'static str,
    object: Arc<K>,
    ctx: Arc<Context>,
    reconcile: fn(Arc<K>, Arc<Context>) -> Reconciling,
) -> Result<Action, ClusterError> {
    let start = Instant::now();
    let result = reconcile(object.clone(), ctx.clone()).await;
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => {
            ctx.failures.forget(kind, &*object);
            ctx.metrics.reconciled(kind, seconds);
            tracing::debug!(
                kind,
                name = object.name_any(),
                namespace = object.namespace(),
                seconds,
                "reconciled"
            );
        }
        Err(error) => ctx.metrics.failed(kind, error.reason(), seconds),
    }
    result
}

fn failed<K: Kind>(kind: &'static str, object: &K, error: &ClusterError, ctx: &Context) -> Action {
    let pause = ctx.failures.pause(kind, object);
    tracing::warn!(
        kind,
        name = object.name_any(),
        namespace = object.namespace(),
        error = chain(error),
        retry_seconds = pause.as_secs_f64(),
        "a reconcile failed"
    );
    Action::requeue(pause)
}

/// An error with all its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
