//! One error type, one body, one table of statuses.

use std::any::Any;

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

use crate::engine::{Interrupted, Overloaded, SampleError, Stopped};
use crate::grammar::{ConstraintError, GrammarError};
use crate::openai::error::{ErrorBody, ErrorObject};
use crate::openai::options::InvalidField;
use crate::prompt::PromptError;
use crate::request::PromptTooLong;
use crate::tokenizer::EncodeError;

/// Seconds after which a client may try again.
const RETRY_AFTER: &str = "1";

/// Why a request is not answered as it wished.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// A field is wrong.
    #[error("{}", .0.message)]
    Field(InvalidField),
    /// The body is no such JSON; the path leads to the place.
    #[error("{message}")]
    Json {
        /// What is wrong.
        message: String,
        /// Where, if it is a field.
        path: Option<String>,
    },
    /// Too many bytes.
    #[error("the request's body has more than {0} bytes")]
    TooLarge(usize),
    /// The body did not come.
    #[error("the request's body did not arrive within {0} seconds")]
    SlowBody(u64),
    /// The body broke off.
    #[error("the request's body could not be read: {0}")]
    BrokenBody(String),
    /// No room for one more body.
    #[error("this server holds as many bytes of requests as it takes; try again later")]
    BodiesFull,
    /// No room for one more picture.
    #[error("this server holds as many pictures as it takes; try again later")]
    PicturesFull,
    /// No key, or none of this server's.
    #[error(
        "this server answers only with one of its API keys: send the header Authorization: Bearer KEY"
    )]
    Unauthorized,
    /// Another kind of body.
    #[error("the content type is {0}, expected application/json")]
    ContentType(String),
    /// No such model here.
    #[error("the model {asked:?} does not exist; this server has {known}")]
    UnknownModel {
        /// What was asked for.
        asked: String,
        /// Served names.
        known: String,
    },
    /// The prompt leaves no room.
    #[error(transparent)]
    PromptTooLong(#[from] PromptTooLong),
    /// Messages that the template does not take.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The answer cannot be kept in its form.
    #[error(transparent)]
    Constraint(ConstraintError),
    /// Text that cannot be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A model without a chat template.
    #[error("this model has no chat template; use /v1/completions")]
    NoTemplate,
    /// All places taken.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    /// The time is over.
    #[error("the request took longer than the {0} seconds that this server allows")]
    TimedOut(u64),
    /// Not loaded yet, or going away.
    #[error("{0}")]
    Unavailable(String),
    /// No such route.
    #[error("unknown request URL: {0} {1}")]
    NoRoute(Method, String),
    /// The route takes another method.
    #[error("method {0} is not allowed for {1}")]
    WrongMethod(Method, String),
    /// A fault of this program.
    #[error("the server failed to answer: {0}")]
    Internal(String),
}

impl From<InvalidField> for ApiError {
    fn from(field: InvalidField) -> Self {
        Self::Field(field)
    }
}

impl ApiError {
    /// A form of the answer that cannot be used, and the field that asked for it.
    pub(super) fn form(field: &'static str, error: &GrammarError) -> Self {
        Self::Field(InvalidField::new(field, format!("{field}: {error}")))
    }
}

impl From<Stopped> for ApiError {
    fn from(stopped: Stopped) -> Self {
        Self::Internal(stopped.to_string())
    }
}

impl From<Interrupted> for ApiError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Sample(SampleError::Constraint(error)) => Self::Constraint(error),
            other => Self::Internal(other.to_string()),
        }
    }
}

impl ApiError {
    /// Status, class and code.
    fn table(&self) -> (StatusCode, &'static str, Option<&'static str>) {
        const INVALID: &str = "invalid_request_error";
        match self {
            Self::Field(_)
            | Self::Prompt(_)
            | Self::Constraint(_)
            | Self::Encode(_)
            | Self::NoTemplate => (StatusCode::BAD_REQUEST, INVALID, Some("invalid_value")),
            Self::Json { path, .. } => {
                let code = if path.is_some() {
                    "invalid_type"
                } else {
                    "invalid_json"
                };
                (StatusCode::BAD_REQUEST, INVALID, Some(code))
            }
            Self::BrokenBody(_) => (StatusCode::BAD_REQUEST, INVALID, Some("body_incomplete")),
            Self::TooLarge(_) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                INVALID,
                Some("body_too_large"),
            ),
            Self::SlowBody(_) => (StatusCode::REQUEST_TIMEOUT, INVALID, Some("body_timeout")),
            Self::ContentType(_) => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                INVALID,
                Some("unsupported_media_type"),
            ),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, INVALID, Some("model_not_found")),
            Self::PromptTooLong(_) => (
                StatusCode::BAD_REQUEST,
                INVALID,
                Some("context_length_exceeded"),
            ),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, INVALID, Some("invalid_api_key")),
            Self::Overloaded(_) | Self::BodiesFull | Self::PicturesFull => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("overloaded"),
            ),
            Self::TimedOut(_) => (
                StatusCode::GATEWAY_TIMEOUT,
                "timeout_error",
                Some("request_timeout"),
            ),
            Self::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "server_error",
                Some("unavailable"),
            ),
            Self::NoRoute(..) => (StatusCode::NOT_FOUND, INVALID, Some("unknown_url")),
            Self::WrongMethod(..) => (
                StatusCode::METHOD_NOT_ALLOWED,
                INVALID,
                Some("method_not_allowed"),
            ),
            Self::Internal(_) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "server_error",
                Some("internal_error"),
            ),
        }
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Field(field) => Some(field.field.to_owned()),
            Self::Json { path, .. } => path.clone(),
            Self::UnknownModel { .. } => Some("model".to_owned()),
            Self::PromptTooLong(_) | Self::Prompt(_) => Some("messages".to_owned()),
            _ => None,
        }
    }

    /// The body, also for events of a stream that has begun.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        let (_, kind, code) = self.table();
        ErrorBody {
            error: ErrorObject {
                message: self.to_string(),
                kind,
                param: self.param(),
                code,
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, ..) = self.table();
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %self, "failed to answer a request");
        }
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if matches!(self, Self::Unauthorized) {
            let scheme = HeaderValue::from_static("Bearer");
            headers.insert(header::WWW_AUTHENTICATE, scheme);
        }
        if matches!(
            self,
            Self::Overloaded(_) | Self::BodiesFull | Self::Unavailable(_)
        ) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        // What is left of such a body would be read as the next request.
        if matches!(
            self,
            Self::TooLarge(_) | Self::SlowBody(_) | Self::BrokenBody(_) | Self::BodiesFull
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Answers requests to unknown paths.
pub(super) async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::NoRoute(method, shortened(uri.path()))
}

/// Answers requests with a method that the path does not take.
pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::WrongMethod(method, shortened(uri.path()))
}

fn shortened(path: &str) -> String {
    path.chars().take(200).collect()
}

/// Answers requests whose handler panicked.
pub(super) fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response<Body> {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(
        panic = text.unwrap_or("without a message"),
        "a request's handler panicked"
    );
    ApiError::Internal("internal fault".to_owned()).into_response()
}
