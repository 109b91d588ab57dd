//! What a fetch answers while it goes on: the operator reads `/status` and shows it to people, Prometheus reads `/metrics`.
//!
//! So progress needs neither a right on objects nor a connection to the API server. Whoever asks changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::progress::Counter;
use crate::metrics::CONTENT_TYPE;
use crate::server::listen;

/// Connections at once: one operator and one Prometheus, each with some to spare.
const MOST_CONNECTIONS: u32 = 16;

/// Answers until it is dropped.
pub(super) struct Telling(JoinHandle<()>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Begins to answer. An address that is taken is told and no reason not to fetch.
pub(super) async fn tell(address: SocketAddr, counter: Arc<Counter>) -> Option<Telling> {
    let listener = TcpListener::bind(address).await;
    let listener = listener
        .inspect_err(|error| tracing::warn!(%address, %error, "failed to listen (--management-listen); nobody sees how far the fetch is"))
        .ok()?;
    let router = Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .with_state(counter);
    Some(Telling(tokio::spawn(async move {
        // Never closed: the process ends first.
        let (_open, closing) = watch::channel(false);
        listen::serve(listener, router, MOST_CONNECTIONS, closing).await;
    })))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    version: &'static str,
    phase: &'static str,
    bytes_fetched: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_total: Option<u64>,
    bytes_per_second: u64,
}

async fn status(State(counter): State<Arc<Counter>>) -> Json<Status> {
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        phase: "Fetching",
        bytes_fetched: counter.done(),
        bytes_total: counter.total(),
        bytes_per_second: counter.per_second(),
    })
}

async fn metrics(State(counter): State<Arc<Counter>>) -> impl IntoResponse {
    let mut registry = Registry::with_prefix("chandler_fetch");
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let total = counter.total().unwrap_or_default();
    gauge("done_bytes", "Bytes on the volume", counter.done());
    gauge(
        "all_bytes",
        "Bytes of all files, 0 where the hub does not tell",
        total,
    );
    gauge(
        "bytes_per_second",
        "Bytes a second from the hub, now",
        counter.per_second(),
    );
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = encode(&mut text, &registry);
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], text)
}
