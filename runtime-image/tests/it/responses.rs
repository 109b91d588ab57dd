//! The Responses API: the same answers in other words, whole and event by event, and what it cannot have.

use chandler_runtime::config::Config;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::server::{CONTEXT, MODEL, Server, config, error_of, json_of};

async fn ask(server: &Server, more: Value) -> Response {
    let mut body = json!({ "model": MODEL, "input": "v" });
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    server.post("/v1/responses", body.to_string()).await
}

/// Name and data of each event.
async fn events(response: Response) -> Vec<(String, Value)> {
    let text = response.text().await.unwrap();
    text.split("\n\n")
        .filter_map(|event| {
            let (name, data) = event.strip_prefix("event: ")?.split_once("\ndata: ")?;
            Some((name.to_owned(), serde_json::from_str(data).unwrap()))
        })
        .collect()
}

/// Without what differs from answer to answer.
fn anonymous(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            for name in ["id", "call_id", "created_at"] {
                members.remove(name);
            }
            for member in members.values_mut() {
                *member = anonymous(member.take());
            }
        }
        Value::Array(values) => {
            for member in values {
                *member = anonymous(member.take());
            }
        }
        _ => {}
    }
    value
}

#[tokio::test]
async fn a_text_is_answered_with_one_message() {
    let server = Server::start(config()).await;
    let body = json_of(
        ask(
            &server,
            json!({ "instructions": "ab", "store": false, "metadata": { "a": "b" } }),
        )
        .await,
    )
    .await;
    assert!(body["id"].as_str().unwrap().starts_with("resp_"), "{body}");
    for (field, value) in [
        ("object", json!("response")),
        ("status", json!("completed")),
        ("error", Value::Null),
        ("incomplete_details", Value::Null),
        ("store", json!(false)),
        ("metadata", json!({ "a": "b" })),
        ("instructions", json!("ab")),
        ("text", json!({ "format": { "type": "text" } })),
        (
            "usage",
            json!({
                "input_tokens": 3, "input_tokens_details": { "cached_tokens": 0 },
                "output_tokens": 5, "output_tokens_details": { "reasoning_tokens": 0 }, "total_tokens": 8,
            }),
        ),
    ] {
        assert_eq!(body[field], value, "{field}: {body}");
    }
    let expected = json!([{
        "type": "message", "role": "assistant", "status": "completed",
        "content": [{ "type": "output_text", "text": "wxyz", "annotations": [], "logprobs": [] }],
    }]);
    assert_eq!(anonymous(body["output"].clone()), expected);

    let items = json!([
        { "role": "user", "content": "a" },
        { "role": "assistant", "content": [{ "type": "output_text", "text": "b" }] },
        { "role": "user", "content": [{ "type": "input_text", "text": "x" }] },
    ]);
    let body = json_of(ask(&server, json!({ "input": items })).await).await;
    assert_eq!(body["output"][0]["content"][0]["text"], "yz", "{body}");
    assert_eq!(body["usage"]["input_tokens"], 3, "{body}");
}

#[tokio::test]
async fn an_answer_without_enough_tokens_is_incomplete() {
    let server = Server::start(config()).await;
    let body = json_of(ask(&server, json!({ "max_output_tokens": 2 })).await).await;
    assert_eq!(body["status"], "incomplete", "{body}");
    assert_eq!(
        body["incomplete_details"],
        json!({ "reason": "max_output_tokens" })
    );
    assert_eq!(body["output"][0]["status"], "incomplete");
    assert_eq!(body["output"][0]["content"][0]["text"], "wx");
    let stream = json!({ "max_output_tokens": 2, "stream": true });
    let events = events(ask(&server, stream).await).await;
    assert_eq!(events.last().unwrap().0, "response.incomplete");
}

#[tokio::test]
async fn a_stream_tells_how_the_answer_grows_and_ends_with_all_of_it() {
    let server = Server::start(config()).await;
    let more = json!({ "include": ["message.output_text.logprobs"], "top_logprobs": 1 });
    let whole = json_of(ask(&server, more.clone()).await).await;
    let logprobs = &whole["output"][0]["content"][0]["logprobs"];
    assert_eq!(logprobs[0]["token"], "w", "{whole}");
    assert_eq!(logprobs[0]["top_logprobs"].as_array().unwrap().len(), 1);

    let mut streamed = more;
    streamed["stream"] = json!(true);
    let events = events(ask(&server, streamed).await).await;
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let delta = "response.output_text.delta";
    let mut expected = vec![
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ];
    expected.extend([delta; 4]);
    expected.extend([
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]);
    assert_eq!(names, expected);
    let mut text = String::new();
    for (number, (name, data)) in events.iter().enumerate() {
        assert_eq!(data["sequence_number"], number, "{data}");
        assert_eq!(data["type"], *name, "{data}");
        if name == delta {
            text.push_str(data["delta"].as_str().unwrap());
            assert_eq!(data["logprobs"].as_array().unwrap().len(), 1, "{data}");
        }
    }
    assert_eq!(text, "wxyz");
    let last = &events.last().unwrap().1["response"];
    assert_eq!(events[0].1["response"]["id"], last["id"]);
    // The second time the prompt was computed already, but it is shorter than a block.
    assert_eq!(anonymous(last.clone()), anonymous(whole));
}

#[tokio::test]
async fn a_call_that_is_required_is_an_item_of_its_own() {
    let server = Server::start(Config {
        context_length: Some(2_048),
        ..config()
    })
    .await;
    let parameters = json!({
        "type": "object", "properties": { "city": { "enum": ["Paris"] } }, "required": ["city"], "additionalProperties": false,
    });
    let more = json!({
        "tools": [{ "type": "function", "name": "weather", "description": "The weather", "parameters": parameters, "strict": true }],
        "tool_choice": { "type": "function", "name": "weather" },
    });
    let body = json_of(ask(&server, more.clone()).await).await;
    let call = &body["output"][0];
    assert_eq!(call["type"], "function_call", "{body}");
    assert_eq!(call["name"], "weather", "{body}");
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({ "city": "Paris" }));
    assert_eq!(body["output"].as_array().unwrap().len(), 1, "{body}");

    let mut streamed = more.clone();
    streamed["stream"] = json!(true);
    let events = events(ask(&server, streamed).await).await;
    let pieces = events
        .iter()
        .filter(|(name, _)| name == "response.function_call_arguments.delta");
    let text: String = pieces
        .map(|(_, data)| data["delta"].as_str().unwrap())
        .collect();
    assert_eq!(
        serde_json::from_str::<Value>(&text).unwrap(),
        json!({ "city": "Paris" })
    );
    let done = events
        .iter()
        .find(|(name, _)| name == "response.function_call_arguments.done");
    assert_eq!(done.unwrap().1["arguments"], text);

    // What the model called and what came of it go back as they are.
    let input = json!([
        { "role": "user", "content": "q" }, call,
        { "type": "function_call_output", "call_id": call["call_id"], "output": "sunny" },
        { "role": "user", "content": "w" },
    ]);
    let body = json_of(ask(&server, json!({ "input": input, "tools": more["tools"] })).await).await;
    assert_eq!(body["output"][0]["content"][0]["text"], "xyz", "{body}");
}

#[tokio::test]
async fn what_this_server_cannot_do_is_refused_with_its_field() {
    let server = Server::start(config()).await;
    let schema = json!({ "format": { "type": "json_schema", "name": "x", "schema": { "type": "unicorn" } } });
    for (more, param) in [
        (
            json!({ "previous_response_id": "resp_1" }),
            "previous_response_id",
        ),
        (json!({ "store": true }), "store"),
        (json!({ "conversation": "conv_1" }), "conversation"),
        (json!({ "background": true }), "background"),
        (json!({ "tools": [{ "type": "web_search" }] }), "tools"),
        (json!({ "input": [] }), "input"),
        (
            json!({ "input": [{ "role": "wizard", "content": "x" }] }),
            "input",
        ),
        (json!({ "max_output_tokens": 0 }), "max_output_tokens"),
        (json!({ "temperature": 3 }), "temperature"),
        (json!({ "text": schema }), "text"),
        (
            json!({ "tools": [{ "type": "function", "name": "no name" }] }),
            "tools",
        ),
        (json!({ "input": "a".repeat(CONTEXT) }), ""),
    ] {
        let (status, error) = error_of(ask(&server, more.clone()).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{more}: {error}");
        assert!(
            param.is_empty() || error["param"] == param,
            "{more}: {error}"
        );
        let message = error["message"].as_str().unwrap();
        assert!(!message.contains("messages["), "{more}: {message}");
    }
    let (status, _) = error_of(ask(&server, json!({ "model": "gpt-9" })).await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    // Nothing is kept that could be looked up.
    let (status, _) = error_of(server.get("/v1/responses/resp_1").await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}
