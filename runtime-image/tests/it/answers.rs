//! What a good request gets: whole, as a stream, as a plain completion; and the list of models.

use serde_json::{Value, json};

use crate::server::{CONTEXT, MODEL, Server, config, events_of, json_of};

fn usage(prompt: usize, completion: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": { "cached_tokens": 0 },
    })
}

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
    assert_eq!(body["usage"], usage(1, 3));
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
    assert_eq!(usages, [&usage(1, 4)]);
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

#[tokio::test]
async fn text_and_messages_become_tokens_and_tokens_text() {
    let server = Server::start(config()).await;
    let ask =
        async |path: &str, body: Value| json_of(server.post(path, body.to_string()).await).await;
    let body = ask(
        "/tokenize",
        json!({ "model": MODEL, "prompt": "aé", "return_token_strs": true }),
    )
    .await;
    assert_eq!(body["tokens"], json!([97, 195, 169]));
    assert_eq!(
        (body["count"].as_u64(), body["max_model_len"].as_u64()),
        (Some(3), Some(CONTEXT as u64))
    );
    assert_eq!(body["token_strs"][0], "a");
    let messages = json!([{ "role": "user", "content": "b<|end|>" }]);
    let body = ask("/tokenize", json!({ "messages": messages })).await;
    assert_eq!(body["count"], 8, "typed control tokens are text: {body}");
    let body = ask(
        "/detokenize",
        json!({ "model": MODEL, "tokens": [97, 195, 169, 256] }),
    )
    .await;
    assert_eq!(body, json!({ "prompt": "aé<|end|>" }));
}

#[tokio::test]
async fn several_answers_and_log_probabilities_come_from_one_prompt() {
    let server = Server::start(config()).await;
    let more = json!({ "n": 3, "logprobs": true, "top_logprobs": 2, "temperature": 0 });
    let body = json_of(server.chat("x", more.clone()).await).await;
    let choices = body["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], "yz");
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let texts: Vec<&Value> = tokens.iter().map(|token| &token["token"]).collect();
        assert_eq!(texts, [&json!("y"), &json!("z"), &json!("<|end|>")]);
        assert_eq!(tokens[0]["bytes"], json!([121]));
        assert_eq!(tokens[0]["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(tokens[0]["logprob"].as_f64().unwrap() > -0.01, "{body}");
    }
    assert_eq!(body["usage"]["completion_tokens"], 9);
    let mut streamed = more;
    streamed["stream"] = json!(true);
    let events = events_of(server.chat("x", streamed).await).await;
    let mut texts = vec![String::new(); 3];
    let mut scored = 0;
    for event in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(event).unwrap();
        let choice = &chunk["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        scored += choice["logprobs"]["content"].as_array().map_or(0, Vec::len);
    }
    assert_eq!((texts, scored), (vec!["yz".to_owned(); 3], 9));
}

#[tokio::test]
async fn a_prompt_is_repeated_and_scored_with_plain_completions() {
    let server = Server::start(config()).await;
    let body =
        json!({ "model": MODEL, "prompt": "ab", "echo": true, "max_tokens": 0, "logprobs": 1 });
    let body = json_of(server.post("/v1/completions", body.to_string()).await).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "ab", "{body}");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b"]));
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert!(
        logprobs["token_logprobs"][1].as_f64().unwrap() > -0.01,
        "b follows a: {body}"
    );
    assert_eq!(logprobs["text_offset"], json!([0, 1]));
}

#[tokio::test]
async fn the_tokens_of_a_prompt_are_scored_whatever_it_is_asked_for_with() {
    let server = Server::start(config()).await;
    let check = |body: &Value, scores: &Value| {
        let scores = scores.as_array().unwrap();
        assert_eq!(scores.len(), 3, "{body}");
        assert_eq!(scores[0], Value::Null, "nothing stands before it: {body}");
        // 98 and 99 are b and c; the likeliest that was asked for is the token itself.
        for (entry, token, text) in [(&scores[1], "98", "b"), (&scores[2], "99", "c")] {
            let found = &entry[token];
            assert_eq!(found["decoded_token"], text, "{body}");
            assert_eq!(found["rank"], 1, "{body}");
            assert!(found["logprob"].as_f64().unwrap() > -0.01, "{body}");
        }
    };
    let more = json!({ "prompt_logprobs": 1, "max_tokens": 1 });
    // The second time all of the prompt could be found in the cache.
    for _ in 0..2 {
        let body = json_of(server.chat("abc", more.clone()).await).await;
        check(&body, &body["prompt_logprobs"]);
    }
    let plain = json!({ "model": MODEL, "prompt": "abc", "prompt_logprobs": 1, "max_tokens": 1 });
    let body = json_of(server.post("/v1/completions", plain.to_string()).await).await;
    check(&body, &body["choices"][0]["prompt_logprobs"]);
    for more in [
        json!({ "prompt_logprobs": 21 }),
        json!({ "prompt_logprobs": 1, "stream": true }),
    ] {
        let (status, error) = crate::server::error_of(server.chat("abc", more).await).await;
        assert_eq!(status, 400, "{error}");
        assert_eq!(error["param"], "prompt_logprobs");
    }
}

#[tokio::test]
async fn only_those_with_the_same_salt_share_computed_prompts() {
    let server = Server::start(config()).await;
    let prompt = "ab".repeat(20);
    let cached = async |salt: Option<&str>| {
        let mut more = json!({ "max_tokens": 1 });
        if let Some(salt) = salt {
            more["cache_salt"] = json!(salt);
        }
        let body = json_of(server.chat(&prompt, more).await).await;
        body["usage"]["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap()
    };
    for salt in [Some("tenant-1"), None, Some("tenant-2")] {
        assert_eq!(cached(salt).await, 0, "nobody with {salt:?} has asked");
        assert_eq!(cached(salt).await, 32, "{salt:?} has asked before");
    }
    assert_eq!(cached(Some("")).await, 32, "an empty salt is none");
}

#[tokio::test]
async fn every_answer_carries_the_number_of_its_request() {
    let server = Server::start(config()).await;
    let response = server.get("/v1/models").await;
    assert!(
        response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .starts_with("req_")
    );
    for (sent, kept) in [
        ("mine-1", true),
        ("with space", false),
        (&*"x".repeat(200), false),
    ] {
        let request = server
            .http
            .get(format!("{}/v1/nothing", server.api))
            .header("x-request-id", sent);
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["x-request-id"] == sent, kept, "{sent}");
    }
}

#[tokio::test]
async fn the_server_describes_itself() {
    let server = Server::start(config()).await;
    let document = json_of(server.get("/openapi.json").await).await;
    assert_eq!(document["openapi"], "3.1.0");
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/v1/responses",
        "/tokenize",
        "/detokenize",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    assert_eq!(
        document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["enum"],
        json!([MODEL])
    );
}
