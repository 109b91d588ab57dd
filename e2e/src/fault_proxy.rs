//! A proxy between one operator process and the API server, which sees each single request and can spoil one of them.
//!
//! It speaks plain HTTP to the operator and, with the kubeconfig's credentials, to the API server.
//! One process has one proxy, so that every write is known to be that process's own.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use kube::Client;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// The API server takes at most 3 MiB.
const LONGEST_BODY: usize = 4 * 1024 * 1024;

/// Chunks of one watch that are on their way to a slow reader.
const CHUNKS: usize = 4_096;

/// How long a request that times out is kept waiting: longer than any of the operator's pauses after a first failure.
const TIMED_OUT: Duration = Duration::from_secs(2);

/// How long a frozen watch tells nothing.
const FROZEN: Duration = Duration::from_millis(1_500);

/// What happens at one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The operator is killed before the write reaches the API server.
    KillBefore,
    /// The operator is killed when the API server has taken the write and before it hears of it.
    KillAfter,
    /// The API server answers with this status instead of taking the write.
    Refuse(u16),
    /// The connection is cut before the write reaches the API server.
    CutBefore,
    /// The connection is cut when the API server has taken the write.
    CutAfter,
    /// The API server takes the write, and a gateway gives up waiting for its answer.
    TimeOut,
    /// From this write on, watches tell nothing for a while.
    FreezeWatches,
    /// At this write all watches end, and none can be resumed where it ended.
    DropWatches,
    /// In the whole run watches tell everything so many milliseconds late; the number of the write means nothing.
    LagWatches(u64),
}

/// One write that the operator asked for.
#[derive(Debug, Clone)]
pub struct Write {
    /// Such as `PATCH deployments/model`.
    pub what: String,
    /// When it came.
    pub at: Instant,
}

/// Asks for the operator to be killed; the answer comes when it is dead.
pub type Kill = oneshot::Sender<()>;

/// Serves until it is dropped.
pub struct FaultProxy {
    /// Where the operator finds its API server.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    client: Client,
    plan: Option<(Fault, usize)>,
    kills: mpsc::Sender<Kill>,
    seen: Mutex<Seen>,
    frozen_until: watch::Sender<Instant>,
    /// Counts how often all watches were cut.
    cuts: watch::Sender<u64>,
}

struct Seen {
    writes: Vec<Write>,
    is_struck: bool,
    last_write: Instant,
    under_way: usize,
    /// Paths of watches that cannot be resumed.
    gone: HashSet<String>,
    watched: HashSet<String>,
}

impl FaultProxy {
    /// Starts a proxy that spoils one write (counted from 1), or none.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(
        client: Client,
        plan: Option<(Fault, usize)>,
        kills: mpsc::Sender<Kill>,
    ) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let shared = Arc::new(Shared {
            client,
            plan,
            kills,
            seen: Mutex::new(Seen {
                writes: Vec::new(),
                is_struck: matches!(plan, Some((Fault::LagWatches(_), _))),
                last_write: now,
                under_way: 0,
                gone: HashSet::new(),
                watched: HashSet::new(),
            }),
            frozen_until: watch::Sender::new(now),
            cuts: watch::Sender::new(0),
        });
        let router = Router::new().fallback(pass).with_state(shared.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("fault proxy: {error}");
            }
        });
        Ok(Self {
            address,
            shared,
            task,
        })
    }

    /// All writes so far, in their order.
    #[must_use]
    pub fn writes(&self) -> Vec<Write> {
        self.shared.seen().writes.clone()
    }

    /// How many writes there were so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shared.seen().writes.len()
    }

    /// Whether the planned fault has happened.
    #[must_use]
    pub fn is_struck(&self) -> bool {
        self.shared.seen().is_struck
    }

    /// For how long nothing has been written; zero while a write is under way.
    #[must_use]
    pub fn quiet_for(&self) -> Duration {
        let seen = self.shared.seen();
        if seen.under_way > 0 {
            Duration::ZERO
        } else {
            seen.last_write.elapsed()
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a write and says which fault falls on it.
    fn note(&self, what: String) -> Option<Fault> {
        let mut seen = self.seen();
        let at = Instant::now();
        seen.last_write = at;
        seen.writes.push(Write { what, at });
        match self.plan {
            Some((fault, number)) if !seen.is_struck && number == seen.writes.len() => {
                seen.is_struck = true;
                Some(fault)
            }
            _ => None,
        }
    }

    async fn kill(&self) {
        let (dead, died) = oneshot::channel();
        // Both fail only when the run is over, and then nothing is left to kill.
        let _ = self.kills.send(dead).await;
        let _ = died.await;
    }
}

/// Counts a write as under way until it is dropped, however its request ends.
struct UnderWay(Arc<Shared>);

impl UnderWay {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.seen().under_way += 1;
        Self(shared.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut seen = self.0.seen();
        seen.under_way -= 1;
        seen.last_write = Instant::now();
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, LONGEST_BODY).await {
        Ok(body) => body,
        Err(error) => return (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    };
    let query = parts.uri.query().unwrap_or_default();
    if parts.method == Method::GET && query.contains("watch=true") {
        return pass_watch(&shared, parts).await;
    }
    if !is_counted(&parts) {
        return forward(&shared, parts, body).await;
    }
    let under_way = UnderWay::begin(&shared);
    let fault = shared.note(name(&parts));
    let response = match fault {
        None | Some(Fault::LagWatches(_)) => forward(&shared, parts, body).await,
        Some(Fault::KillBefore) => {
            shared.kill().await;
            cut()
        }
        Some(Fault::KillAfter) => {
            forward(&shared, parts, body).await;
            shared.kill().await;
            cut()
        }
        Some(Fault::Refuse(code)) => refuse(code),
        Some(Fault::CutBefore) => cut(),
        Some(Fault::CutAfter) => {
            forward(&shared, parts, body).await;
            cut()
        }
        Some(Fault::TimeOut) => {
            forward(&shared, parts, body).await;
            sleep(TIMED_OUT).await;
            refuse(504)
        }
        Some(Fault::FreezeWatches) => {
            shared.frozen_until.send_replace(Instant::now() + FROZEN);
            forward(&shared, parts, body).await
        }
        Some(Fault::DropWatches) => {
            {
                let mut seen = shared.seen();
                seen.gone = std::mem::take(&mut seen.watched);
            }
            shared.cuts.send_modify(|cuts| *cuts += 1);
            forward(&shared, parts, body).await
        }
    };
    drop(under_way);
    response
}

/// Whether a request is a write that follows from objects. A lease is renewed by the clock.
fn is_counted(parts: &Parts) -> bool {
    [Method::POST, Method::PUT, Method::PATCH, Method::DELETE].contains(&parts.method)
        && !parts.uri.path().contains("/leases")
        && !parts.uri.path().contains("reviews")
}

/// `PATCH deployments/model` of `PATCH /apis/apps/v1/namespaces/NAMESPACE/deployments/model`.
fn name(parts: &Parts) -> String {
    let path = parts.uri.path();
    let short = match path.split_once("/namespaces/") {
        Some((_, rest)) => rest.split_once('/').map_or(rest, |(_, object)| object),
        None => path,
    };
    format!("{} {short}", parts.method)
}

async fn forward(shared: &Shared, parts: Parts, body: Bytes) -> Response {
    match send(shared, parts, body).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn send(shared: &Shared, mut parts: Parts, body: Bytes) -> Result<Response> {
    // The client knows the API server's address itself.
    let path = parts
        .uri
        .path_and_query()
        .context("a request without a path")?;
    parts.uri = path.as_str().parse()?;
    for name in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH] {
        parts.headers.remove(name);
    }
    let request = axum::http::Request::from_parts(parts, kube::client::Body::from(body));
    let (mut parts, body) = shared.client.send(request).await?.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// An answer whose body breaks off: for the client the connection is lost.
fn cut() -> Response {
    let error = std::io::Error::other("cut by the fault proxy");
    let mut response = Response::new(Body::from_stream(stream::iter([Err::<Bytes, _>(error)])));
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// An error as the API server words it.
fn refuse(code: u16) -> Response {
    let (reason, retry) = match code {
        409 => ("Conflict", None),
        410 => ("Expired", None),
        429 => ("TooManyRequests", Some("1")),
        504 => ("Timeout", None),
        _ => ("InternalError", None),
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "reason": reason, "code": code, "message": format!("{reason}: played by the fault proxy"),
    });
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, axum::Json(body)).into_response();
    if let Some(seconds) = retry {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
    }
    response
}

async fn pass_watch(shared: &Arc<Shared>, parts: Parts) -> Response {
    let path = parts.uri.path().to_owned();
    {
        let mut seen = shared.seen();
        if seen.gone.remove(&path) {
            return refuse(410);
        }
        seen.watched.insert(path);
    }
    let response = forward(shared, parts, Bytes::new()).await;
    let (parts, body) = response.into_parts();
    let lag = match shared.plan {
        Some((Fault::LagWatches(milliseconds), _)) => Duration::from_millis(milliseconds),
        _ => Duration::ZERO,
    };
    Response::from_parts(parts, Body::from_stream(late(shared, body, lag)))
}

/// The chunks of a watch, each at its time, until all watches are cut.
fn late(
    shared: &Shared,
    body: Body,
    lag: Duration,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> + use<> {
    // Chunks are read as they come, so that their lag does not add up.
    let (sender, receiver) = mpsc::channel(CHUNKS);
    let mut cuts = shared.cuts.subscribe();
    cuts.mark_unchanged();
    tokio::spawn(async move {
        let mut chunks = body.into_data_stream();
        loop {
            let chunk = tokio::select! {
                chunk = chunks.next() => chunk,
                _ = cuts.changed() => None,
                () = sender.closed() => None,
            };
            let Some(Ok(chunk)) = chunk else { return };
            if sender.send((Instant::now(), chunk)).await.is_err() {
                return;
            }
        }
    });
    let frozen = shared.frozen_until.subscribe();
    stream::unfold(
        (receiver, frozen),
        move |(mut receiver, frozen)| async move {
            let (came, chunk) = receiver.recv().await?;
            sleep_until(came + lag).await;
            let until = *frozen.borrow();
            sleep_until(until).await;
            Some((Ok(chunk), (receiver, frozen)))
        },
    )
}
