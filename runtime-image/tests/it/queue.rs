//! One more request than fits: it waits in order or gets 429, never a hang; who leaves gives his place free.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use reqwest::StatusCode;
use serde_json::json;

use crate::server::{Server, chat, config, error_of, json_of};

#[tokio::test]
async fn excess_waits_and_what_does_not_fit_the_queue_gets_429() {
    let mut config = config();
    (config.max_sequences, config.max_queue) = (1, 1);
    let server = Server::start(config).await;
    server.slow_down(20);
    let running = server.chat("a", json!({ "stream": true })).await;
    let waiting = server.chat("a", json!({ "stream": true })).await;
    let refused = server.chat("a", json!({})).await;
    assert_eq!(refused.headers()["retry-after"], "1");
    let (status, error) = error_of(refused).await;
    assert_eq!(
        (status, &error["type"]),
        (StatusCode::TOO_MANY_REQUESTS, &json!("rate_limit_error"))
    );
    server.slow_down(0);
    for response in [running, waiting] {
        assert!(response.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    }
    assert_eq!(server.chat("a", json!({})).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn those_who_wait_are_answered_in_the_order_of_their_arrival() {
    let mut config = config();
    (config.max_sequences, config.max_queue) = (1, 8);
    let server = Server::start(config).await;
    server.slow_down(20);
    let mut answers = FuturesUnordered::new();
    for place in 0..4 {
        // The head of a stream comes when the request has its place in the queue.
        let response = server.chat("a", json!({ "stream": true })).await;
        answers.push(async move {
            response.text().await.unwrap();
            place
        });
    }
    server.slow_down(0);
    let order: Vec<i32> = answers.by_ref().collect().await;
    assert_eq!(order, [0, 1, 2, 3]);
}

#[tokio::test]
async fn a_client_that_leaves_gives_its_place_free() {
    let mut config = config();
    (config.max_sequences, config.max_queue) = (1, 0);
    let server = Server::start(config).await;
    server.slow_down(20);
    let response = server
        .chat("a", json!({ "stream": true, "ignore_eos": true }))
        .await;
    assert_eq!(
        server.chat("a", json!({})).await.status(),
        StatusCode::TOO_MANY_REQUESTS
    );
    drop(response);
    server
        .until_counted(
            "vllm:request_success_total{model_name=\"fake\",finished_reason=\"abort\"} 1",
        )
        .await;
    server.slow_down(0);
    let body = json_of(server.chat("x", json!({})).await).await;
    assert_eq!(body["choices"][0]["message"]["content"], "yz");
}

#[tokio::test]
async fn several_run_at_once_and_do_not_mix() {
    let server = Server::start(config()).await;
    let requests = ["a", "m", "x", "y"]
        .map(|text| server.post("/v1/chat/completions", chat(text, json!({})).to_string()));
    let answers = futures::future::join_all(requests).await;
    let mut texts = Vec::new();
    for answer in answers {
        texts.push(
            json_of(answer).await["choices"][0]["message"]["content"]
                .as_str()
                .unwrap()
                .to_owned(),
        );
    }
    assert_eq!(
        texts,
        ["bcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyz", "yz", "z"]
    );
}

#[tokio::test]
async fn a_request_that_takes_too_long_gets_504() {
    let mut config = config();
    config.request_timeout = std::time::Duration::from_millis(200);
    let server = Server::start(config).await;
    server.slow_down(40);
    let (status, error) = error_of(server.chat("a", json!({})).await).await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::GATEWAY_TIMEOUT, &json!("request_timeout"))
    );
    // A stream that has begun says it in the stream.
    let text = server
        .chat("a", json!({ "stream": true }))
        .await
        .text()
        .await
        .unwrap();
    assert!(
        text.contains("request_timeout") && !text.contains("[DONE]"),
        "{text}"
    );
}
