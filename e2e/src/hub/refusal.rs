//! What the hub says when it says no: status, `X-Error-Code`, `X-Error-Message` and a body, as the real one words them.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::repository::{Access, Repository, RepositoryId};

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An anonymous caller is never told whether a repository is missing or private.
    Anonymous,
    /// A caller with a token is told that there is none that it may see.
    RepositoryNotFound,
    RevisionNotFound(String),
    EntryNotFound,
    /// Gated, and nobody is signed in.
    GatedAnonymous(RepositoryId),
    /// Gated, and the account has not accepted the licence.
    GatedForbidden(RepositoryId),
    /// The link was not signed by this hub, or is too old.
    LinkExpired,
    RangeNotSatisfiable(u64),
    Broken(String),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::Anonymous => (
                StatusCode::UNAUTHORIZED,
                Some("RepoNotFound"),
                "Invalid username or password.".to_owned(),
            ),
            Self::RepositoryNotFound => (
                StatusCode::NOT_FOUND,
                Some("RepoNotFound"),
                "Repository not found".to_owned(),
            ),
            Self::RevisionNotFound(revision) => (
                StatusCode::NOT_FOUND,
                Some("RevisionNotFound"),
                format!("Invalid rev id: {revision}"),
            ),
            Self::EntryNotFound => (
                StatusCode::NOT_FOUND,
                Some("EntryNotFound"),
                "Entry not found".to_owned(),
            ),
            Self::GatedAnonymous(id) => (
                StatusCode::UNAUTHORIZED,
                Some("GatedRepo"),
                format!(
                    "Access to model {id} is restricted. You must have access to it and be authenticated to access it. Please log in."
                ),
            ),
            Self::GatedForbidden(id) => (
                StatusCode::FORBIDDEN,
                Some("GatedRepo"),
                format!(
                    "Access to model {id} is restricted and you are not in the authorized list. Visit https://huggingface.co/{id} to ask for access."
                ),
            ),
            Self::LinkExpired => {
                let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
                return (
                    StatusCode::FORBIDDEN,
                    [("content-type", "application/xml")],
                    body,
                )
                    .into_response();
            }
            Self::RangeNotSatisfiable(size) => {
                return (
                    StatusCode::RANGE_NOT_SATISFIABLE,
                    [("content-range", format!("bytes */{size}"))],
                )
                    .into_response();
            }
            Self::Broken(message) => (StatusCode::INTERNAL_SERVER_ERROR, None, message),
        };
        let mut response = (status, Json(json!({ "error": message }))).into_response();
        let headers = response.headers_mut();
        if let Some(code) = code {
            headers.insert(
                HeaderName::from_static("x-error-code"),
                HeaderValue::from_static(code),
            );
        }
        if let Ok(message) = HeaderValue::from_str(&message) {
            headers.insert(HeaderName::from_static("x-error-message"), message);
        }
        response
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What the caller wants of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Metadata,
    Contents,
}

/// Whether a caller with this token, if any, gets its wish.
pub(crate) fn check_access(
    id: &RepositoryId,
    repository: Option<&Repository>,
    token: Option<&str>,
    wish: Wish,
) -> Result<(), Refusal> {
    let Some(repository) = repository else {
        return Err(if token.is_some() {
            Refusal::RepositoryNotFound
        } else {
            Refusal::Anonymous
        });
    };
    let settings = &repository.settings;
    let is_member = token.is_some_and(|token| settings.tokens.iter().any(|t| t == token));
    let is_account =
        is_member || token.is_some_and(|token| settings.other_tokens.iter().any(|t| t == token));
    match settings.access {
        Access::Public => Ok(()),
        _ if is_member => Ok(()),
        Access::Private if is_account => Err(Refusal::RepositoryNotFound),
        Access::Private => Err(Refusal::Anonymous),
        Access::Gated if wish == Wish::Metadata => Ok(()),
        Access::Gated if is_account => Err(Refusal::GatedForbidden(id.clone())),
        Access::Gated => Err(Refusal::GatedAnonymous(id.clone())),
    }
}

/// Any other path, as the hub answers it to programs.
pub(crate) async fn no_such_page() -> Response {
    (
        StatusCode::NOT_FOUND,
        Json(json!({ "error": "Sorry, we can't find the page you are looking for." })),
    )
        .into_response()
}
