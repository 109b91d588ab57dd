//! A chat of three turns about two pictures with the tiny model that looks at pictures, asked of any server that serves it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::chat::{Answer, Endpoint};
use crate::tools::checkout;

/// The model's pictures are cut into tiles of so few pixels that any of the fixture's shows in full.
const PICTURES: &str = "runtime-image/tests/fixtures/mllama-tiny/images";

/// Tokens of one block of keys and values: what is reused is reused in whole blocks.
const BLOCK: u64 = 32;

/// The part of a message that shows a picture of the fixture.
///
/// # Errors
/// When the checkout has no such picture.
pub fn picture(name: &str) -> Result<Value> {
    let path = checkout().join(PICTURES).join(name);
    let bytes = std::fs::read(&path).with_context(|| format!("no picture {}", path.display()))?;
    let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
    Ok(json!({ "type": "image_url", "image_url": { "url": url } }))
}

/// Asks about these parts of one message.
///
/// # Errors
/// When no answer comes at all.
pub async fn ask(endpoint: &Endpoint, model: &str, parts: Value) -> Result<Answer> {
    continued(
        endpoint,
        model,
        &json!([{ "role": "user", "content": parts }]),
    )
    .await
}

async fn continued(endpoint: &Endpoint, model: &str, messages: &Value) -> Result<Answer> {
    let body = json!({ "model": model, "messages": messages, "temperature": 0, "max_tokens": 8 });
    endpoint.post("/chat/completions", body.to_string()).await
}

/// Three turns, each with all that was said before; each must find what the turn before has computed, its pictures included.
///
/// # Errors
/// When a turn is not answered, or computes again what was there.
pub async fn three_turns(endpoint: &Endpoint, model: &str) -> Result<()> {
    let text = |text: &str| json!({ "type": "text", "text": text });
    // Both in the prompt's first block, so whoever reuses that reuses both.
    let two = json!([
        picture("landscape.png")?,
        text("one, "),
        picture("portrait.png")?,
        text("two: what do these pictures show, and which of them is the larger one?"),
    ]);
    let mut messages = vec![json!({ "role": "user", "content": two })];
    let mut before = 0;
    for (turn, next) in ["Which one is brighter?", "Why?", ""].iter().enumerate() {
        let answer = continued(endpoint, model, &json!(messages)).await?;
        ensure!(answer.status == 200, "turn {turn}: {answer:?}");
        let usage = &answer.body["usage"];
        let number = |value: &Value| value.as_u64().context("usage lacks a number");
        let prompt = number(&usage["prompt_tokens"])?;
        let reused = number(&usage["prompt_tokens_details"]["cached_tokens"])?;
        let least = before / BLOCK * BLOCK;
        ensure!(
            reused >= least && (turn == 0 || reused > 0),
            "turn {turn} reused {reused} of {prompt} tokens, expected at least {least}: {usage}"
        );
        before = prompt;
        messages.push(json!({ "role": "assistant", "content": answer.text() }));
        messages.push(json!({ "role": "user", "content": next }));
    }
    Ok(())
}

/// How many pictures a server has looked at since its start, as its metrics at this address tell.
///
/// # Errors
/// When they do not tell.
pub async fn pictures_encoded(management: SocketAddr) -> Result<u64> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{management}/metrics");
    let text = http.get(url).send().await?.text().await?;
    let line = text
        .lines()
        .find(|line| line.starts_with("chandler_pictures_encoded_total"));
    let number = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    number.with_context(|| format!("no metric tells of pictures:\n{text}"))
}
