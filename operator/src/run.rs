//! `chandler-operator run`: client, watches, controllers, probes, shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future;
use kube::Client;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::api::ModelCard;
use crate::cards;
use crate::config::Config;
use crate::context::{Context, Failures, Stores};
use crate::election::Election;
use crate::kubernetes::{Cluster, Parts};
use crate::lease::{self, Leadership, Lost};
use crate::model_status::StatusReader;
use crate::nodes::UsageReader;
use crate::probes::{self, Probes};
use crate::telemetry::{Live, Metrics, chain};
use crate::watches::{self, Queues, Watched, Watches};
use crate::workers::work;

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
        work(queues.deployments, ctx.clone(), wait(stopped.clone())),
        work(queues.caches, ctx, wait(stopped)),
    );
}
