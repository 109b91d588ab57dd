//! The work on one kind: takes objects from the queue, a few at a time, and looks after each.
//!
//! A failure is told, counted and tried again after a growing pause; a panic ends the process.

use std::sync::Arc;
use std::time::Duration;

use kube::runtime::reflector::ObjectRef;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use crate::context::{Context, Stored};
use crate::kubernetes::ClusterError;
use crate::queue::Queue;
use crate::telemetry::{chain, waited_for};

/// Reconciles of one kind at a time: a bound on requests to the API server and on memory.
const CONCURRENCY: usize = 16;

/// A kind that is looked after.
pub trait Reconcile: Stored {
    /// The word for it in logs and metrics.
    const KIND: &'static str;

    /// One reconcile. Returns when it wants to come again, if nothing wakes the object before.
    fn reconcile(
        &self,
        ctx: &Context,
    ) -> impl Future<Output = Result<Option<Duration>, ClusterError>> + Send;
}

/// Looks after one kind. Begins with every object, and goes on until `stopped`; reconciles under way are waited for.
pub async fn work<K: Reconcile>(
    queue: Queue<K>,
    ctx: Arc<Context>,
    stopped: impl Future<Output = ()> + Send,
) {
    queue.open(K::store(&ctx.stores).names());
    tokio::pin!(stopped);
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            () = &mut stopped => break,
            Some(ended) = running.join_next() => whole(ended),
            (reference, since) = queue.next(), if running.len() < CONCURRENCY => {
                let (queue, ctx) = (queue.clone(), ctx.clone());
                running.spawn(async move { look_after(&queue, &ctx, &reference, since).await });
            }
        }
    }
    while let Some(ended) = running.join_next().await {
        whole(ended);
    }
}

/// A reconcile that panicked takes the process along: what it left half done, a fresh one does again.
fn whole(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

async fn look_after<K: Reconcile>(
    queue: &Queue<K>,
    ctx: &Context,
    reference: &ObjectRef<K>,
    since: Option<Instant>,
) {
    let kind = K::KIND;
    let Some(object) = K::store(&ctx.stores).get(reference) else {
        ctx.failures.forget(kind, reference);
        queue.settled(reference, None);
        return;
    };
    let start = Instant::now();
    let result = waited_for(kind, since, object.reconcile(ctx)).await;
    let seconds = start.elapsed().as_secs_f64();
    let (name, namespace) = (&reference.name, &reference.namespace);
    match result {
        Ok(again) => {
            ctx.failures.forget(kind, reference);
            ctx.metrics.reconciled(kind, seconds);
            tracing::debug!(kind, name, namespace, seconds, "reconciled");
            queue.settled(reference, again);
        }
        Err(error) => {
            ctx.metrics.failed(kind, error.reason(), seconds);
            let pause = ctx.failures.pause(kind, reference);
            tracing::warn!(
                kind,
                name,
                namespace,
                error = chain(&error),
                retry_seconds = pause.as_secs_f64(),
                "a reconcile failed"
            );
            queue.failed(reference, since, pause);
        }
    }
}
