//! Answers in a given form, and calls of functions, over the API.

use chandler_runtime::config::Config;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{Server, config, error_of, events_of, json_of};

/// Room for the blanks that a model without any idea likes.
fn roomy() -> Config {
    Config {
        context_length: Some(2_048),
        ..config()
    }
}

fn weather() -> Value {
    json!({ "type": "function", "function": {
        "name": "weather",
        "description": "The weather <|end|> of a city",
        "parameters": {
            "type": "object",
            "properties": { "city": { "enum": ["Paris"] }, "days": { "const": 3 } },
            "required": ["city", "days"],
            "additionalProperties": false,
        },
    } })
}

#[tokio::test]
async fn an_answer_follows_its_schema() {
    let server = Server::start(roomy()).await;
    let schema = json!({
        "type": "object",
        "properties": { "z": { "const": "last letter" }, "a": { "enum": [1] } },
        "required": ["z", "a"],
        "additionalProperties": false,
    });
    let expected = json!({ "z": "last letter", "a": 1 });
    for more in [
        json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "n", "schema": schema, "strict": true } } }),
        json!({ "structured_outputs": { "json": schema } }),
        json!({ "guided_json": schema.to_string() }),
        json!({ "structured_outputs": { "json": schema }, "temperature": 1.5, "seed": 3 }),
    ] {
        let body = json_of(server.chat("x", more.clone()).await).await;
        let text = body["choices"][0]["message"]["content"].as_str().unwrap();
        let answer: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{more}: {error}: {body}"));
        assert_eq!(answer, expected, "{more}");
        assert!(
            text.find("\"z\"") < text.find("\"a\""),
            "members come in the order of the schema: {text}"
        );
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
    }
    let choice = json!({ "structured_outputs": { "choice": ["left", "right"] } });
    let body = json_of(server.chat("x", choice).await).await;
    assert!(
        ["left", "right"].contains(&body["choices"][0]["message"]["content"].as_str().unwrap()),
        "{body}"
    );
    for (grammar, expected) in [
        ("start: \"SELECT \" column\ncolumn: \"one\"", "SELECT one"),
        (
            "root ::= \"SELECT \" column (\", \" column){1}\ncolumn ::= [o] \"ne\" # the only one",
            "SELECT one, one",
        ),
    ] {
        let more = json!({ "structured_outputs": { "grammar": grammar } });
        let body = json_of(server.chat("x", more).await).await;
        assert_eq!(body["choices"][0]["message"]["content"], expected, "{body}");
    }
    let plain =
        json!({ "model": "fake", "prompt": "x", "max_tokens": 20, "guided_regex": "[0-9]{3}" })
            .to_string();
    let body = json_of(server.post("/v1/completions", plain).await).await;
    let text = body["choices"][0]["text"].as_str().unwrap();
    assert!(
        text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit()),
        "{body}"
    );
}

#[tokio::test]
async fn forms_that_cannot_be_used_are_refused_with_their_field() {
    let server = Server::start(roomy()).await;
    let long = "a".repeat(300_000);
    let deep = (0..60).fold(
        json!({ "type": "string" }),
        |inner, _| json!({ "type": "array", "items": inner }),
    );
    let cases = [
        (
            json!({ "structured_outputs": { "regex": "(" } }),
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "regex": "" } }),
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "regex": long } }),
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "grammar": "root ::= missing" } }),
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "grammar": "nothing of the kind" } }),
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "choice": [] } }),
            "structured_outputs",
        ),
        (
            json!({ "structured_outputs": { "choice": [""] } }),
            "structured_outputs",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": { "type": "unicorn" } } } }),
            "response_format",
        ),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": { "$ref": "https://example.com/x" } } } }),
            "response_format",
        ),
        (
            json!({ "response_format": { "type": "json_object" }, "ignore_eos": true }),
            "ignore_eos",
        ),
        (
            json!({ "response_format": { "type": "json_object" }, "tools": [weather()], "tool_choice": "required" }),
            "tool_choice",
        ),
        (json!({ "tools": [weather(), weather()] }), "tools"),
        (json!({ "tool_choice": "required" }), "tool_choice"),
        (
            json!({ "chat_template_kwargs": { "add_generation_prompt": false } }),
            "",
        ),
    ];
    for (more, param) in cases {
        let (status, error) = error_of(server.chat("x", more.clone()).await).await;
        let shown: String = more.to_string().chars().take(100).collect();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{shown}: {error}");
        assert!(
            param.is_empty() || error["param"] == param,
            "{shown}: {error}"
        );
        assert!(
            error["message"].as_str().unwrap().len() < 1_000,
            "{shown}: {error}"
        );
    }
    // Deep, but a schema like others.
    let more = json!({ "structured_outputs": { "json": deep }, "max_tokens": 4 });
    assert_eq!(server.chat("x", more).await.status(), StatusCode::OK);
}

/// Grammars that would take forever or all memory: each is refused or cut, and the server lives on.
#[tokio::test]
async fn grammar_bombs_do_no_harm() {
    let server = Server::start(roomy()).await;
    let nested = |depth: usize| {
        let rules: String = (0..depth)
            .map(|n| format!("r{n}: r{m} r{m} r{m} r{m}\n", m = n + 1))
            .collect();
        format!("start: r0\n{rules}r{depth}: \"a\"?\n")
    };
    let wide: Vec<Value> = (0..200).map(|n| json!({ "type": "object", "patternProperties": { format!("^a{{{n}}}.*b"): { "pattern": "(x+x+)+y" } } })).collect();
    for outputs in [
        json!({ "regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}" }),
        json!({ "regex": "(.*a){20}b(.*c){20}" }),
        json!({ "grammar": nested(30) }),
        json!({ "grammar": "start: start start | \"a\" | \"\"" }),
        json!({ "json": { "allOf": wide } }),
        json!({ "json": { "$defs": { "a": { "anyOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }] } }, "$ref": "#/$defs/a" } }),
        json!({ "json": { "type": "array", "minItems": 100_000_000, "items": { "type": "string" } } }),
        json!({ "json": { "type": "string", "minLength": 1_000_000_000 } }),
    ] {
        let shown: String = outputs.to_string().chars().take(80).collect();
        let more = json!({ "structured_outputs": outputs, "max_tokens": 20 });
        let status = server.chat("x", more).await.status();
        assert!(
            [StatusCode::OK, StatusCode::BAD_REQUEST].contains(&status),
            "{shown}: {status}"
        );
    }
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
}

fn check_call(call: &Value) {
    assert_eq!(call["type"], "function", "{call}");
    assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
    assert_eq!(call["function"]["name"], "weather", "{call}");
    let arguments: Value =
        serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert_eq!(arguments, json!({ "city": "Paris", "days": 3 }));
}

#[tokio::test]
async fn a_call_that_is_required_comes_whole_and_as_a_stream() {
    let server = Server::start(roomy()).await;
    let named = json!({ "type": "function", "function": { "name": "weather" } });
    let other = json!({ "type": "function", "function": { "name": "other" } });
    for more in [
        json!({ "tools": [weather()], "tool_choice": "required", "parallel_tool_calls": false }),
        json!({ "tools": [other, weather()], "tool_choice": named }),
        json!({ "tools": [weather()], "tool_choice": named, "temperature": 1, "seed": 5 }),
    ] {
        let body = json_of(server.chat("x", more.clone()).await).await;
        let choice = &body["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{body}");
        assert_eq!(choice["message"]["content"], Value::Null, "{body}");
        assert_eq!(
            choice["message"]["tool_calls"].as_array().unwrap().len(),
            1,
            "{body}"
        );
        check_call(&choice["message"]["tool_calls"][0]);

        let mut streamed = more;
        streamed["stream"] = json!(true);
        let events = events_of(server.chat("x", streamed).await).await;
        assert_eq!(events.last().unwrap(), "[DONE]");
        let mut call = json!({ "function": { "arguments": "" } });
        let (mut pieces, mut finish) = (0, Value::Null);
        for event in &events[..events.len() - 1] {
            let chunk: Value = serde_json::from_str(event).unwrap();
            let choice = &chunk["choices"][0];
            if choice["finish_reason"].is_string() {
                finish = choice["finish_reason"].clone();
            }
            for delta in choice["delta"]["tool_calls"]
                .as_array()
                .into_iter()
                .flatten()
            {
                assert_eq!(delta["index"], 0, "{event}");
                pieces += 1;
                for key in ["id", "type"] {
                    if delta[key].is_string() {
                        call[key] = delta[key].clone();
                    }
                }
                if delta["function"]["name"].is_string() {
                    call["function"]["name"] = delta["function"]["name"].clone();
                }
                let so_far = call["function"]["arguments"].as_str().unwrap();
                call["function"]["arguments"] = json!(format!(
                    "{so_far}{}",
                    delta["function"]["arguments"].as_str().unwrap()
                ));
            }
        }
        check_call(&call);
        assert_eq!(finish, "tool_calls");
        assert!(
            pieces > 3,
            "arguments come piece by piece, not in {pieces} pieces"
        );
    }
}

#[tokio::test]
async fn tools_that_are_only_offered_leave_the_answer_free() {
    let server = Server::start(roomy()).await;
    for more in [
        json!({ "tools": [weather()] }),
        json!({ "tools": [weather()], "tool_choice": "none" }),
    ] {
        let body = json_of(server.chat("w", more).await).await;
        assert_eq!(body["choices"][0]["message"]["content"], "xyz", "{body}");
        assert_eq!(body["choices"][0]["finish_reason"], "stop");
    }
    // A conversation that has called already.
    let messages = json!([
        { "role": "user", "content": "x" },
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "call_1", "type": "function", "function": { "name": "weather", "arguments": "{\"city\": \"Paris\"}" } }] },
        { "role": "tool", "tool_call_id": "call_1", "content": "sunny" },
        { "role": "user", "content": "v" },
    ]);
    let body = json!({ "model": "fake", "messages": messages, "tools": [weather()] }).to_string();
    let body = json_of(server.post("/v1/chat/completions", body).await).await;
    assert_eq!(body["choices"][0]["message"]["content"], "wxyz", "{body}");
}
