//! A request's body: its limits, and JSON to a wire type with the path to what is wrong.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// Bytes of a request's body: a prompt of a million tokens has about five million.
pub const LARGEST_BODY: usize = 16 << 20;

/// Seconds that a body may take to arrive.
const BODY_SECONDS: u64 = 60;

/// The wire type that a body holds.
pub struct Wire<T>(pub T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Wire<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        check_content_type(&request)?;
        let declared = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        if declared.is_some_and(|declared: u64| declared > LARGEST_BODY as u64) {
            return Err(ApiError::TooLarge(LARGEST_BODY));
        }
        let body = Limited::new(request.into_body(), LARGEST_BODY);
        let bytes =
            match tokio::time::timeout(Duration::from_secs(BODY_SECONDS), body.collect()).await {
                Err(_) => return Err(ApiError::SlowBody(BODY_SECONDS)),
                Ok(Err(error)) if error.is::<LengthLimitError>() => {
                    return Err(ApiError::TooLarge(LARGEST_BODY));
                }
                Ok(Err(error)) => return Err(ApiError::BrokenBody(error.to_string())),
                Ok(Ok(body)) => body.to_bytes(),
            };
        parse(&bytes).map(Self)
    }
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
fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, ApiError> {
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
