//! `/v1/models`, and what else the server tells of itself.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::Value;

use super::App;
use super::error::ApiError;
use crate::openai::description::document;
use crate::openai::{ModelList, ModelObject};

fn objects(app: &App) -> Result<Vec<ModelObject>, ApiError> {
    let max_model_len = app.service()?.engine.limits().context_length;
    let object = |name: &String| ModelObject {
        id: name.clone(),
        object: "model",
        created: app.started,
        owned_by: "chandler",
        max_model_len,
    };
    Ok(app.served_names.iter().map(object).collect())
}

/// All served names.
pub(super) async fn list(State(app): State<App>) -> Result<Json<ModelList>, ApiError> {
    Ok(Json(ModelList {
        object: "list",
        data: objects(&app)?,
    }))
}

/// One served name; names with slashes are taken as they are.
pub(super) async fn one(
    State(app): State<App>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelObject>, ApiError> {
    // A path that is no text names no model.
    let Path(name) = name.map_err(|_| unknown(&app, "\u{fffd}"))?;
    check_model(&app, &name)?;
    objects(&app)?
        .into_iter()
        .find(|object| object.id == name)
        .map(Json)
        .ok_or_else(|| unknown(&app, &name))
}

/// The OpenAPI document of this server.
pub(super) async fn description(State(app): State<App>) -> Json<Value> {
    Json(document(&app.served_names, app.keys.is_some()))
}

/// Refuses a model that is not served.
pub(super) fn check_model(app: &App, asked: &str) -> Result<(), ApiError> {
    if app.served_names.iter().any(|name| name == asked) {
        Ok(())
    } else {
        Err(unknown(app, asked))
    }
}

fn unknown(app: &App, asked: &str) -> ApiError {
    ApiError::UnknownModel {
        asked: asked.chars().take(200).collect(),
        known: app.served_names.join(", "),
    }
}
