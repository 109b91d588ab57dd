//! HTTP as a hub's reader needs it: bounded redirects of our own, bounded bodies, time-outs, proxies, extra certificates.
//!
//! The one rule that nothing may break: the token goes to the hub's own scheme, host and port, and to nothing else.
//! Redirects are followed here and not by the HTTP library, so that this rule stands in one place.

use std::sync::Arc;

use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, COOKIE, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use url::Url;

use super::error::{HubError, cause_of};
use super::neighbourhood::Neighbourhood;
use super::token::Token;
use super::{CONNECT_TIMEOUT, READ_TIMEOUT};

/// The real hub needs two or three; a loop is cut here.
const REDIRECT_LIMIT: usize = 8;

/// Sends requests to one hub.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    hub: Url,
    token: Option<Token>,
    /// The cookie that carries the token as well, for hubs whose older addresses read no header.
    session_cookie: Option<&'static str>,
    neighbourhood: Neighbourhood,
}

/// How far to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// To wherever the bytes are.
    Everywhere,
    /// Only as long as the hub itself answers: its own redirects carry headers that the content's host does not know.
    WithinHub,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// GET or HEAD.
    pub method: Method,
    /// Where to begin.
    pub url: Url,
    /// The first byte wanted and, where bounded, the last.
    pub range: Option<(u64, Option<u64>)>,
    /// How far to follow redirects.
    pub follow: Follow,
    /// What is being done, for messages: `failed to WHAT`.
    pub what: &'a str,
}

/// The HTTP client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The extra certificates are not PEM.
    #[error(
        "CHANDLER_CA_BUNDLE holds no readable certificate: {0}; write PEM text with BEGIN CERTIFICATE lines"
    )]
    CaBundle(String),
    /// The TLS library refused its settings, or a proxy variable is no address.
    #[error("failed to set up the HTTP client: {0}; check HTTP_PROXY, HTTPS_PROXY and NO_PROXY")]
    Setup(String),
}

impl Client {
    /// A client for the hub at this address. `ca_bundle` is PEM text trusted beside the system's certificates.
    ///
    /// # Errors
    /// When the bundle or the proxy variables cannot be read.
    pub fn new(
        hub: Url,
        token: Option<Token>,
        ca_bundle: Option<&str>,
    ) -> Result<Self, ClientError> {
        let setup = |error: &(dyn std::error::Error + 'static)| ClientError::Setup(cause_of(error));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .with_root_certificates(trusted_roots(ca_bundle)?)
            .with_no_client_auth();
        let neighbourhood = Neighbourhood::of(&hub);
        let http = reqwest::Client::builder()
            .dns_resolver(Arc::new(neighbourhood.clone()))
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("chandler-runtime/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| setup(&error))?;
        if hub.scheme() == "http" && token.is_some() {
            tracing::warn!(hub = %shown(&hub), "the hub's address is not https: the token travels unencrypted");
        }
        Ok(Self {
            http,
            hub,
            token,
            session_cookie: None,
            neighbourhood,
        })
    }

    /// The same, with the token in this cookie too.
    pub fn with_session_cookie(mut self, name: &'static str) -> Self {
        self.session_cookie = Some(name);
        self
    }

    /// Sends a request and follows its redirects. Any status comes back as a response; only the lack of one is an error.
    ///
    /// # Errors
    /// When no answer comes, or redirects lead nowhere.
    pub async fn send(&self, request: Request<'_>) -> Result<Response, HubError> {
        let Request {
            method,
            mut url,
            range,
            follow,
            what,
        } = request;
        for _ in 0..=REDIRECT_LIMIT {
            let mut builder = self.http.request(method.clone(), url.clone());
            // A compressed body would make sizes and ranges meaningless.
            builder = builder.header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(token) = self.token.as_ref().filter(|_| self.is_hub(&url)) {
                builder = builder.header(AUTHORIZATION, token.header());
                if let Some(cookie) = self.session_cookie.and_then(|name| token.cookie(name)) {
                    builder = builder.header(COOKIE, cookie);
                }
            }
            match range {
                Some((first, Some(last))) => {
                    builder = builder.header(RANGE, format!("bytes={first}-{last}"));
                }
                Some((first, None)) => builder = builder.header(RANGE, format!("bytes={first}-")),
                None => {}
            }
            let response = builder
                .send()
                .await
                .map_err(|error| HubError::no_answer(what, &url, &error))?;
            let Some(next) = self.next(&response, &url, what)? else {
                return Ok(response);
            };
            if follow == Follow::WithinHub && !self.is_hub(&next) {
                return Ok(response);
            }
            tracing::debug!(from = %shown(&url), to = %shown(&next), "redirected");
            url = next;
        }
        Err(HubError::Redirect {
            what: what.to_owned(),
            url: shown(&url),
            why: "more than 8 redirects",
        })
    }

    /// Whether an address belongs to the hub itself: only there the token goes.
    pub fn is_hub(&self, url: &Url) -> bool {
        self.hub.scheme() == url.scheme()
            && self.hub.host() == url.host()
            && self.hub.port_or_known_default() == url.port_or_known_default()
    }

    fn next(&self, response: &Response, url: &Url, what: &str) -> Result<Option<Url>, HubError> {
        let redirect = matches!(
            response.status(),
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        );
        if !redirect {
            return Ok(None);
        }
        let refuse = |why| HubError::Redirect {
            what: what.to_owned(),
            url: shown(url),
            why,
        };
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| refuse("a redirect without a usable Location"))?;
        let next = url
            .join(location)
            .map_err(|_| refuse("a redirect without a usable Location"))?;
        match (url.scheme(), next.scheme()) {
            ("https", "http") => Err(refuse("a redirect from https to http")),
            (_, "http" | "https") if next.has_host() => {
                if !self.is_hub(&next) {
                    self.neighbourhood.redirects_to(&next).map_err(refuse)?;
                }
                Ok(Some(next))
            }
            _ => Err(refuse("a redirect to something that is not HTTP")),
        }
    }
}

/// Reads a whole body of at most `limit` bytes.
///
/// # Errors
/// When the body is larger, or cut.
pub async fn read_body(
    mut response: Response,
    limit: usize,
    what: &str,
) -> Result<Vec<u8>, HubError> {
    let too_large = |url: &Url| HubError::TooLarge {
        what: what.to_owned(),
        url: shown(url),
        limit,
    };
    if response
        .content_length()
        .is_some_and(|length| length > limit as u64)
    {
        return Err(too_large(response.url()));
    }
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > limit => {
                return Err(too_large(response.url()));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body),
            Err(error) => return Err(HubError::no_answer(what, response.url(), &error)),
        }
    }
}

/// Reads up to `limit` bytes from the beginning of a body and leaves the rest.
///
/// # Errors
/// When the body is cut before.
pub async fn read_beginning(
    mut response: Response,
    limit: usize,
    what: &str,
) -> Result<Vec<u8>, HubError> {
    let mut body = Vec::new();
    while body.len() < limit {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                body.extend_from_slice(&chunk[..chunk.len().min(limit - body.len())]);
            }
            Ok(None) => break,
            Err(error) => return Err(HubError::no_answer(what, response.url(), &error)),
        }
    }
    Ok(body)
}

/// An address for messages: without query, which may hold a signature, and without user.
pub fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Fails only for addresses that cannot have a user.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}

/// The system's certificates, and those of `ca_bundle` (PEM text).
///
/// # Errors
/// When the bundle holds none that can be read.
pub fn trusted_roots(ca_bundle: Option<&str>) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "a system certificate could not be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(system.certs);
    if ignored > 0 {
        tracing::debug!(
            ignored,
            "system certificates that the TLS library does not take"
        );
    }
    if let Some(bundle) = ca_bundle.filter(|bundle| !bundle.trim().is_empty()) {
        let refuse =
            |error: &(dyn std::error::Error + 'static)| ClientError::CaBundle(cause_of(error));
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots
                .add(certificate.map_err(|error| refuse(&error))?)
                .map_err(|error| refuse(&error))?;
        }
        if roots.len() == before {
            return Err(ClientError::CaBundle("no BEGIN CERTIFICATE line".into()));
        }
    }
    if roots.is_empty() {
        tracing::warn!(
            "no trusted certificates: https will fail; set SSL_CERT_FILE or CHANDLER_CA_BUNDLE"
        );
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_hub_by_scheme_host_and_port() {
        let client = Client::new(
            Url::parse("https://hub.example/mirror").unwrap(),
            None,
            None,
        )
        .unwrap();
        for (url, same) in [
            ("https://hub.example/x", true),
            ("https://HUB.example:443/x", true),
            ("http://hub.example/x", false),
            ("https://hub.example:8443/x", false),
            ("https://cdn.hub.example/x", false),
            ("https://hub.example.evil/x", false),
            ("https://user@hub.example/x", true),
        ] {
            assert_eq!(client.is_hub(&Url::parse(url).unwrap()), same, "{url}");
        }
    }

    #[test]
    fn shows_an_address_without_its_secrets() {
        let url = Url::parse("https://user:pass@cdn.example/a/b?X-Amz-Signature=secret#f").unwrap();
        assert_eq!(shown(&url), "https://cdn.example/a/b");
    }

    #[test]
    fn refuses_a_bundle_without_certificates() {
        let hub = || Url::parse("https://hub.example").unwrap();
        assert!(matches!(
            Client::new(hub(), None, Some("not PEM")),
            Err(ClientError::CaBundle(_))
        ));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            Client::new(hub(), None, Some(broken)),
            Err(ClientError::CaBundle(_))
        ));
        assert!(Client::new(hub(), None, Some("  \n")).is_ok());
    }
}
