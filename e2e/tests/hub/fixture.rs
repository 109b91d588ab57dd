//! A hub on ports of its own, serving a small repository.

use std::path::Path;
use std::time::Duration;

use chandler_e2e::hub::{Config, LoggedRequest, fault::Fault, serve};
use reqwest::redirect::Policy;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The model's bytes: not compressible to a pattern that would hide a shift.
pub(crate) fn weights() -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..300_000).map(|_| next()).collect()
}

pub(crate) const CONFIG: &str = "{\"architectures\": [\"LlamaForCausalLM\"]}\n";

pub(crate) struct RunningHub {
    pub(crate) endpoint: String,
    pub(crate) folder: TempDir,
    client: reqwest::Client,
    task: JoinHandle<()>,
}

impl Drop for RunningHub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RunningHub {
    pub(crate) async fn start() -> Self {
        Self::with_link_lifetime(Duration::from_secs(60)).await
    }

    pub(crate) async fn with_link_lifetime(link_lifetime: Duration) -> Self {
        // The second one of a process is refused, and is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = TempDir::new().unwrap();
        write(folder.path(), "config.json", CONFIG.as_bytes());
        write(folder.path(), "sub/notes.txt", b"a note");
        write(folder.path(), "weights.gguf", &weights());
        let hub = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cdn = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let config = Config {
            // Another name than the hub's, as the real CDN has.
            cdn: Some(format!(
                "http://localhost:{}",
                cdn.local_addr().unwrap().port()
            )),
            link_lifetime,
            ..Config::new(folder.path())
        };
        let task = tokio::spawn(async move { serve(hub, cdn, config).await.unwrap() });
        Self {
            endpoint,
            folder,
            client: reqwest::Client::builder()
                .redirect(Policy::none())
                // A hub that has just lied about a length ends the connection.
                .pool_max_idle_per_host(0)
                .build()
                .unwrap(),
            task,
        }
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.get_with(path, &[]).await
    }

    pub(crate) async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{}{path}", self.endpoint)
        };
        let mut request = self.client.get(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    pub(crate) async fn settings(&self, repository: &str, settings: Value) -> Value {
        let url = format!("{}/_repositories/{repository}", self.endpoint);
        let response = self.client.put(url).json(&settings).send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert!(status.is_success(), "{status} {body}");
        body
    }

    pub(crate) async fn fault(&self, fault: Value) {
        let fault: Fault = serde_json::from_value(fault).unwrap();
        let url = format!("{}/_faults", self.endpoint);
        let response = self.client.put(url).json(&[fault]).send().await.unwrap();
        assert!(response.status().is_success());
    }

    /// Takes every fault away.
    pub(crate) async fn mend(&self) {
        let url = format!("{}/_faults", self.endpoint);
        let response = self.client.delete(url).send().await.unwrap();
        assert!(response.status().is_success());
    }

    pub(crate) async fn log(&self) -> Vec<LoggedRequest> {
        self.get("/_requests").await.json().await.unwrap()
    }

    /// The signed link to the weights.
    pub(crate) async fn link(&self) -> String {
        let answer = self.get("/org/tiny/resolve/main/weights.gguf").await;
        location(&answer)
    }
}

fn write(folder: &Path, path: &str, bytes: &[u8]) {
    let target = folder.join("org/tiny").join(path);
    std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    std::fs::write(target, bytes).unwrap();
}

pub(crate) fn location(answer: &reqwest::Response) -> String {
    header(answer, "location").unwrap()
}

pub(crate) fn header(answer: &reqwest::Response, name: &str) -> Option<String> {
    Some(answer.headers().get(name)?.to_str().unwrap().to_owned())
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Status, `X-Error-Code` and the error's text.
pub(crate) async fn refusal(answer: reqwest::Response) -> (u16, String, String) {
    let status = answer.status().as_u16();
    let code = header(&answer, "x-error-code").unwrap_or_default();
    let body: Value = answer.json().await.unwrap_or(json!({}));
    let text = body["error"].as_str().unwrap_or_default().to_owned();
    (status, code, text)
}
