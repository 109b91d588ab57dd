//! Pictures that a request names by an `https:` URL: whether one is fetched, and how. `serve` fetches none unless it is told hosts.
//!
//! A URL is parsed once, and what was checked is what is fetched; every redirect passes the same check.
//! Names become addresses in one place, where the connection is made, and private ones are left out there:
//! a name cannot mean one address when it is checked and another one when it is used.
//! No proxy is asked, since it would look names up by itself. Nothing is sent along but the URL.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, HeaderValue, LOCATION};
use reqwest::{Response, redirect};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use crate::addresses::is_public;
use crate::hub::client::trusted_roots;

/// Redirects that one picture may take.
const REDIRECT_LIMIT: usize = 3;

/// Time for a connection, its encryption included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A host that pictures may be fetched from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureHost {
    /// As URLs have it: lower case, without what is not ASCII.
    name: String,
    port: u16,
}

impl FromStr for PictureHost {
    type Err = String;

    /// Reads `NAME` or `NAME:PORT`, by the parser that reads the URLs.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "{text:?} is no host that pictures are fetched from; expected a name such as images.example.com, with a port where it is not 443"
            )
        };
        let is_whole = |letter: char| letter.is_alphanumeric() || "-._:".contains(letter);
        let url = Url::parse(&format!("https://{text}/")).map_err(|_| refused())?;
        match url.host() {
            Some(Host::Domain(name)) if text.chars().all(is_whole) => Ok(Self {
                name: name.to_owned(),
                port: url.port_or_known_default().ok_or_else(refused)?,
            }),
            // An address has no name that its owner could keep.
            _ => Err(refused()),
        }
    }
}

/// Why a picture is not fetched. Fixed texts: nothing that a host says reaches a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Another scheme, or no URL.
    #[error("expected a data: or an https: URL")]
    Scheme,
    /// Another host or port, an address, or a URL with a user.
    #[error("its host is none of those that this server fetches pictures from")]
    Host,
    /// A redirect to such a place, or one too many.
    #[error("it leads to a place that this server does not fetch pictures from")]
    Redirect,
    /// No address that may be connected to, no connection, or one that broke off.
    #[error("its host cannot be reached")]
    Unreachable,
    /// An answer without a picture.
    #[error("its host answered with status {0}")]
    Status(u16),
    /// Time is over.
    #[error("it did not arrive in time")]
    Slow,
    /// More bytes than the request may still take.
    #[error("it is too large: the pictures of one request may have {0} bytes together")]
    TooLarge(usize),
    /// Other requests hold too many bytes.
    #[error("this server holds as many bytes of requests as it takes")]
    Full,
}

/// What lies between a name and a connection. A test plays one; the program has [`System`] alone.
pub trait Network: std::fmt::Debug + Send + Sync {
    /// All addresses of a name, in the order in which they are tried.
    fn look_up(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;

    /// Whether pictures may come from there.
    fn permits(&self, address: IpAddr) -> bool {
        is_public(address)
    }

    /// Whose certificates are trusted.
    fn roots(&self) -> RootCertStore;
}

/// The system's resolver and certificates.
#[derive(Debug)]
pub struct System;

impl Network for System {
    fn look_up(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let name = name.to_owned();
        async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        }
        .boxed()
    }

    fn roots(&self) -> RootCertStore {
        // Without a bundle nothing can be wrong with it.
        trusted_roots(None).unwrap_or_else(|_| RootCertStore::empty())
    }
}

/// Leaves out what may not be connected to. The HTTP client has no other way to an address.
struct Checked(Arc<dyn Network>);

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let network = Arc::clone(&self.0);
        Box::pin(async move {
            let mut found = network.look_up(name.as_str()).await?;
            found.retain(|address| network.permits(*address));
            if found.is_empty() {
                return Err(io::Error::other("the name has no public address").into());
            }
            // The port is the caller's business.
            let found = found.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(found) as Addrs)
        })
    }
}

/// Which hosts pictures are fetched from, and the way to them.
#[derive(Debug)]
pub struct PictureHosts {
    hosts: Vec<PictureHost>,
    http: reqwest::Client,
}

impl PictureHosts {
    /// Fetches from these hosts alone. Reads the certificates, so it takes a moment.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(hosts: Vec<PictureHost>, network: Arc<dyn Network>) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(network.roots())
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .dns_resolver(Arc::new(Checked(network)))
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("chandler-runtime/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(io::Error::other)?;
        Ok(Self { hosts, http })
    }

    /// A URL that may be fetched.
    ///
    /// # Errors
    /// When it is none.
    pub fn check(&self, text: &str) -> Result<Url, FetchError> {
        let url = Url::parse(text).map_err(|_| FetchError::Scheme)?;
        if url.scheme() != "https" {
            return Err(FetchError::Scheme);
        }
        if self.offers(&url) {
            Ok(url)
        } else {
            Err(FetchError::Host)
        }
    }

    fn offers(&self, url: &Url) -> bool {
        let Some(Host::Domain(name)) = url.host() else {
            return false;
        };
        let port = url.port_or_known_default();
        let mut hosts = self.hosts.iter();
        let is_listed = hosts.any(|host| host.name == name && Some(host.port) == port);
        let names_a_user = !url.username().is_empty() || url.password().is_some();
        url.scheme() == "https" && is_listed && !names_a_user
    }

    /// The bytes at a URL, whatever they are. `take` is told of each piece before it is kept.
    ///
    /// # Errors
    /// When the URL may not be fetched, no answer with status 200 comes in time, or `take` refuses.
    pub async fn fetch(
        &self,
        url: &str,
        deadline: Instant,
        mut take: impl FnMut(usize) -> Result<(), FetchError>,
    ) -> Result<Vec<u8>, FetchError> {
        let fetch = async {
            let mut response = self.follow(self.check(url)?).await?;
            let mut bytes = Vec::new();
            // A length that is only declared counts for nothing.
            while let Some(piece) = response.chunk().await.map_err(unreachable)? {
                take(piece.len())?;
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes)
        };
        timeout_at(deadline, fetch)
            .await
            .map_err(|_| FetchError::Slow)?
    }

    /// The answer at the end of all redirects.
    async fn follow(&self, mut url: Url) -> Result<Response, FetchError> {
        for _ in 0..=REDIRECT_LIMIT {
            let request = self.http.get(url.clone()).header(
                ACCEPT,
                HeaderValue::from_static("image/png, image/jpeg, image/webp, image/gif"),
            );
            let response = request.send().await.map_err(unreachable)?;
            let status = response.status();
            if status == reqwest::StatusCode::OK {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION);
            let Some(location) = location.filter(|_| status.is_redirection()) else {
                return Err(FetchError::Status(status.as_u16()));
            };
            let next = location.to_str().ok().and_then(|to| url.join(to).ok());
            url = next
                .filter(|next| self.offers(next))
                .ok_or(FetchError::Redirect)?;
        }
        Err(FetchError::Redirect)
    }
}

/// What happened stays in the log, without the URL, whose query may be a secret.
fn unreachable(error: reqwest::Error) -> FetchError {
    let error = error.without_url();
    tracing::debug!(
        error = crate::hub::error::cause_of(&error),
        "a picture could not be fetched"
    );
    FetchError::Unreachable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts() -> PictureHosts {
        let hosts = [
            "images.example.com",
            "Bücher.example:8443",
            "odd_name.example.",
        ];
        let hosts = hosts.map(|host| host.parse().unwrap()).to_vec();
        PictureHosts::new(hosts, Arc::new(System)).unwrap()
    }

    #[test]
    fn hosts_are_names_with_or_without_a_port() {
        let host: PictureHost = "IMAGES.Example.com".parse().unwrap();
        assert_eq!((host.name.as_str(), host.port), ("images.example.com", 443));
        for text in [
            "",
            "*",
            "*.example.com",
            "https://images.example.com",
            "images.example.com/",
            "images.example.com/a",
            "user@images.example.com",
            "images.example.com:0x1",
            "images.example.com:70000",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "[::1]",
            "a b",
            "a\\b",
            "a%2fb",
            "a\tb",
        ] {
            assert!(text.parse::<PictureHost>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_url_is_checked_as_it_is_fetched() {
        let hosts = hosts();
        for (text, fetched) in [
            (
                "https://images.example.com/a.png",
                "https://images.example.com/a.png",
            ),
            (
                "HTTPS://IMAGES.EXAMPLE.COM:443/a",
                "https://images.example.com/a",
            ),
            ("https:images.example.com", "https://images.example.com/"),
            (
                "https:\\\\images.example.com\\@127.0.0.1/",
                "https://images.example.com/@127.0.0.1/",
            ),
            (
                "https://images%2Eexample.com/",
                "https://images.example.com/",
            ),
            (
                " https://ima\nges.example.com/",
                "https://images.example.com/",
            ),
            (
                "https://bücher.example:8443/",
                "https://xn--bcher-kva.example:8443/",
            ),
            ("https://odd_name.example./", "https://odd_name.example./"),
        ] {
            assert_eq!(hosts.check(text).unwrap().as_str(), fetched, "{text:?}");
        }
        for text in [
            "https://images.example.com:8443/",
            "https://images.example.com./",
            "https://other.example.com/",
            "https://images.example.com.evil.test/",
            "https://images.example.com@evil.test/",
            "https://user@images.example.com/",
            "https://:secret@images.example.com/",
            "https://evil.test\\@images.example.com/",
            "https://evil.test/@images.example.com",
            "https://evil.test#@images.example.com/",
            "https://169.254.169.254/latest/meta-data",
            "https://2852039166/",
            "https://0xa9fea9fe/",
            "https://[::ffff:169.254.169.254]/",
            "https://[fd00:ec2::254]/",
            "https://localhost/",
            "https://bücher.example/",
        ] {
            assert_eq!(hosts.check(text), Err(FetchError::Host), "{text:?}");
        }
        for text in [
            "",
            "images.example.com",
            "//images.example.com/",
            "http://images.example.com/",
            "ftp://images.example.com/",
            "file:///etc/passwd",
            "https://",
            "javascript:alert(1)",
        ] {
            assert_eq!(hosts.check(text), Err(FetchError::Scheme), "{text:?}");
        }
    }
}
