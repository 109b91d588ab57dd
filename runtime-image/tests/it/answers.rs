//! What a good request gets: whole, as a stream, as a plain completion; and the list of models.

use serde_json::{Value, json};

use crate::server::{CONTEXT, MODEL, Server, config, events_of, json_of};

#[tokio::test]
async fn a_chat_is_answered_whole() {
    let server = Server::start(config()).await;
    let body = json_of(server.chat("x", json!({})).await).await;
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], MODEL);
    assert!(
        body["id"].as_str().unwrap().starts_with("chatcmpl-"),
        "{body}"
    );
    assert_eq!(body["choices"][0]["message"]["role"], "assistant");
    assert_eq!(body["choices"][0]["message"]["content"], "yz");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    // `y`, `z` and the token that ends the answer.
    assert_eq!(
        body["usage"],
        json!({ "prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4 })
    );
}

#[tokio::test]
async fn a_chat_is_streamed_piece_by_piece_and_says_so_when_it_is_done() {
    let server = Server::start(config()).await;
    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let response = server.chat("w", options).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let events = events_of(response).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let chunks: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk"),
        "{events:?}"
    );
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let pieces: Vec<&str> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(pieces, ["", "x", "y", "z"]);
    let finishes: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["finish_reason"])
        .filter(|finish| finish.is_string())
        .collect();
    assert_eq!(finishes, [&json!("stop")]);
    let usages: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["usage"])
        .filter(|usage| usage.is_object())
        .collect();
    assert_eq!(
        usages,
        [&json!({ "prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5 })]
    );
}

#[tokio::test]
async fn an_answer_ends_at_the_number_of_tokens_or_at_a_stop_text() {
    let server = Server::start(config()).await;
    for (more, text, finish) in [
        (json!({ "max_tokens": 2 }), "bc", "length"),
        (
            json!({ "max_completion_tokens": 3, "max_tokens": 1 }),
            "bcd",
            "length",
        ),
        (json!({ "stop": "ef" }), "bcd", "stop"),
        (json!({ "stop": ["x", "de"] }), "bc", "stop"),
        (
            json!({ "temperature": 0 }),
            "bcdefghijklmnopqrstuvwxyz",
            "stop",
        ),
    ] {
        let body = json_of(server.chat("a", more.clone()).await).await;
        assert_eq!(body["choices"][0]["message"]["content"], text, "{more}");
        assert_eq!(body["choices"][0]["finish_reason"], finish, "{more}");
    }
}

#[tokio::test]
async fn an_answer_that_is_not_limited_ends_with_the_context() {
    let server = Server::start(config()).await;
    let body = json_of(server.chat("a", json!({ "ignore_eos": true })).await).await;
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert_eq!(body["usage"]["total_tokens"], CONTEXT);
}

#[tokio::test]
async fn a_text_is_continued_whole_and_as_a_stream() {
    let server = Server::start(config()).await;
    let body = json_of(
        server
            .post("/v1/completions", r#"{"model":"fake","prompt":"v"}"#)
            .await,
    )
    .await;
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"][0]["text"], "wxyz");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    let response = server
        .post(
            "/v1/completions",
            r#"{"model":"fake","prompt":"v","stream":true}"#,
        )
        .await;
    let events = events_of(response).await;
    assert_eq!(events.last().unwrap(), "[DONE]");
    let text: String = events[..events.len() - 1]
        .iter()
        .map(|event| {
            serde_json::from_str::<Value>(event).unwrap()["choices"][0]["text"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(text, "wxyz");
}

#[tokio::test]
async fn sampling_with_a_seed_repeats_itself() {
    let server = Server::start(config()).await;
    let ask = async || {
        let more = json!({ "temperature": 1.5, "top_p": 0.9, "seed": 7 });
        json_of(server.chat("a", more).await).await["choices"][0].clone()
    };
    assert_eq!(ask().await, ask().await);
}

#[tokio::test]
async fn served_names_are_listed_with_the_length_of_their_context() {
    let mut config = config();
    config.served_names.push("organisation/other".to_owned());
    let server = Server::start(config).await;
    let list = json_of(server.get("/v1/models").await).await;
    assert_eq!(list["object"], "list");
    let names: Vec<&Value> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| &model["id"])
        .collect();
    assert_eq!(names, [&json!(MODEL), &json!("organisation/other")]);
    assert_eq!(list["data"][0]["max_model_len"], CONTEXT);
    let one = json_of(server.get("/v1/models/organisation/other").await).await;
    assert_eq!(one["id"], "organisation/other");
}
