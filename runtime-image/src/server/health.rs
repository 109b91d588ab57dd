//! Probes, metrics and status.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;

use super::App;
use super::lifecycle::{Failure, Phase, Times};
use crate::metrics::CONTENT_TYPE;

/// The process lives.
pub(super) async fn healthz() -> &'static str {
    "ok"
}

/// The model answers and goes on answering.
pub(super) async fn readyz(State(app): State<App>) -> (StatusCode, &'static str) {
    let phase = app.phase();
    let status = if phase == Phase::Ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, phase.name())
}

/// Prometheus text.
pub(super) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], app.metrics.text())
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    version: &'static str,
    phase: Phase,
    device: &'static str,
    /// Why it is not the one that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    device_obstacle: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_resident: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<StatusLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_keys: Option<usize>,
    phases: Times,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusLimits {
    context_length: usize,
    max_sequences: usize,
}

/// What the operator reads while a pod is not ready.
pub(super) async fn status(State(app): State<App>) -> Json<Status> {
    let facts = app.facts();
    Json(Status {
        version: env!("CARGO_PKG_VERSION"),
        phase: app.phase(),
        device: app.device.place.device().name(),
        device_obstacle: app.device.obstacle.clone(),
        dtype: facts.map(|facts| facts.main_type.clone()),
        bytes_resident: facts.map(|facts| facts.bytes_resident),
        limits: facts.map(|facts| StatusLimits {
            context_length: facts.limits.context_length,
            max_sequences: facts.limits.sequences,
        }),
        api_keys: app.keys.as_ref().map(|keys| keys.count()),
        phases: app.times(),
        error: app.failure(),
    })
}
