//! `chandler-operator run`: client, watches, controllers, probes, shutdown.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{FutureExt as _, StreamExt as _, future};
use kube::api::DynamicObject;
use kube::runtime::controller::{
    Action, Config as ControllerConfig, Error as ControllerError, applier,
};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, ResourceExt};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::api::ModelCard;
use crate::config::Config;
use crate::context::{Context, Failures, Stored, Stores};
use crate::election::Election;
use crate::kubernetes::{Cluster, ClusterError, Kind, Parts};
use crate::lease::{self, Leadership, Lost};
use crate::model_status::StatusReader;
use crate::nodes::UsageReader;
use crate::probes::{self, Probes};
use crate::queue::Queue;
use crate::telemetry::{Live, Metrics, waited_for};
use crate::watches::{self, Queues, Watched, Watches};
use crate::{cards, model_cache, model_deployment};

/// Reconciles of one kind at a time: a bound on requests to the API server and on memory.
const CONCURRENCY: u16 = 16;

/// Changes of one object within this time are looked at once.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Pause before the cards are tried again.
const CARDS_PAUSE: Duration = Duration::from_secs(5);

/// Longest wait for running reconciles at shutdown: with the time to give the Lease back, below a pod's usual 30 seconds.
const SHUTDOWN: Duration = Duration::from_secs(18);

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
    /// Another replica may lead from now on.
    #[error("ended without another write; a fresh process stands by")]
    Lost(#[from] Lost),
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
    let (stores, queues) = (Stores::default(), Queues::default());
    let leadership = if config.leader_elect {
        Leadership::contested()
    } else {
        Leadership::uncontested()
    };
    let live = Live {
        deployments: stores.deployments.clone(),
        queues: queues.clone(),
        leadership: leadership.clone(),
    };
    let metrics = Arc::new(Metrics::new(&config.namespace, live));
    let Watches { listed, mut tasks } = watches::start(Watched {
        client: &client,
        namespaces: &config.namespaces,
        stores: &stores,
        queues: &queues,
        metrics: &metrics,
    });
    let election = Election::new(lease::identity(instance.as_deref()));
    let cluster = Cluster::new(Parts {
        client: client.clone(),
        instance,
        stores: stores.clone(),
        leadership: leadership.clone(),
        metrics: metrics.clone(),
    });
    let ctx = Arc::new(Context {
        cluster,
        stores,
        metrics,
        status_reader: StatusReader::new()?,
        usage: UsageReader::default(),
        failures: Failures::default(),
        config,
    });
    tracing::info!(
        namespace = ctx.config.namespace,
        serves = ?ctx.config.namespaces,
        image = ctx.config.pods.image,
        "operator started"
    );

    let (stop, stopped) = watch::channel(false);
    let (release, released) = watch::channel(false);
    let ready = Arc::new(AtomicBool::new(false));
    let probes = tokio::spawn(probes::serve(
        listener,
        Probes {
            ctx: ctx.clone(),
            ready: ready.clone(),
        },
        wait(stopped.clone()),
    ));
    let elector = hold_lease(
        client,
        ctx.config.clone(),
        election,
        leadership.clone(),
        released,
    );
    let mut elector = tokio::spawn(elector);
    let cards = tokio::spawn(keep_cards(ctx.clone(), leadership.clone(), builtin));
    let mut controllers = tokio::spawn(control(ctx, leadership, listed, queues, ready, stopped));

    // Nothing but a fault of ours ends a watch or the controllers; a fresh process is the way on.
    let fault = tokio::select! {
        () = shutdown => None,
        _ = tasks.join_next() => Some(RunError::Ended("a watch")),
        _ = &mut controllers => Some(RunError::Ended("a controller")),
        ended = &mut elector => Some(match ended {
            Ok(Err(lost)) => RunError::Lost(lost),
            Ok(Ok(())) | Err(_) => RunError::Ended("the election"),
        }),
    };
    cards.abort();
    if let Some(fault) = fault {
        return Err(fault);
    }
    tracing::info!("operator is stopping");
    // Nobody waits for this any more when all receivers are gone.
    let _ = stop.send(true);
    if tokio::time::timeout(SHUTDOWN, async { tokio::join!(&mut controllers, probes) })
        .await
        .is_err()
    {
        tracing::warn!(
            seconds = SHUTDOWN.as_secs(),
            "reconciles did not end in time"
        );
        controllers.abort();
    }
    // Given back when nothing writes any more: from this moment on another replica leads.
    let _ = release.send(true);
    if !matches!(elector.await, Ok(Ok(()))) {
        tracing::warn!("the election ended with a fault");
    }
    drop(tasks);
    Ok(())
}

/// Takes part in the election, or waits for the end where there is none.
async fn hold_lease(
    client: Client,
    config: Config,
    election: Election,
    leadership: Leadership,
    released: watch::Receiver<bool>,
) -> Result<(), Lost> {
    if config.leader_elect {
        lease::hold(
            client,
            &config.namespace,
            election,
            leadership,
            wait(released),
        )
        .await
    } else {
        wait(released).await;
        Ok(())
    }
}

async fn wait(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Applies the built-in cards once, trying until the API server takes them.
async fn keep_cards(ctx: Arc<Context>, leadership: Leadership, builtin: Vec<ModelCard>) {
    leadership.begins().await;
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
    leadership: Leadership,
    listed: Vec<oneshot::Receiver<()>>,
    queues: Queues,
    ready: Arc<AtomicBool>,
    stopped: watch::Receiver<bool>,
) {
    // A decision on half a list would be wrong. An error means that a watch has ended, which ends the process.
    if future::try_join_all(listed).await.is_err() {
        return;
    }
    ready.store(true, Ordering::Release);
    tracing::info!("every watch has its first list");
    // A standby is ready too: its stores stay filled, so that it can go on at once.
    tokio::select! {
        () = leadership.begins() => tracing::info!("the controllers start"),
        () = wait(stopped.clone()) => return,
    }
    tokio::join!(
        controller(
            model_deployment::KIND,
            queues.deployments,
            ctx.clone(),
            stopped.clone(),
            |object, ctx| {
                async move { model_deployment::reconcile(&object, &ctx).await }.boxed()
            }
        ),
        controller(
            model_cache::KIND,
            queues.caches,
            ctx.clone(),
            stopped,
            |object, ctx| { async move { model_cache::reconcile(&object, &ctx).await }.boxed() }
        ),
    );
}

type Reconciling = Pin<Box<dyn Future<Output = Result<Action, ClusterError>> + Send>>;

async fn controller<K: Stored>(
    kind: &'static str,
    queue: Queue<K>,
    ctx: Arc<Context>,
    stopped: watch::Receiver<bool>,
    reconcile: fn(Arc<K>, Arc<Context>) -> Reconciling,
) {
    let store = K::store(&ctx.stores).clone();
    let all = store.state();
    queue.open(all.iter().map(|object| ObjectRef::from_obj(&**object)));
    let requests = queue
        .stream()
        .take_until(wait(stopped))
        .map(Ok::<_, Infallible>);
    let config = ControllerConfig::default()
        .concurrency(CONCURRENCY)
        .debounce(DEBOUNCE);
    let (started, context) = (queue.clone(), ctx.clone());
    applier(
        move |object: Arc<K>, ctx: Arc<Context>| {
            measured(kind, object, started.clone(), ctx, reconcile).boxed()
        },
        move |object, error: &ClusterError, ctx| failed(kind, &*object, error, &ctx),
        ctx,
        store.reader(),
        requests,
        config,
    )
    .for_each(|result| {
        match result {
            // A failure is told where it happened.
            Ok(_) | Err(ControllerError::ReconcilerFailed(..)) => {}
            Err(ControllerError::ObjectNotFound(reference)) => {
                let reference = here(&reference);
                queue.gone(&reference);
                context.failures.forget(kind, &reference);
                // It came back while this was found out, and its event met a line that seemed to hold it.
                if store.get(&reference).is_some() {
                    queue.wake(reference);
                }
            }
            Err(error) => tracing::warn!(kind, %error, "the controller stumbled"),
        }
        future::ready(())
    })
    .await;
}

/// The reference to an object of this kind, by name.
fn here<K: Kind>(reference: &ObjectRef<DynamicObject>) -> ObjectRef<K> {
    let name = ObjectRef::new(&reference.name);
    match &reference.namespace {
        Some(namespace) => name.within(namespace),
        None => name,
    }
}

async fn measured<K: Stored>(
    kind: &'static str,
    object: Arc<K>,
    queue: Queue<K>,
    ctx: Arc<Context>,
    reconcile: fn(Arc<K>, Arc<Context>) -> Reconciling,
) -> Result<Action, ClusterError> {
    let start = Instant::now();
    let reference = ObjectRef::from_obj(&*object);
    let since = queue.started(&reference);
    // Read again after the line was left: whatever wakes the object from here on comes to a reconcile of its own.
    let Some(object) = K::store(&ctx.stores).get(&reference) else {
        return Ok(Action::await_change());
    };
    let result = waited_for(kind, since, reconcile(object.clone(), ctx.clone())).await;
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => {
            ctx.failures.forget(kind, &reference);
            ctx.metrics.reconciled(kind, seconds);
            tracing::debug!(
                kind,
                name = object.name_any(),
                namespace = object.namespace(),
                seconds,
                "reconciled"
            );
        }
        Err(error) => {
            ctx.metrics.failed(kind, error.reason(), seconds);
            if let Some(since) = since {
                queue.failed(reference, since);
            }
        }
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
