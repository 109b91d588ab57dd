//! Asking a model through its Service.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::forward::Forward;

/// A question to which the demo model's greedy answer names Paris; llama.cpp agrees word for word.
/// Asked only for the capital of France, the two agree on "L'Étoile, la Marseillaise": it is a very small model.
pub const QUESTION: &str = "What is the capital of France? Answer in one sentence.";

/// The longest time for one short answer on a busy machine.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A Service that speaks OpenAI's protocol, and the way to it.
pub struct Endpoint {
    /// `http://127.0.0.1:PORT/v1`.
    pub base: String,
    http: reqwest::Client,
    key: Option<String>,
    /// Absent where the address needs none.
    _way: Option<Forward>,
}

/// Status and body of one answer.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body, a string where it is no JSON.
    pub body: Value,
}

impl Answer {
    /// What the assistant said.
    #[must_use]
    pub fn text(&self) -> &str {
        let text = &self.body["choices"][0]["message"]["content"];
        text.as_str().unwrap_or_default()
    }

    /// The message in OpenAI's error body, if it is one.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        let error = &self.body["error"];
        let is_whole = error["type"].is_string() && error.get("code").is_some();
        error["message"].as_str().filter(|_| is_whole)
    }
}

impl Endpoint {
    /// Speaks to whatever lies behind the way.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new(way: Forward) -> Result<Self> {
        let endpoint = Self::at(way.address)?;
        Ok(Self {
            _way: Some(way),
            ..endpoint
        })
    }

    /// Speaks to a server that listens on this machine.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn at(address: SocketAddr) -> Result<Self> {
        Ok(Self {
            base: format!("http://{address}/v1"),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(ANSWER_WITHIN)
                .build()?,
            key: None,
            _way: None,
        })
    }

    /// The same endpoint, spoken to with this key.
    #[must_use]
    pub fn with_key(self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self
        }
    }

    /// One question, answered greedily.
    ///
    /// # Errors
    /// When no answer comes at all.
    pub async fn ask(&self, model: &str, question: &str) -> Result<Answer> {
        let body = json!({
            "model": model,
            "messages": [{ "role": "user", "content": question }],
            "temperature": 0,
            "max_tokens": 24,
        });
        self.post("/chat/completions", body.to_string()).await
    }

    /// A request body as it stands.
    ///
    /// # Errors
    /// When no answer comes at all.
    pub async fn post(&self, path: &str, body: String) -> Result<Answer> {
        let request = self
            .http
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/json")
            .body(body);
        self.read(request, path).await
    }

    /// A GET request.
    ///
    /// # Errors
    /// When no answer comes at all.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.read(self.http.get(format!("{}{path}", self.base)), path)
            .await
    }

    /// The status of a GET request with this bearer token.
    ///
    /// # Errors
    /// When no answer comes at all.
    pub async fn status_with_key(&self, path: &str, key: Option<&str>) -> Result<u16> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        Ok(self.read(request, path).await?.status)
    }

    async fn read(&self, mut request: reqwest::RequestBuilder, path: &str) -> Result<Answer> {
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        let response = request
            .send()
            .await
            .with_context(|| format!("no answer to {path}"))?;
        let status = response.status().as_u16();
        let text = response
            .text()
            .await
            .with_context(|| format!("the answer to {path} broke off"))?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Answer { status, body })
    }
}
