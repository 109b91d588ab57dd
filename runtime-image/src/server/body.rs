//! A request's body: its limits, and JSON to a wire type with the path to what is wrong.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::App;
use super::error::ApiError;

/// Bytes of a request's body: a prompt of a million tokens has about five million.
pub const LARGEST_BODY: usize = 16 << 20;

/// Seconds that a body may take to arrive, however it trickles.
const BODY_SECONDS: u64 = 60;

/// The wire type that a body holds, and its share of the bytes that all bodies may take; dropped when the texts are.
pub struct Wire<T>(pub T, pub Share);

/// Bytes of the budget of all bodies together; given back when dropped.
pub struct Share(OwnedSemaphorePermit);

impl Share {
    fn none(budget: &Arc<Semaphore>) -> Result<Self, ApiError> {
        Self::of(budget, 0)
    }

    fn of(budget: &Arc<Semaphore>, bytes: usize) -> Result<Self, ApiError> {
        let bytes = u32::try_from(bytes).map_err(|_| ApiError::BodiesFull)?;
        Arc::clone(budget)
            .try_acquire_many_owned(bytes)
            .map(Self)
            .map_err(|_| ApiError::BodiesFull)
    }

    /// Takes more of the same budget, for what the request has the server fetch.
    pub(super) fn grow(&mut self, budget: &Arc<Semaphore>, bytes: usize) -> Result<(), ApiError> {
        self.0.merge(Self::of(budget, bytes)?.0);
        Ok(())
    }
}

impl<T: DeserializeOwned> FromRequest<App> for Wire<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        check_content_type(&request)?;
        let declared = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|declared: u64| declared > LARGEST_BODY as u64) {
            return Err(ApiError::TooLarge(LARGEST_BODY));
        }
        let read = read(request.into_body(), &app.body_budget);
        let (bytes, share) = timeout(Duration::from_secs(BODY_SECONDS), read)
            .await
            .map_err(|_| ApiError::SlowBody(BODY_SECONDS))??;
        Ok(Self(parse(&bytes)?, share))
    }
}

/// Takes a body's bytes as they come, each out of the budget; so a length that is only declared takes nothing.
async fn read(body: Body, budget: &Arc<Semaphore>) -> Result<(Vec<u8>, Share), ApiError> {
    let mut body = Limited::new(body, LARGEST_BODY);
    let (mut bytes, mut share) = (Vec::new(), Share::none(budget)?);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ApiError::TooLarge(LARGEST_BODY)
            } else {
                ApiError::BrokenBody(error.to_string())
            }
        })?;
        // Trailers say nothing here.
        if let Ok(data) = frame.into_data() {
            share.grow(budget, data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
    Ok((bytes, share))
}

/// Takes `application/json` with any parameters.
fn check_content_type(request: &Request) -> Result<(), ApiError> {
    let value = request.headers().get(header::CONTENT_TYPE);
    let text = value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let shown: String = if text.is_empty() {
        "missing".to_owned()
    } else {
        text.chars().take(100).collect()
    };
    Err(ApiError::ContentType(shown))
}

/// JSON to a wire type. Nesting is limited by the parser (128 levels).
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() {
            let path = if path == "." {
                missing_field(&inner.to_string())
            } else {
                Some(path)
            };
            let place = path.as_deref().unwrap_or("the request");
            ApiError::Json {
                message: format!("{place}: {inner}"),
                path: path.or_else(|| Some(String::new())),
            }
        } else {
            ApiError::Json {
                message: format!("the request's body is no valid JSON: {inner}"),
                path: None,
            }
        }
    })?;
    deserializer.end().map_err(|error| ApiError::Json {
        message: format!("the request's body is no valid JSON: {error}"),
        path: None,
    })?;
    Ok(value)
}

/// The name in a message like "missing field `model`".
fn missing_field(message: &str) -> Option<String> {
    let rest = message.strip_prefix("missing field `")?;
    rest.split('`').next().map(str::to_owned)
}
