//! Bad input to the HTTP API, through the Service: a 4xx with OpenAI's error body, and the server lives on.

use anyhow::ensure;
use chandler_e2e::chat::QUESTION;
use chandler_e2e::story::{Company, story};
use serde_json::json;

use crate::served::endpoint;

#[test]
fn bad_requests_are_refused_with_openai_s_error_body() {
    story("bad-input", Company::Welcome, async |story| {
        let endpoint = endpoint(story).await?;
        let hello = json!([{ "role": "user", "content": "hello" }]);
        let too_long = "word ".repeat(40_000);
        let cases: Vec<(&str, &str, String, std::ops::Range<u16>)> = vec![
            ("malformed JSON", "/chat/completions", "{\"model\": \"smol".into(), 400..401),
            ("no JSON object", "/chat/completions", "[]".into(), 400..423),
            ("an empty body", "/chat/completions", String::new(), 400..423),
            (
                "an unknown model",
                "/chat/completions",
                json!({ "model": "gpt-9", "messages": hello }).to_string(),
                404..405,
            ),
            (
                "empty messages",
                "/chat/completions",
                json!({ "model": "smollm2", "messages": [] }).to_string(),
                400..401,
            ),
            (
                "no messages",
                "/chat/completions",
                json!({ "model": "smollm2" }).to_string(),
                400..423,
            ),
            (
                "an unknown role",
                "/chat/completions",
                json!({ "model": "smollm2", "messages": [{ "role": "wizard", "content": "x" }] }).to_string(),
                400..423,
            ),
            (
                "too long a prompt",
                "/chat/completions",
                json!({ "model": "smollm2", "messages": [{ "role": "user", "content": too_long }] }).to_string(),
                400..414,
            ),
            (
                "a negative number of tokens",
                "/chat/completions",
                json!({ "model": "smollm2", "messages": hello, "max_tokens": -1 }).to_string(),
                400..423,
            ),
            (
                "a temperature out of range",
                "/chat/completions",
                json!({ "model": "smollm2", "messages": hello, "temperature": 99 }).to_string(),
                400..423,
            ),
            (
                "an unknown model for completions",
                "/completions",
                json!({ "model": "gpt-9", "prompt": "x" }).to_string(),
                404..405,
            ),
            ("an unknown route", "/nothing", "{}".into(), 404..405),
        ];
        for (what, path, body, expected) in cases {
            let answer = endpoint.post(path, body).await?;
            ensure!(
                expected.contains(&answer.status),
                "{what}: expected {expected:?}, got {answer:?}"
            );
            ensure!(
                answer.error().is_some_and(|message| !message.is_empty()),
                "{what}: no OpenAI error body: {answer:?}"
            );
        }
        let wrong_method = endpoint.get("/chat/completions").await?;
        ensure!(wrong_method.status == 405, "{wrong_method:?}");
        ensure!(wrong_method.error().is_some(), "{wrong_method:?}");
        let well = endpoint.ask("smollm2", QUESTION).await?;
        ensure!(well.status == 200, "the server no longer answers: {well:?}");
        Ok(())
    });
}
