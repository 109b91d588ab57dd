//! What a model's card says about its chats: template, texts and tokens that end answers, pictures.

use std::path::PathBuf;

use chandler_runtime::config::{Config, Device};
use chandler_runtime::prompt::{Conversation, Message};
use chandler_runtime::serve::{Loaded, load};
use chandler_runtime::weights::LoadError;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{MODEL, Server, config, error_of, json_of};

/// The answer to `a`, which the fake model continues with the alphabet, and why it ended.
async fn alphabet(server: &Server, more: Value) -> (String, String) {
    let body = json_of(server.chat("a", more).await).await;
    let choice = &body["choices"][0];
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (
        text(&choice["message"]["content"]),
        text(&choice["finish_reason"]),
    )
}

#[tokio::test]
async fn the_card_s_stop_texts_end_every_answer_besides_the_request_s_own() {
    let server = Server::start(Config {
        stop_texts: vec!["a,b".to_owned(), "ij".to_owned()],
        ..config()
    })
    .await;
    let stop = || "stop".to_owned();
    assert_eq!(
        alphabet(&server, json!({})).await,
        ("bcdefgh".to_owned(), stop())
    );
    assert_eq!(
        alphabet(&server, json!({ "stop": ["d"] })).await,
        ("bc".to_owned(), stop())
    );
    assert_eq!(
        alphabet(&server, json!({ "stop": "x" })).await,
        ("bcdefgh".to_owned(), stop())
    );
    let body = json!({ "model": MODEL, "prompt": "a", "max_tokens": 60 });
    let body = json_of(server.post("/v1/completions", body.to_string()).await).await;
    assert_eq!(body["choices"][0]["text"], "bcdefgh", "{body}");
}

#[tokio::test]
async fn the_card_s_stop_tokens_end_every_answer_unless_it_ignores_end_tokens() {
    let server = Server::start(Config {
        // A number that the model has not is passed over.
        stop_tokens: vec![u32::from(b'f'), 99_999],
        ..config()
    })
    .await;
    assert_eq!(
        alphabet(&server, json!({})).await,
        ("bcde".to_owned(), "stop".to_owned())
    );
    let ignoring = json!({ "ignore_eos": true, "max_tokens": 6 });
    assert_eq!(
        alphabet(&server, ignoring).await,
        ("bcdefg".to_owned(), "length".to_owned())
    );
}

fn tiny(template: Option<&str>) -> Result<Loaded, LoadError> {
    let model = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/llama-tiny/model"
    );
    load(&Config {
        model: PathBuf::from(model),
        context_length: Some(64),
        chat_template: template.map(str::to_owned),
        ..config()
    })
}

#[test]
fn the_card_s_template_replaces_the_weights_own() {
    let hello = Conversation {
        messages: vec![Message::text("user", "Hello")],
        ..Conversation::default()
    };
    let text = |template| {
        let loaded = tiny(template).unwrap();
        let prompt = loaded.template.unwrap().render(&hello, &loaded.tokenizer);
        prompt.unwrap().text
    };
    let given = "{% for m in messages %}{{ m.role }}, {{ m.content }};{% endfor %}";
    assert_eq!(text(Some(given)), "user, Hello;");
    assert_ne!(text(None), text(Some(given)));
}

#[test]
fn a_template_with_a_mistake_refuses_the_start_with_its_line() {
    for (template, words) in [
        ("ok\n{% if %}", "line 2"),
        ("ok\n\n{{ messages | no_such_filter }}", "line 3"),
        ("", "is empty"),
    ] {
        let error = tiny(Some(template)).err().unwrap().to_string();
        assert!(error.contains("--chat-template"), "{error}");
        assert!(error.contains(words), "{template:?}: {error}");
    }
}

#[tokio::test]
async fn a_picture_for_a_model_that_reads_text_is_refused_by_name() {
    let server = Server::start(Config {
        images_per_prompt: Some(1),
        ..config()
    })
    .await;
    let picture =
        json!({ "type": "image_url", "image_url": { "url": "data:image/png;base64,AA" } });
    let text = json!({ "type": "text", "text": "What is this?" });
    let body =
        json!({ "model": MODEL, "messages": [{ "role": "user", "content": [text, picture] }] });
    let response = server.post("/v1/chat/completions", body.to_string()).await;
    let (status, error) = error_of(response).await;
    assert_eq!(
        (status, &error["param"]),
        (StatusCode::BAD_REQUEST, &json!("messages"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("content[1] is a picture"), "{message}");
    assert!(message.contains("reads no pictures"), "{message}");
}

#[tokio::test]
async fn a_gpu_that_cannot_be_used_is_told_by_the_status() {
    let server = Server::start(Config {
        device: Device::Cuda,
        ..config()
    })
    .await;
    let status: Value = serde_json::from_str(&server.look("/status").await.1).unwrap();
    assert_eq!(status["device"], "cpu", "{status}");
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
}
