//! The route tables and their layers, nothing else.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;

pub mod body;
mod chat;
mod completions;
pub mod error;
mod health;
mod identity;
mod keys;
mod lifecycle;
pub mod listen;
mod models;
mod pictures;
mod prepare;
mod respond;
mod responses;
mod tokens;

pub use keys::ApiKeys;
pub use lifecycle::{Facts, Lifecycle, Phase, Service, Sight};

/// What handlers share.
pub type App = Arc<Lifecycle>;

/// The OpenAI API.
pub fn api(app: App) -> Router {
    Router::new()
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/responses", post(responses::responses))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/openapi.json", get(models::description))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::wrong_method)
        .layer(from_fn_with_state(Arc::clone(&app), lifecycle::turn_away))
        .layer(from_fn_with_state(Arc::clone(&app), keys::require))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(from_fn(identity::identify))
        .with_state(app)
}

/// Health, metrics and status.
pub fn management(app: App) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics))
        .route("/status", get(health::status))
        .fallback(error::no_route)
        .method_not_allowed_fallback(error::wrong_method)
        .with_state(app)
}
