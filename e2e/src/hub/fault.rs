//! Faults: which requests they spoil and how. Also the log, because both see every request.
//!
//! The first fault of the list that matches and is not used up is applied; the others wait.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Hub, LoggedRequest, Site, lock};

/// What has been sent before a cut is given this long to leave the machine, so that the client really receives it.
const FLUSH_BEFORE_CUT: Duration = Duration::from_millis(50);

/// A throttled answer is sent in so many pieces a second.
const PIECES_PER_SECOND: u64 = 20;

/// Which requests to spoil, how often, and how. An absent condition holds for every request.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Fault {
    /// `ORG/NAME`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Only the hub or only the CDN.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub site: Option<Site>,
    /// `GET` or `HEAD`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// A part of the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// So many matching requests pass unharmed first.
    pub skip: u32,
    /// Then so many are spoiled; absent: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// What happens to them.
    pub then: Effect,
}

/// What happens to a request. Several effects may stand together.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Effect {
    /// Answer with this status instead of asking the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Headers of that answer, or added to the hub's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The body of that answer.
    pub body: String,
    /// Answer with 302 to this address instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<String>,
    /// Wait so long before anything is answered.
    pub delay_milliseconds: u64,
    /// Send the body no faster than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// End the connection after so many bytes of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_after_bytes: Option<u64>,
    /// End the connection after this part of the body, 0 to 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_after_percent: Option<u64>,
    /// Turn over the bits of these bytes of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong_bytes: Option<Range<u64>>,
    /// Answer a Range request with 200 and everything.
    pub ignore_range: bool,
    /// Announce so many bytes more, or fewer, than there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length_off_by: Option<i64>,
}

impl Fault {
    fn matches(&self, asked: &LoggedRequest) -> bool {
        let repository = self
            .repository
            .as_ref()
            .is_none_or(|wanted| asked.repository.as_ref() == Some(wanted));
        let site = self.site.is_none_or(|wanted| asked.site == wanted);
        let method = self
            .method
            .as_ref()
            .is_none_or(|wanted| asked.method.eq_ignore_ascii_case(wanted));
        let path = self
            .path
            .as_ref()
            .is_none_or(|wanted| asked.path.contains(wanted));
        repository && site && method && path
    }

    /// Counts the request and tells whether it is one to spoil.
    fn strikes(&mut self) -> bool {
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        match &mut self.times {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }
}

/// Runs around every route: finds the fault, lets the hub answer, spoils the answer, writes the log.
pub(crate) async fn layer(
    State((site, hub)): State<(Site, Arc<Hub>)>,
    mut request: Request,
    next: Next,
) -> Response {
    if request.uri().path().starts_with("/_") {
        return next.run(request).await;
    }
    let mut entry = log_entry(site, &request);
    let effect = pick(&hub, &entry);
    entry.fault = effect.is_some();
    let Some(effect) = effect else {
        let response = next.run(request).await;
        entry.status = response.status().as_u16();
        hub.record(entry);
        return response;
    };
    tokio::time::sleep(Duration::from_millis(effect.delay_milliseconds)).await;
    if effect.ignore_range {
        request.headers_mut().remove(header::RANGE);
    }
    let is_head = request.method() == Method::HEAD;
    let mut response = match instead(&effect) {
        Some(response) => response,
        None => next.run(request).await,
    };
    add_headers(response.headers_mut(), &effect.headers);
    if !is_head {
        response = spoil(response, &effect);
    }
    entry.status = response.status().as_u16();
    hub.record(entry);
    response
}

fn pick(hub: &Hub, asked: &LoggedRequest) -> Option<Effect> {
    lock(&hub.faults)
        .iter_mut()
        .find_map(|fault| (fault.matches(asked) && fault.strikes()).then(|| fault.then.clone()))
}

fn log_entry(site: Site, request: &Request) -> LoggedRequest {
    let header = |name: HeaderName| {
        request
            .headers()
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let path = request.uri().path();
    LoggedRequest {
        site,
        host: header(header::HOST).unwrap_or_default(),
        method: request.method().to_string(),
        path: path.to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        repository: repository_in(path),
        range: header(header::RANGE),
        authorization: request.headers().contains_key(header::AUTHORIZATION),
        status: 0,
        fault: false,
    }
}

/// `ORG/NAME` of every kind of path that the two sites serve.
fn repository_in(path: &str) -> Option<String> {
    let rest = [
        "/api/models/",
        "/api/resolve-cache/models/",
        "/api/v1/models/",
        "/repos/",
        "/",
    ]
    .iter()
    .find_map(|prefix| path.strip_prefix(prefix))?;
    let mut parts = rest.split('/');
    Some(format!("{}/{}", parts.next()?, parts.next()?))
}

/// The answer that stands in for the hub's own, if the effect has one.
fn instead(effect: &Effect) -> Option<Response> {
    let mut response = Response::new(Body::from(effect.body.clone()));
    if let Some(target) = &effect.redirect {
        *response.status_mut() = StatusCode::FOUND;
        let location = HeaderValue::from_str(target).ok()?;
        response.headers_mut().insert(header::LOCATION, location);
        return Some(response);
    }
    *response.status_mut() = StatusCode::from_u16(effect.status?).ok()?;
    Some(response)
}

fn add_headers(headers: &mut HeaderMap, added: &BTreeMap<String, String>) {
    for (name, value) in added {
        if let (Ok(name), Ok(value)) = (
            HeaderName::from_bytes(name.as_bytes()),
            HeaderValue::from_str(value),
        ) {
            headers.insert(name, value);
        }
    }
}

/// How a body is cut, slowed and falsified while it streams.
struct Spoiler {
    body: axum::body::BodyDataStream,
    /// Bytes of the body that have passed.
    sent: u64,
    cut_after: Option<u64>,
    wrong: Range<u64>,
    bytes_per_second: Option<u64>,
    started: Instant,
    /// Received from the hub, not sent yet.
    held: Bytes,
}

fn spoil(response: Response, effect: &Effect) -> Response {
    let (mut parts, body) = response.into_parts();
    let length: Option<u64> = parts
        .headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    if let (Some(length), Some(off_by)) = (length, effect.length_off_by) {
        let announced = length.saturating_add_signed(off_by);
        parts
            .headers
            .insert(header::CONTENT_LENGTH, announced.into());
        // What comes after the announced end is no answer to the next request.
        parts
            .headers
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // Redirects pass whole: a cut at so many percent is meant for the file.
    let cut_after = match (effect.cut_after_bytes, effect.cut_after_percent, length) {
        _ if !parts.status.is_success() => None,
        (Some(bytes), _, _) => Some(bytes),
        (None, Some(percent), Some(length)) => Some(length * percent.min(100) / 100),
        // More was announced than there is.
        (None, None, Some(length)) if effect.length_off_by > Some(0) => Some(length),
        _ => None,
    };
    let spoiler = Spoiler {
        body: body.into_data_stream(),
        sent: 0,
        cut_after,
        wrong: effect.wrong_bytes.clone().unwrap_or(0..0),
        bytes_per_second: effect.bytes_per_second,
        started: Instant::now(),
        held: Bytes::new(),
    };
    let spoiled = stream::unfold(Some(spoiler), |state| async move {
        let mut spoiler = state?;
        match spoiler.piece().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(spoiler))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Response::from_parts(parts, Body::from_stream(spoiled))
}

impl Spoiler {
    async fn piece(&mut self) -> io::Result<Option<Bytes>> {
        if self.cut_after.is_some_and(|end| self.sent >= end) {
            tokio::time::sleep(FLUSH_BEFORE_CUT).await;
            return Err(io::Error::other("cut by a fault"));
        }
        while self.held.is_empty() {
            match self.body.next().await {
                Some(chunk) => self.held = chunk.map_err(io::Error::other)?,
                None => return Ok(None),
            }
        }
        let mut size = self.held.len() as u64;
        if let Some(rate) = self.bytes_per_second {
            size = size.min((rate / PIECES_PER_SECOND).max(1));
            let due = Duration::from_secs_f64(self.sent as f64 / rate.max(1) as f64);
            tokio::time::sleep_until(self.started + due).await;
        }
        if let Some(cut_after) = self.cut_after {
            size = size.min(cut_after - self.sent);
        }
        let size = usize::try_from(size).map_err(io::Error::other)?;
        let piece = self.held.split_to(size);
        let piece = self.falsified(piece);
        self.sent += piece.len() as u64;
        Ok(Some(piece))
    }

    fn falsified(&self, piece: Bytes) -> Bytes {
        let end = self.sent + piece.len() as u64;
        if self.wrong.start >= end || self.wrong.end <= self.sent {
            return piece;
        }
        let bytes = piece.iter().zip(self.sent..).map(|(byte, position)| {
            if self.wrong.contains(&position) {
                !byte
            } else {
                *byte
            }
        });
        bytes.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_lets_some_pass_and_is_used_up() {
        let mut fault = Fault {
            skip: 1,
            times: Some(2),
            ..Fault::default()
        };
        let strikes: Vec<bool> = (0..5).map(|_| fault.strikes()).collect();
        assert_eq!(strikes, [false, true, true, false, false]);
    }

    #[test]
    fn the_repository_is_found_in_every_kind_of_path() {
        for path in [
            "/api/models/org/name/revision/main",
            "/api/models/org/name",
            "/api/resolve-cache/models/org/name/abc/config.json",
            "/org/name/resolve/main/config.json",
            "/repos/org/name/abc",
            "/api/v1/models/org/name/repo",
        ] {
            assert_eq!(repository_in(path).as_deref(), Some("org/name"), "{path}");
        }
    }
}
