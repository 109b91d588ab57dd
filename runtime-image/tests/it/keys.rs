//! The API with keys: who shows none of them gets 401 on every route, and a changed file counts without a restart.

use std::path::Path;

use chandler_runtime::config::Config;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{MODEL, Server, chat, config, error_of, fake, until};

const FIRST: &str = "sk-first-key-0123456789";
const SECOND: &str = "sk-second-key-0123456789";

/// Replaces the file as a kubelet does it: the new content gets the old one's name in one step.
fn write(folder: &TempDir, text: &str) {
    let (new, file) = (folder.path().join("new"), folder.path().join("api-keys"));
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, file).unwrap();
}

fn with_keys(folder: &Path) -> Config {
    Config {
        api_key_file: Some(folder.join("api-keys")),
        ..config()
    }
}

/// The status of a chat with this key.
async fn asks(server: &Server, key: &str) -> StatusCode {
    let request = server
        .http
        .post(format!("{}/v1/chat/completions", server.api))
        .header("content-type", "application/json")
        .body(chat("x", json!({ "max_tokens": 1 })).to_string());
    let request = if key.is_empty() {
        request
    } else {
        request.bearer_auth(key)
    };
    let response = request.send().await.unwrap();
    let status = response.status();
    if status == StatusCode::UNAUTHORIZED {
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let error = error_of(response).await.1;
        assert_eq!(error["code"], "invalid_api_key");
        assert!(!error.to_string().contains("sk-"), "{error}");
    }
    status
}

async fn api_keys(server: &Server) -> Value {
    let status: Value = serde_json::from_str(&server.look("/status").await.1).unwrap();
    status["apiKeys"].clone()
}

#[tokio::test]
async fn only_who_shows_one_of_the_keys_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, &format!("\n  {FIRST}\r\n\n{SECOND}"));
    let server = Server::start(with_keys(folder.path())).await;
    assert_eq!(api_keys(&server).await, 2);
    for key in [FIRST, SECOND] {
        assert_eq!(asks(&server, key).await, StatusCode::OK, "{key}");
    }
    let longer = format!("{FIRST}0");
    for key in [
        "",
        "sk-wrong-key-0123456789",
        &FIRST[..FIRST.len() - 1],
        &longer,
        &FIRST.to_uppercase(),
        &format!("{FIRST},{SECOND}"),
        &format!("\n{FIRST}").replace('\n', "%0A"),
    ] {
        assert_eq!(asks(&server, key).await, StatusCode::UNAUTHORIZED, "{key}");
    }
    let scheme = server.http.get(format!("{}/v1/models", server.api));
    let response = scheme.header("authorization", FIRST).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn no_path_and_no_method_goes_past_the_check() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, FIRST);
    let server = Server::start(with_keys(folder.path())).await;
    for path in [
        "/v1/models",
        "/v1/models/fake",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/nothing",
        "/",
        "/healthz",
        "//v1/models",
        "/v1/models/",
        "/V1/MODELS",
        "/v1/%6dodels",
    ] {
        for method in [Method::GET, Method::POST, Method::OPTIONS, Method::HEAD] {
            let request = server
                .http
                .request(method.clone(), format!("{}{path}", server.api));
            let status = request.send().await.unwrap().status();
            assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
        }
    }
    // Targets that a client library does not write.
    let address = server.api.trim_start_matches("http://");
    for (target, host) in [
        ("*", "x"),
        ("http://other/v1/models", "x"),
        ("/v1/models?key=a#b", ""),
        ("/v1/../v1/models", "localhost"),
        ("/v1/models%00", "a b"),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.starts_with("HTTP/1.1 4") && !answer.contains(MODEL),
            "{target}: {answer}"
        );
    }
    // Health, metrics and status are for the cluster.
    for path in ["/healthz", "/readyz", "/metrics", "/status"] {
        assert_eq!(server.look(path).await.0, StatusCode::OK, "{path}");
    }
}

/// Requests with bytes changed, added and left out at random: whatever becomes of them, nobody gets in.
#[tokio::test]
async fn no_mangled_request_goes_past_the_check() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, FIRST);
    let server = Server::start(with_keys(folder.path())).await;
    let address = server.api.trim_start_matches("http://");
    let whole = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-wrong-key-0123456789\r\nconnection: close\r\n\r\n";
    let pieces: [&[u8]; 8] = [
        b"\r\n",
        b" ",
        b"\0",
        b"\t",
        b"authorization: Bearer ",
        b"/../",
        b"%2f",
        b"\xff",
    ];
    let mut state = 1_u64;
    let mut below = |most: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % most
    };
    let mut refused = 0;
    for _ in 0..400 {
        let mut request = whole.to_vec();
        for _ in 0..=below(3) {
            let at = below(request.len() - 4);
            match below(3) {
                0 => request[at] = u8::try_from(below(256)).unwrap(),
                1 => drop(request.remove(at)),
                _ => drop(request.splice(at..at, pieces[below(8)].iter().copied())),
            }
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // The server may close before it has read everything.
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let shown = request.escape_ascii();
        assert!(
            answer.is_empty()
                || answer.starts_with("HTTP/1.1 4")
                || answer.starts_with("HTTP/1.0 4"),
            "{shown}: {answer}"
        );
        assert!(!answer.contains("max_model_len"), "{shown}: {answer}");
        refused += usize::from(answer.contains("invalid_api_key"));
    }
    assert!(refused > 100, "most reach the check: {refused}");
}

#[tokio::test]
async fn a_header_that_is_huge_or_stands_twice_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, FIRST);
    let server = Server::start(with_keys(folder.path())).await;
    let long = FIRST.repeat(1_000);
    assert_eq!(asks(&server, &long).await, StatusCode::UNAUTHORIZED);
    let address = server.api.trim_start_matches("http://");
    for (more, statuses) in [
        (
            format!("authorization: Bearer {}\r\n", "a".repeat(1 << 20)),
            ["431", "400"],
        ),
        (
            format!("authorization: Bearer {FIRST}\r\n").repeat(2),
            ["401", "401"],
        ),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}\r\n");
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        let refused = statuses
            .iter()
            .any(|status| answer.starts_with(&format!("HTTP/1.1 {status}")));
        assert!(refused || answer.is_empty(), "{answer}");
    }
    assert_eq!(asks(&server, FIRST).await, StatusCode::OK);
}

#[tokio::test]
async fn a_changed_file_counts_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, FIRST);
    let server = Server::start(with_keys(folder.path())).await;
    assert_eq!(asks(&server, FIRST).await, StatusCode::OK);
    write(&folder, SECOND);
    until("the second key to be taken", async || {
        asks(&server, SECOND).await == StatusCode::OK
    })
    .await;
    assert_eq!(asks(&server, FIRST).await, StatusCode::UNAUTHORIZED);

    std::fs::remove_file(folder.path().join("api-keys")).unwrap();
    until("nobody to be let in", async || {
        asks(&server, SECOND).await == StatusCode::UNAUTHORIZED
    })
    .await;
    assert_eq!(api_keys(&server).await, 0);

    // As a mounted Secret stands: a link to a link, swapped as a whole.
    for (version, key) in [("..1", FIRST), ("..2", SECOND)] {
        std::fs::create_dir(folder.path().join(version)).unwrap();
        std::fs::write(folder.path().join(version).join("api-keys"), key).unwrap();
        let link = folder.path().join("..link");
        std::os::unix::fs::symlink(version, &link).unwrap();
        std::fs::rename(link, folder.path().join("..data")).unwrap();
        if version == "..1" {
            let file = folder.path().join("api-keys");
            std::os::unix::fs::symlink("..data/api-keys", file).unwrap();
        }
        until("the linked key to be taken", async || {
            asks(&server, key).await == StatusCode::OK
        })
        .await;
    }
    assert_eq!(asks(&server, FIRST).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn without_a_readable_file_nobody_is_let_in() {
    let folder = tempfile::tempdir().unwrap();
    // Also before the model is there, so that a key's holder alone learns about the server.
    let config = with_keys(folder.path());
    let (go, gone) = std::sync::mpsc::channel();
    let settings = config.clone();
    let server = Server::start_with(config, std::sync::Arc::default(), move || {
        gone.recv().unwrap();
        fake(&settings, std::sync::Arc::default())
    })
    .await;
    assert_eq!(asks(&server, FIRST).await, StatusCode::UNAUTHORIZED);
    go.send(()).unwrap();
    server.until_ready().await;
    for text in [None, Some(""), Some("short\nwith a space\n\u{fffd}")] {
        if let Some(text) = text {
            write(&folder, text);
        }
        for key in ["", FIRST, "short", "with a space"] {
            assert_eq!(
                asks(&server, key).await,
                StatusCode::UNAUTHORIZED,
                "{text:?} {key}"
            );
        }
    }
    assert_eq!(api_keys(&server).await, 0);
}

#[tokio::test]
async fn without_the_flag_everybody_is_answered() {
    let server = Server::start(config()).await;
    assert_eq!(asks(&server, "").await, StatusCode::OK);
    assert_eq!(asks(&server, FIRST).await, StatusCode::OK);
    assert_eq!(api_keys(&server).await, Value::Null);
}

#[tokio::test]
async fn tokens_are_counted_by_the_name_of_the_key() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, &format!("team-a {FIRST}\n{SECOND}\n"));
    let server = Server::start(with_keys(folder.path())).await;
    for key in [FIRST, SECOND, FIRST] {
        assert_eq!(asks(&server, key).await, StatusCode::OK);
    }
    asks(&server, "sk-wrong-key-0123456789").await;
    let counted = async |name: &str, times: usize| {
        for what in ["prompt", "generation"] {
            let line = format!(
                "chandler_runtime_key_{what}_tokens_total{{model_name=\"{MODEL}\",key_name=\"{name}\"}} {times}"
            );
            server.until_counted(&line).await;
        }
    };
    // A prompt and an answer of one token each.
    counted("team-a", 2).await;
    counted("unnamed", 1).await;
    // Other paths count as well.
    for (path, body) in [
        (
            "/v1/completions",
            json!({ "model": MODEL, "prompt": "x", "max_tokens": 1 }),
        ),
        (
            "/v1/responses",
            json!({ "model": MODEL, "input": "x", "max_output_tokens": 1 }),
        ),
    ] {
        let request = server
            .http
            .post(format!("{}{path}", server.api))
            .bearer_auth(SECOND)
            .header("content-type", "application/json");
        let response = request.body(body.to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
    }
    counted("unnamed", 3).await;
    let metrics = server.look("/metrics").await.1;
    assert!(!metrics.contains("sk-"), "{metrics}");
}
