//! A server in this process: the fake model behind real sockets, and what a client does with it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chandler_runtime::compute::Arithmetic;
use chandler_runtime::config::{Config, CudaArgs, Device};
use chandler_runtime::model::Capacity;
use chandler_runtime::model::fake::{Fake, FakeControl};
use chandler_runtime::picture_hosts::System;
use chandler_runtime::prompt::Template;
use chandler_runtime::serve::{Listeners, Loaded, ServeError, serve_with};
use chandler_runtime::tokenizer::bytes_only;
use chandler_runtime::weights::LoadError;
use reqwest::{Client, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// The longest time that anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The served name.
pub(crate) const MODEL: &str = "fake";

/// Tokens of prompt and answer together.
pub(crate) const CONTEXT: usize = 64;

/// A running server. It is stopped when the test drops it.
pub(crate) struct Server {
    pub(crate) http: Client,
    pub(crate) api: String,
    pub(crate) management: String,
    /// The model's switches.
    pub(crate) control: Arc<FakeControl>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

/// What `serve` is asked for, unless a test says otherwise.
pub(crate) fn config() -> Config {
    Config {
        model: PathBuf::from("/nonexistent"),
        verify_weights: false,
        served_names: vec![MODEL.to_owned()],
        device: Device::Cpu,
        cuda: CudaArgs::default(),
        api_key_file: None,
        chat_template: None,
        stop_texts: Vec::new(),
        stop_tokens: Vec::new(),
        dtype: Arithmetic::Float32,
        images_per_prompt: None,
        picture_hosts: Vec::new(),
        picture_timeout: PATIENCE,
        network: Arc::new(System),
        context_length: None,
        max_sequences: 4,
        max_queue: 4,
        request_timeout: PATIENCE,
        drain: PATIENCE,
        drain_grace: Duration::from_millis(300),
        body_budget: 64 << 20,
        threads: 1,
        kv_cache_memory_bytes: None,
        speculative_tokens: 0,
        result_file: PathBuf::from("/nonexistent/result"),
    }
}

/// The fake model, loaded.
pub(crate) fn fake(config: &Config, control: Arc<FakeControl>) -> Result<Loaded, LoadError> {
    let tokenizer = bytes_only(&["<|end|>"]);
    let source = "{% for message in messages %}{{ message.content }}{% endfor %}";
    let template = Template::new(source, &tokenizer, &PathBuf::from("fake"))?;
    let capacity = Capacity {
        rows: 16,
        logits_rows: config.max_sequences,
        blocks: config.context_length.unwrap_or(CONTEXT),
    };
    Ok(Loaded {
        model: Box::new(Fake::new(capacity, tokenizer.size(), control)),
        tokenizer,
        template: Some(template),
        main_type: "none".to_owned(),
        preparation: None,
        context_length: config.context_length.unwrap_or(CONTEXT),
    })
}

impl Server {
    /// Starts and waits until it is ready.
    pub(crate) async fn start(config: Config) -> Self {
        let control = Arc::new(FakeControl::default());
        let (settings, switches) = (config.clone(), control.clone());
        let server = Self::start_with(config, control, move || fake(&settings, switches)).await;
        server.until_ready().await;
        server
    }

    /// Starts with the given way to load, and waits for nothing.
    pub(crate) async fn start_with(
        config: Config,
        control: Arc<FakeControl>,
        load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'static,
    ) -> Self {
        // A second call finds the first one's provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listeners = Listeners {
            api: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            management: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        };
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (api, management) = (address(&listeners.api), address(&listeners.management));
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            // A dropped sender stops as well.
            let _ = stopped.await;
        };
        Self {
            http: Client::builder()
                .no_proxy()
                .timeout(PATIENCE)
                .build()
                .unwrap(),
            api,
            management,
            control,
            stop: Some(stop),
            task: tokio::spawn(serve_with(listeners, config, shutdown, load)),
        }
    }

    /// Sends what SIGTERM sends.
    pub(crate) fn terminate(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until `serve` returns.
    pub(crate) async fn ended(self) -> Result<(), ServeError> {
        let _running = self.stop;
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("serve does not end")
            .unwrap()
    }

    pub(crate) fn slow_down(&self, milliseconds: usize) {
        self.control
            .delay_milliseconds
            .store(milliseconds, Ordering::SeqCst);
    }

    /// GET on the management port.
    pub(crate) async fn look(&self, path: &str) -> (StatusCode, String) {
        let response = self
            .http
            .get(format!("{}{path}", self.management))
            .send()
            .await
            .unwrap();
        (response.status(), response.text().await.unwrap())
    }

    pub(crate) async fn until_ready(&self) {
        until("the server to be ready", async || {
            self.look("/readyz").await.0 == StatusCode::OK
        })
        .await;
    }

    /// Waits until this line stands in the metrics.
    pub(crate) async fn until_counted(&self, line: &str) {
        until(line, async || {
            self.look("/metrics")
                .await
                .1
                .lines()
                .any(|found| found == line)
        })
        .await;
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.http
            .get(format!("{}{path}", self.api))
            .send()
            .await
            .unwrap()
    }

    /// POST of a body as it stands.
    pub(crate) async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Response {
        let request = self.http.post(format!("{}{path}", self.api));
        request
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
            .unwrap()
    }

    /// One chat with a single message and further fields.
    pub(crate) async fn chat(&self, text: &str, more: Value) -> Response {
        self.post("/v1/chat/completions", chat(text, more).to_string())
            .await
    }
}

/// A chat request with a single message and further fields.
pub(crate) fn chat(text: &str, more: Value) -> Value {
    let mut body = json!({ "model": MODEL, "messages": [{ "role": "user", "content": text }] });
    let fields = body.as_object_mut().unwrap();
    if let Value::Object(more) = more {
        fields.extend(more);
    }
    body
}

/// Waits for something that is bound to come.
pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn json_of(response: Response) -> Value {
    serde_json::from_str(&response.text().await.unwrap()).unwrap()
}

/// Status, and the whole error of OpenAI's error body.
pub(crate) async fn error_of(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let body = json_of(response).await;
    let error = &body["error"];
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{body}"
    );
    assert!(error["type"].is_string(), "{body}");
    assert!(
        error.get("param").is_some() && error.get("code").is_some(),
        "{body}"
    );
    (status, error.clone())
}

/// The data of each event of a stream.
pub(crate) async fn events_of(response: Response) -> Vec<String> {
    let text = response.text().await.unwrap();
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(str::to_owned)
        .collect()
}
