//! Bad input gets a 4xx with OpenAI's error body that says what is wrong, and the server lives on.

use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::server::{CONTEXT, MODEL, Server, chat, config, error_of, until};

#[tokio::test]
async fn each_kind_of_bad_request_is_refused_with_its_field_and_code() {
    let server = Server::start(config()).await;
    let on_chat = "/v1/chat/completions";
    let typed = |more: Value| chat("a", more).to_string();
    let messages = |messages: Value| json!({ "model": MODEL, "messages": messages }).to_string();
    let long = "a".repeat(CONTEXT);
    let cases: Vec<(&str, String, u16, &str, &str)> = vec![
        (on_chat, "{\"model\": \"fa".into(), 400, "invalid_json", ""),
        (on_chat, String::new(), 400, "invalid_json", ""),
        (on_chat, "{} trailing".into(), 400, "", ""),
        (on_chat, "[]".into(), 400, "invalid_type", ""),
        (on_chat, "{}".into(), 400, "invalid_type", "model"),
        (
            on_chat,
            typed(json!({ "model": "gpt-9" })),
            404,
            "model_not_found",
            "model",
        ),
        (
            on_chat,
            json!({ "model": MODEL }).to_string(),
            400,
            "invalid_type",
            "messages",
        ),
        (
            on_chat,
            messages(json!([])),
            400,
            "invalid_value",
            "messages",
        ),
        (
            on_chat,
            messages(json!("hello")),
            400,
            "invalid_type",
            "messages",
        ),
        (
            on_chat,
            messages(json!([{ "role": "wizard", "content": "x" }])),
            400,
            "invalid_value",
            "messages",
        ),
        (
            on_chat,
            messages(
                json!([{ "role": "user", "content": [{ "type": "image_url", "image_url": {} }] }]),
            ),
            400,
            "invalid_value",
            "messages",
        ),
        (
            on_chat,
            typed(json!({ "max_tokens": -1 })),
            400,
            "invalid_type",
            "",
        ),
        (
            on_chat,
            typed(json!({ "max_tokens": 0 })),
            400,
            "invalid_value",
            "max_tokens",
        ),
        (
            on_chat,
            typed(json!({ "temperature": 99 })),
            400,
            "invalid_value",
            "temperature",
        ),
        (
            on_chat,
            typed(json!({ "temperature": "hot" })),
            400,
            "invalid_type",
            "",
        ),
        (
            on_chat,
            typed(json!({ "top_p": 0 })),
            400,
            "invalid_value",
            "top_p",
        ),
        (on_chat, typed(json!({ "n": 5 })), 400, "invalid_value", "n"),
        (
            on_chat,
            typed(json!({ "stop": vec!["x"; 17] })),
            400,
            "invalid_value",
            "stop",
        ),
        (
            on_chat,
            typed(json!({ "stop": "" })),
            400,
            "invalid_value",
            "stop",
        ),
        (
            on_chat,
            typed(json!({ "logprobs": true, "top_logprobs": 21 })),
            400,
            "invalid_value",
            "top_logprobs",
        ),
        (
            on_chat,
            typed(json!({ "top_logprobs": 2 })),
            400,
            "invalid_value",
            "top_logprobs",
        ),
        (
            on_chat,
            typed(json!({ "logit_bias": { "99999": 1 } })),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (
            on_chat,
            typed(json!({ "logit_bias": { "1": 101 } })),
            400,
            "invalid_value",
            "logit_bias",
        ),
        (
            on_chat,
            typed(json!({ "stop_token_ids": vec![1; 129] })),
            400,
            "invalid_value",
            "stop_token_ids",
        ),
        (
            on_chat,
            typed(json!({ "tools": [{}] })),
            400,
            "invalid_type",
            "",
        ),
        (
            on_chat,
            chat(&long, json!({})).to_string(),
            400,
            "context_length_exceeded",
            "messages",
        ),
        (
            on_chat,
            messages(json!(vec![
                json!({ "role": "user", "content": "a" });
                4_097
            ])),
            400,
            "invalid_value",
            "messages",
        ),
        // The template of this model renders it to nothing.
        (
            on_chat,
            chat("", json!({})).to_string(),
            400,
            "invalid_value",
            "messages",
        ),
        // Would make an infinity of a logit.
        (
            on_chat,
            typed(json!({ "repetition_penalty": 1e-40 })),
            400,
            "invalid_value",
            "repetition_penalty",
        ),
        (
            "/v1/completions",
            json!({ "model": "gpt-9", "prompt": "x" }).to_string(),
            404,
            "model_not_found",
            "model",
        ),
        (
            "/v1/completions",
            json!({ "model": MODEL, "prompt": "" }).to_string(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            "/v1/completions",
            json!({ "model": MODEL, "prompt": [1, 99_999] }).to_string(),
            400,
            "invalid_value",
            "prompt",
        ),
        (
            "/v1/completions",
            json!({ "model": MODEL, "prompt": ["a", "b"] }).to_string(),
            400,
            "invalid_value",
            "prompt",
        ),
        ("/v1/nothing", "{}".into(), 404, "unknown_url", ""),
    ];
    for (path, body, status, code, param) in cases {
        let shown: String = body.chars().take(120).collect();
        let (found, error) = error_of(server.post(path, body).await).await;
        assert_eq!(found.as_u16(), status, "{path} {shown}: {error}");
        assert!(
            code.is_empty() || error["code"] == code,
            "{path} {shown}: {error}"
        );
        assert!(
            param.is_empty() || error["param"] == param,
            "{path} {shown}: {error}"
        );
        assert!(
            error["message"].as_str().unwrap().len() < 1_000,
            "{path} {shown}: {error}"
        );
    }
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn wrong_methods_and_content_types_are_refused() {
    let server = Server::start(config()).await;
    let (status, error) = error_of(server.get("/v1/chat/completions").await).await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::METHOD_NOT_ALLOWED, &json!("method_not_allowed"))
    );
    let request = server
        .http
        .post(format!("{}/v1/chat/completions", server.api))
        .body("{}");
    let (status, error) = error_of(request.send().await.unwrap()).await;
    assert_eq!(
        (status, &error["code"]),
        (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            &json!("unsupported_media_type")
        )
    );
    let (status, error) = error_of(server.get("/v1/models/gpt-9").await).await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
}

#[tokio::test]
async fn a_body_of_more_than_16_mebibytes_is_refused_before_it_is_read() {
    let server = Server::start(config()).await;
    let address = server.api.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("body_too_large"), "{answer}");
    // Without a declared length, in chunks.
    let chunk = vec![b' '; 1 << 20];
    let chunks = (0..20).map(move |_| Ok::<_, std::io::Error>(chunk.clone()));
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let request = server
        .http
        .post(format!("{}/v1/chat/completions", server.api));
    let sent = request
        .header("content-type", "application/json")
        .body(body)
        .send()
        .await;
    // The server may close before the client has sent everything; an answer that arrives is the right one.
    if let Ok(response) = sent {
        assert_eq!(error_of(response).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    }
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_compressed_body_is_not_unpacked() {
    let server = Server::start(config()).await;
    // The beginning of a gzip stream; unpacking it would be the server's first mistake.
    let packed: &[u8] = &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 0xab, 0x56];
    for encoding in ["gzip", "deflate", "br", "zstd"] {
        let request = server
            .http
            .post(format!("{}/v1/chat/completions", server.api))
            .header("content-type", "application/json")
            .header("content-encoding", encoding)
            .body(packed);
        let (status, error) = error_of(request.send().await.unwrap()).await;
        assert_eq!(
            (status, &error["code"]),
            (StatusCode::BAD_REQUEST, &json!("invalid_json")),
            "{encoding}: {error}"
        );
    }
}

#[tokio::test]
async fn bodies_together_have_a_bound_and_a_declared_length_takes_nothing() {
    let mut config = config();
    config.body_budget = 100_000;
    let server = Server::start(config).await;
    let address = server.api.trim_start_matches("http://");
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 16000000\r\n\r\n";
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
    // Most of the budget arrives and stays, unless a request that is tried meanwhile has its share: then another body is sent.
    let mut slow = None;
    until("the budget to be taken", async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; 99_900]).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let response = server.chat(&"x".repeat(60), json!({})).await;
        if response.status() == StatusCode::OK {
            return false;
        }
        slow = Some(stream);
        assert_eq!(response.headers()["retry-after"], "1");
        let (status, error) = error_of(response).await;
        assert_eq!(
            (status, &error["code"]),
            (StatusCode::TOO_MANY_REQUESTS, &json!("overloaded"))
        );
        true
    })
    .await;
    drop(slow);
    until("the budget to be given back", async || {
        server.chat("x", json!({})).await.status() == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn deeply_nested_json_is_refused_and_nothing_overflows() {
    let server = Server::start(config()).await;
    let nested = format!(
        "{{\"model\":\"fake\",\"messages\":{}1{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let (status, _) = error_of(server.post("/v1/chat/completions", nested).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn floods_of_headers_and_huge_ones_are_refused() {
    let server = Server::start(config()).await;
    let address = server.api.trim_start_matches("http://");
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    let huge = format!("x-huge: {}\r\n", "y".repeat(300_000));
    for headers in [many, huge] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head =
            format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
        // The server may close before everything is written.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
            "{answer}"
        );
    }
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn counts_of_answers_and_biases_have_bounds() {
    let server = Server::start(config()).await;
    let bias: Value = (0..1_025)
        .map(|n| (n.to_string(), json!(1)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    for (more, param) in [
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 4_000_000_000_u32 }), "n"),
        (json!({ "logit_bias": bias }), "logit_bias"),
        (json!({ "logit_bias": { "-1": 1 } }), "logit_bias"),
    ] {
        let (status, error) = error_of(server.chat("x", more).await).await;
        assert_eq!(
            (status, &error["param"]),
            (StatusCode::BAD_REQUEST, &json!(param)),
            "{error}"
        );
    }
}
