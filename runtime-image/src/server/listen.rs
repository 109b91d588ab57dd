//! Connections: accepted with limits, served by hyper, and let go when the process drains.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_io_timeout::TimeoutStream;
use tower::ServiceExt;

use super::error::ApiError;

/// Connections at once on one port; one more is told so.
pub const MOST_CONNECTIONS: u32 = 1_024;

/// Connections at once that are told so; still more are closed unanswered.
const MOST_REFUSALS: usize = 256;

/// Bytes of a request's line and headers together.
const LARGEST_HEAD: usize = 64 << 10;

/// Headers of a request.
const MOST_HEADERS: usize = 100;

/// Time for a request's line and headers to arrive, and for the next request on a kept connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(75);

/// Time in which a client must take some of its answer. One that stops reading would hold its place for ever.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Pause after an accept that failed, for instance for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves at most `most` connections at once until `closing` becomes true; then lets idle ones go at once, those with a
/// running request when it is answered, and returns.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    most: u32,
    mut closing: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(most as usize));
    let refusals = Arc::new(Semaphore::new(MOST_REFUSALS));
    let full = Router::new().fallback(refuse);
    loop {
        let accepted = tokio::select! {
            () = closed(&mut closing) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (router, place) = if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                    (router.clone(), place)
                } else if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                    (full.clone(), place)
                } else {
                    continue;
                };
                // Tokens are small; they must not wait for each other.
                let _ = stream.set_nodelay(true);
                let closing = closing.clone();
                tokio::spawn(async move {
                    connection(stream, router, closing, STALL_TIMEOUT).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "failed to accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    // The semaphore is never closed.
    drop(places.acquire_many(most).await);
}

/// Answers every request of a connection beyond the limit, and ends it.
async fn refuse() -> Response {
    let message = "this server has as many connections as it takes; try again later";
    let mut response = ApiError::Unavailable(message.to_owned()).into_response();
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(header::CONNECTION, close);
    response
}

/// Serves one connection until it ends.
async fn connection<S>(
    stream: S,
    router: Router,
    mut closing: watch::Receiver<bool>,
    stalled: Duration,
) where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(stalled));
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move { router.oneshot(request.map(Body::new)).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(LARGEST_HEAD)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(Box::pin(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let early = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = closed(&mut closing) => None,
    };
    let ended = match early {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Returns when `closing` is true, or when nobody can make it true any more.
async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[tokio::test]
    async fn a_client_that_stops_reading_loses_its_connection() {
        let (mut client, server) = tokio::io::duplex(64);
        let router = Router::new().fallback(|| async { "x".repeat(100_000) });
        let (_open, closing) = watch::channel(false);
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        client.write_all(request).await.expect("takes it");
        // Returns although the client neither reads nor leaves.
        connection(server, router, closing, Duration::from_millis(50)).await;
        drop(client);
    }
}
