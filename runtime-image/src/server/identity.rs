//! Each answer carries the number of its request: the client's own, or a new one.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use uuid::Uuid;

/// Bytes of a client's own number.
const LONGEST: usize = 128;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Puts `x-request-id` on the answer.
pub(super) async fn identify(request: Request, next: Next) -> Response {
    let own = request.headers().get(HEADER).filter(|value| {
        let bytes = value.as_bytes();
        (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    let id = own
        .cloned()
        .or_else(|| HeaderValue::from_str(&format!("req_{}", Uuid::new_v4().simple())).ok());
    let mut response = next.run(request).await;
    if let Some(id) = id {
        response.headers_mut().insert(HEADER, id);
    }
    response
}
