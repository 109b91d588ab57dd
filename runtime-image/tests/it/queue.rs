//! One more request than fits: it waits in order or gets 429, never a hang; who leaves gives his place free.

use chandler_runtime::server::listen;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::server::{Server, chat, config, error_of, json_of, until};

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

#[tokio::test]
async fn one_connection_too_many_is_told_so_and_gets_a_place_when_another_ends() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let closing = watch::Sender::new(false);
    let router = axum::Router::new().fallback(async || "served");
    tokio::spawn(listen::serve(listener, router, 2, closing.subscribe()));
    let ask = async |stream: &mut TcpStream| {
        let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = vec![0; 4_096];
        let length = stream.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    };
    let mut first = TcpStream::connect(address).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    // Both are kept open by their clients.
    for stream in [&mut first, &mut second] {
        assert!(ask(stream).await.starts_with("HTTP/1.1 200"));
    }
    let mut third = TcpStream::connect(address).await.unwrap();
    let refused = ask(&mut third).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(
        refused.contains("connection: close") && refused.contains("\"error\""),
        "{refused}"
    );
    drop(first);
    until("a place to be free", async || {
        let mut next = TcpStream::connect(address).await.unwrap();
        ask(&mut next).await.starts_with("HTTP/1.1 200")
    })
    .await;
}
