//! Pictures by `https:` URLs: hosts with real TLS on this machine, names that the test plays, and what is never asked.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chandler_runtime::addresses::is_public;
use chandler_runtime::config::Config;
use chandler_runtime::picture_hosts::Network;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use reqwest::StatusCode;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

use crate::server::{Server, config, error_of};
use crate::shown::{answer, asked, file, picture, start_with, text};

/// Where the played host is: the one address of this machine that may be connected to.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An address that counts as any other private one; whoever connects to it is counted.
const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Names in the certificate, all of which the server may fetch from.
const NAMES: [&str; 6] = [
    "pictures.test",
    "other.test",
    "inside.test",
    "mixed.test",
    "rebound.test",
    "nowhere.test",
];

/// How names become addresses: the answers of each in turn, the last one for ever.
#[derive(Debug)]
struct Played {
    names: Mutex<HashMap<&'static str, VecDeque<Vec<IpAddr>>>>,
    root: CertificateDer<'static>,
}

impl Network for Played {
    fn look_up(&self, name: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut names = self.names.lock().unwrap();
        let answers = names.get_mut(name);
        let found = answers.and_then(|answers| match answers.len() {
            1 => answers.front().cloned(),
            _ => answers.pop_front(),
        });
        async move { found.ok_or_else(|| io::Error::other("no such name")) }.boxed()
    }

    fn permits(&self, address: IpAddr) -> bool {
        address == HERE || is_public(address)
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        roots
    }
}

/// A host with TLS, and what it was asked.
struct Site {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    /// Connections to the address that nobody may connect to.
    intruders: Arc<AtomicUsize>,
    network: Arc<Played>,
}

impl Site {
    fn start() -> Self {
        let names = NAMES.map(str::to_owned).to_vec();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let root = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let settings = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![root.clone()], PrivateKeyDer::from(key))
            .unwrap();
        let settings = Arc::new(settings);

        let listener = TcpListener::bind(SocketAddr::new(HERE, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            while let Ok((caller, _)) = listener.accept() {
                let (settings, log) = (Arc::clone(&settings), Arc::clone(&log));
                std::thread::spawn(move || {
                    let connection = ServerConnection::new(settings).unwrap();
                    // Whoever does not trust the certificate or has heard enough goes away.
                    let _ = serve(StreamOwned::new(connection, caller), port, &log);
                });
            }
        });
        let inside = TcpListener::bind(SocketAddr::new(INSIDE, port)).unwrap();
        let intruders = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&intruders);
        std::thread::spawn(move || {
            while inside.accept().is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });

        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let names = [
            ("pictures.test", vec![vec![HERE]]),
            ("other.test", vec![vec![HERE]]),
            // In no certificate, and on no list.
            ("stranger.test", vec![vec![HERE]]),
            ("uncertified.test", vec![vec![HERE]]),
            (
                "inside.test",
                vec![vec![INSIDE, address("169.254.169.254"), address("::1")]],
            ),
            ("mixed.test", vec![vec![INSIDE, HERE]]),
            // What was public when it was asked first.
            ("rebound.test", vec![vec![HERE], vec![INSIDE]]),
        ];
        let names = names.map(|(name, answers)| (name, VecDeque::from(answers)));
        let names = Mutex::new(HashMap::from(names));
        Self {
            port,
            asked,
            intruders,
            network: Arc::new(Played { names, root }),
        }
    }

    /// A server that fetches from this host, within this time.
    async fn server(&self, settings: Config) -> Server {
        let names = NAMES.iter().chain(&["uncertified.test"]);
        let hosts = names.map(|name| format!("{name}:{}", self.port).parse().unwrap());
        start_with(Config {
            picture_hosts: hosts.collect(),
            network: Arc::clone(&self.network) as Arc<dyn Network>,
            ..settings
        })
        .await
    }

    fn url(&self, name: &str, path: &str) -> String {
        format!("https://{name}:{}{path}", self.port)
    }

    /// The paths that were asked for since the last call.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// Answers one request by its path.
fn serve<S: Read + Write>(stream: S, port: u16, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while stream.read_line(&mut head)? > 2 {}
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    log.lock().unwrap().push(head.clone());
    let out = stream.get_mut();
    let mut send = |status: &str, headers: &str, body: &[u8]| {
        let length = body.len();
        write!(
            out,
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
        )?;
        out.write_all(body)?;
        out.flush()
    };
    let mut redirect = |to: &str| send("302 Found", &format!("Location: {to}\r\n"), b"gone there");
    match path.as_str() {
        "/to-picture" => redirect("/square.png"),
        "/to-other" => redirect(&format!("https://other.test:{port}/square.png?signed=1")),
        "/to-stranger" => redirect(&format!("https://stranger.test:{port}/square.png")),
        "/to-inside" => redirect(&format!("https://inside.test:{port}/square.png")),
        "/to-rebound" => redirect(&format!("https://rebound.test:{port}/square.png")),
        "/to-metadata" => redirect("http://169.254.169.254/latest/meta-data"),
        "/to-metadata-by-tls" => redirect("https://169.254.169.254/latest/meta-data"),
        "/to-plain" => redirect(&format!("http://pictures.test:{port}/square.png")),
        "/to-backslash" => redirect(&format!("https:\\\\stranger.test:{port}\\@pictures.test/")),
        "/to-file" => redirect("file:///etc/passwd"),
        "/to-itself" => redirect("/to-itself"),
        "/to-nowhere" => send("302 Found", "", b""),
        "/page" => send(
            "200 OK",
            "Content-Type: image/png\r\n",
            b"<html>no picture</html>",
        ),
        "/empty" => send("200 OK", "", b""),
        "/cut" => {
            write!(
                out,
                "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n\u{89}PNG"
            )?;
            out.flush()
        }
        "/endless" => {
            write!(out, "HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                out.write_all(&[7; 1 << 16])?;
            }
        }
        "/stalled" => {
            write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")?;
            out.flush()?;
            // Until the other side has had enough.
            out.read(&mut [0]).map(|_| ())
        }
        "/square.png" | "/square.png?signed=1" => send(
            "200 OK",
            "Content-Type: text/plain\r\n",
            &file("square.png"),
        ),
        "/landscape.png" => send("200 OK", "", &file("landscape.png")),
        _ => send("404 Not Found", "", b"no such picture"),
    }
}

fn by_url(url: &str) -> Value {
    json!({ "type": "image_url", "image_url": { "url": url } })
}

#[tokio::test]
async fn a_picture_by_its_url_is_the_same_as_by_its_data() {
    let site = Site::start();
    let server = site.server(config()).await;
    let said = async |parts: &[Value]| {
        let answer = answer(&server, &asked(parts)).await;
        answer["choices"][0]["message"]["content"].clone()
    };
    let question = || text("What is in these images?");
    let by_data = [
        picture(&file("square.png")),
        picture(&file("landscape.png")),
        question(),
    ];
    let expected = said(&by_data).await;
    for first in [
        site.url("pictures.test", "/square.png"),
        site.url("PICTURES.test", "/to-picture"),
        site.url("other.test", "/to-other"),
        // Of its addresses the one that may be connected to.
        site.url("mixed.test", "/square.png"),
        site.url("rebound.test", "/square.png"),
    ] {
        let second = site.url("pictures.test", "/landscape.png");
        let parts = [by_url(&first), by_url(&second), question()];
        assert_eq!(said(&parts).await, expected, "{first}");
    }
    // Equal pixels are one picture, wherever they come from.
    let encoded = "chandler_pictures_encoded_total{model_name=\"fake\"} 2";
    server.until_counted(encoded).await;
    for head in site.asked() {
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("get /"), "{head}");
        for header in ["authorization", "cookie", "referer", "accept-encoding"] {
            assert!(!head.contains(&format!("\n{header}:")), "{head}");
        }
    }
    assert_eq!(site.intruders.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_may_not_be_fetched_is_not_asked_for_and_what_comes_is_bounded() {
    let site = Site::start();
    let server = site.server(config()).await;
    let here = |path: &str| site.url("pictures.test", path);
    // Once while it means an address that may be connected to.
    answer(
        &server,
        &asked(&[by_url(&site.url("rebound.test", "/square.png"))]),
    )
    .await;
    site.asked();

    let no_host = "its host is none of those";
    let no_redirect = "it leads to a place";
    let no_way = "its host cannot be reached";
    let bad: Vec<(String, &str, usize)> = vec![
        // What is asked for before it is refused is counted.
        (site.url("stranger.test", "/square.png"), no_host, 0),
        ("https://pictures.test/square.png".to_owned(), no_host, 0),
        (
            format!("https://127.0.0.1:{}/square.png", site.port),
            no_host,
            0,
        ),
        (
            format!("https://2130706433:{}/square.png", site.port),
            no_host,
            0,
        ),
        (
            "https://169.254.169.254/latest/meta-data".to_owned(),
            no_host,
            0,
        ),
        (
            format!("https://user@pictures.test:{}/", site.port),
            no_host,
            0,
        ),
        (
            format!(
                "https://stranger.test:{}\\@pictures.test:{}/",
                site.port, site.port
            ),
            no_host,
            0,
        ),
        (
            here("/square.png").replace("https", "http"),
            "expected a data: or an https: URL",
            0,
        ),
        (
            "file:///etc/passwd".to_owned(),
            "expected a data: or an https: URL",
            0,
        ),
        (String::new(), "expected a data: or an https: URL", 0),
        (site.url("inside.test", "/square.png"), no_way, 0),
        (site.url("rebound.test", "/square.png"), no_way, 0),
        (site.url("nowhere.test", "/square.png"), no_way, 0),
        (site.url("uncertified.test", "/square.png"), no_way, 0),
        (here("/to-stranger"), no_redirect, 1),
        (here("/to-metadata"), no_redirect, 1),
        (here("/to-metadata-by-tls"), no_redirect, 1),
        (here("/to-plain"), no_redirect, 1),
        (here("/to-backslash"), no_redirect, 1),
        (here("/to-file"), no_redirect, 1),
        (here("/to-inside"), no_way, 1),
        (here("/to-rebound"), no_way, 1),
        (here("/to-itself"), no_redirect, 4),
        (here("/to-nowhere"), "its host answered with status 302", 1),
        (here("/nothing"), "its host answered with status 404", 1),
        (here("/page"), "it is no PNG, JPEG, WebP or GIF", 1),
        (here("/empty"), "it is empty", 1),
        (here("/cut"), no_way, 1),
        (
            here("/endless"),
            "it is too large: the pictures of one request may have 16777216 bytes",
            1,
        ),
    ];
    for (url, reason, count) in bad {
        let body = asked(&[text("Look: "), by_url(&url)]);
        let response = server.post("/v1/chat/completions", body.to_string()).await;
        let (status, error) = error_of(response).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{url}: {error}");
        let message = error["message"].as_str().unwrap();
        let expected = format!("messages[0].content[1].image_url cannot be read: {reason}");
        assert!(message.starts_with(&expected), "{url}: {message}");
        assert_eq!(site.asked().len(), count, "{url}");
    }
    assert_eq!(site.intruders.load(Ordering::SeqCst), 0);
    answer(&server, &asked(&[by_url(&here("/square.png")), text("?")])).await;
}

#[tokio::test]
async fn a_host_that_stalls_keeps_nobody_and_what_is_fetched_counts_as_the_request_s_bytes() {
    let site = Site::start();
    let server = site
        .server(Config {
            picture_timeout: Duration::from_secs(5),
            body_budget: 100_000,
            ..config()
        })
        .await;
    let post = async |path: &str| {
        let url = site.url("pictures.test", path);
        let body = asked(&[by_url(&url), text("?")]).to_string();
        error_of(server.post("/v1/chat/completions", body).await).await
    };
    let (status, error) = post("/stalled").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = error["message"].as_str().unwrap();
    assert!(message.ends_with("it did not arrive in time"), "{message}");
    let (status, error) = post("/endless").await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{error}");
    // All of it was given back.
    let url = site.url("pictures.test", "/square.png");
    answer(&server, &asked(&[by_url(&url), text("?")])).await;
}
