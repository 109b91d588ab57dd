//! A runtime that says what it is told to say: for what no real one can show on a machine without a GPU.
//!
//! It serves no model. `PLAYED_DEVICE` is what it claims to compute on, `PLAYED_PHASE` how far it claims to be,
//! `PLAYED_ERROR` the reason for which it claims to have failed.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Serves the management port of a runtime until the process ends.
///
/// # Errors
/// When the port is taken.
pub async fn serve() -> Result<()> {
    let told = |name: &str, usual: &str| std::env::var(name).unwrap_or_else(|_| usual.to_owned());
    let device = told("PLAYED_DEVICE", "cpu");
    let phase = told("PLAYED_PHASE", "Ready");
    let is_ready = phase == "Ready";
    let mut status = json!({ "phase": phase, "device": device, "dtype": "BF16", "bytesResident": 1,
        "phases": { "loadedSeconds": 0.1, "warmSeconds": 0.1 } });
    if let Ok(reason) = std::env::var("PLAYED_ERROR") {
        status["error"] = json!({ "reason": reason, "message": "as it was told to play" });
    }
    let ready = if is_ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/readyz", get(move || async move { ready }))
        .route("/status", get(move || answer(status.clone())));
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8081));
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    axum::serve(listener, router).await?;
    Ok(())
}

async fn answer(status: Value) -> Json<Value> {
    Json(status)
}
