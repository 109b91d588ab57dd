//! Pictures over the API: a tiny model behind real sockets answers about them, and refuses what it cannot read.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chandler_runtime::config::Config;
use chandler_runtime::model::fake::FakeControl;
use chandler_runtime::serve::load;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{MODEL, Server, config, error_of, json_of};
use crate::vision::{cases, fixture};

async fn start(images_per_prompt: Option<usize>) -> Server {
    start_with(Config {
        images_per_prompt,
        ..config()
    })
    .await
}

pub(crate) async fn start_with(settings: Config) -> Server {
    let settings = Config {
        model: fixture("model"),
        context_length: Some(512),
        kv_cache_memory_bytes: Some(4 << 20),
        threads: 2,
        ..settings
    };
    let given = settings.clone();
    let control = Arc::new(FakeControl::default());
    let server = Server::start_with(settings, control, move || load(&given)).await;
    server.until_ready().await;
    server
}

pub(crate) fn picture(bytes: &[u8]) -> Value {
    let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
    json!({ "type": "image_url", "image_url": { "url": url, "detail": "auto" } })
}

pub(crate) fn file(name: &str) -> Vec<u8> {
    std::fs::read(fixture("images").join(name)).unwrap()
}

pub(crate) fn text(text: &str) -> Value {
    json!({ "type": "text", "text": text })
}

pub(crate) fn asked(parts: &[Value]) -> Value {
    json!({
        "model": MODEL,
        "messages": [{ "role": "user", "content": parts }],
        "max_tokens": 8,
        "temperature": 0,
        "ignore_eos": true,
        "logprobs": true,
    })
}

pub(crate) async fn answer(server: &Server, body: &Value) -> Value {
    let response = server.post("/v1/chat/completions", body.to_string()).await;
    let status = response.status();
    let body = json_of(response).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    body
}

#[tokio::test]
async fn an_answer_about_pictures_is_the_reference_s_and_counts_its_prompt_as_the_reference_does() {
    let server = start(None).await;
    for (name, parts) in [
        (
            "one_image_square",
            vec![picture(&file("square.png")), text("What is in this image?")],
        ),
        (
            "one_image_big_text_first",
            vec![
                text("Look at this: "),
                picture(&file("big.png")),
                text(" and tell me the colours."),
            ],
        ),
        (
            "two_images_interleaved",
            vec![
                picture(&file("landscape.png")),
                text("This is the first image. "),
                picture(&file("portrait.png")),
                text("This is the second. Compare them."),
            ],
        ),
    ] {
        let case = cases().into_iter().find(|case| case.name == name).unwrap();
        let tokenizer = chandler_runtime::weights::folder::open(&fixture("model"))
            .unwrap()
            .tokenizer;
        let answer = answer(&server, &asked(&parts)).await;
        assert_eq!(
            answer["usage"]["prompt_tokens"],
            case.prompt_tokens.len(),
            "{name}"
        );
        let said = answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .unwrap();
        let said: Vec<Vec<u8>> = said
            .iter()
            .map(|token| serde_json::from_value(token["bytes"].clone()).unwrap())
            .collect();
        let expected: Vec<Vec<u8>> = case.greedy_ids[..8]
            .iter()
            .map(|token| tokenizer.shown(*token).to_vec())
            .collect();
        assert_eq!(said, expected, "{name}");
    }
    // The second turn of a chat finds the picture of the first.
    let counted = "chandler_pictures_encoded_total{model_name=\"fake\"} 4";
    server.until_counted(counted).await;
    let again = asked(&[picture(&file("square.png")), text("What is in this image?")]);
    answer(&server, &again).await;
    server.until_counted(counted).await;
}

#[tokio::test]
async fn a_chat_of_three_turns_about_two_pictures_looks_at_each_once() {
    let server = start(Some(2)).await;
    let turn = |role: &str, content: Value| json!({ "role": role, "content": content });
    let two = json!([
        picture(&file("landscape.png")),
        text("This is the first image. "),
        picture(&file("portrait.png")),
        text("This is the second. Compare them."),
    ]);
    let mut body = asked(&[]);
    body["messages"] = json!([turn("user", two)]);
    let mut reused = Vec::new();
    for question in ["Which is brighter?", "Why?", ""] {
        let answer = answer(&server, &body).await;
        let usage = &answer["usage"];
        let prompt = usage["prompt_tokens"].as_u64().unwrap();
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
        reused.push((prompt, cached.unwrap()));
        let said = answer["choices"][0]["message"]["content"].clone();
        let messages = body["messages"].as_array_mut().unwrap();
        messages.push(turn("assistant", said));
        messages.push(turn("user", json!([text(question)])));
        // Each was looked at in the first turn, and never again.
        let encoded = "chandler_pictures_encoded_total{model_name=\"fake\"} 2";
        server.until_counted(encoded).await;
    }
    let [(first, none), (second, most), (_, more)] = reused[..] else {
        panic!("{reused:?}");
    };
    assert_eq!(none, 0);
    // All full blocks of the turn before, its two pictures among them.
    assert!(most >= first / 32 * 32, "{reused:?}");
    assert!(more >= second / 32 * 32, "{reused:?}");
}

#[tokio::test]
async fn the_responses_api_shows_pictures_as_chats_do() {
    let server = start(Some(2)).await;
    let shown = |name: &str| {
        let url = picture(&file(name))["image_url"]["url"].clone();
        json!({ "type": "input_image", "image_url": url, "detail": "auto" })
    };
    let written = |text: &str| json!({ "type": "input_text", "text": text });
    let post = async |content: Value| {
        let body = json!({
            "model": MODEL,
            "instructions": "Look closely.",
            "input": [{ "role": "user", "content": content }],
            "max_output_tokens": 8,
            "temperature": 0,
        });
        server.post("/v1/responses", body.to_string()).await
    };
    let response = post(json!([
        written("Look at this: "),
        shown("big.png"),
        written(" and this: "),
        shown("square.png"),
    ]))
    .await;
    let status = response.status();
    let body = json_of(response).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let mut chat = asked(&[
        text("Look at this: "),
        picture(&file("big.png")),
        text(" and this: "),
        picture(&file("square.png")),
    ]);
    let messages = chat["messages"].as_array_mut().unwrap();
    messages.insert(0, json!({ "role": "system", "content": "Look closely." }));
    chat["ignore_eos"] = json!(false);
    let chat = answer(&server, &chat).await;
    let said = &body["output"][0]["content"][0]["text"];
    assert_eq!(*said, chat["choices"][0]["message"]["content"], "{body}");
    assert_eq!(
        body["usage"]["input_tokens"],
        chat["usage"]["prompt_tokens"]
    );

    let spoilt = json!({ "type": "input_image", "image_url": "data:image/png;base64,@" });
    let uploaded = json!({ "type": "input_image", "file_id": "file-1" });
    for (content, expected) in [
        (
            json!([written("?"), spoilt]),
            "input[0].content[1].image_url cannot be read",
        ),
        (
            json!([written("?"), uploaded]),
            "input[0].content[1].image_url is missing",
        ),
        (
            json!([shown("tiny.png"), shown("tiny.png"), shown("tiny.png")]),
            "input has 3 pictures",
        ),
    ] {
        let (status, error) = error_of(post(content).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
        assert_eq!(error["param"], "input", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with(expected), "{message}");
    }
}

#[tokio::test]
async fn more_pictures_than_the_limit_are_refused_with_the_numbers() {
    let server = start(Some(1)).await;
    let two = asked(&[picture(&file("square.png")), picture(&file("tiny.png"))]);
    let response = server.post("/v1/chat/completions", two.to_string()).await;
    let (status, error) = error_of(response).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    let message = error["message"].as_str().unwrap();
    assert!(
        message.contains("2 pictures") && message.contains("at most 1"),
        "{message}"
    );
    answer(&server, &asked(&[picture(&file("square.png")), text("?")])).await;
}

/// A picture's bytes with some of them replaced.
fn spoilt(name: &str, at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = file(name);
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

#[tokio::test]
async fn bad_pictures_are_answered_and_the_server_goes_on() {
    let server = start(None).await;
    let url = |url: &str| json!({ "type": "image_url", "image_url": { "url": url } });
    let square = file("square.png");
    let bad: Vec<(&str, Value)> = vec![
        ("no URL", json!({ "type": "image_url" })),
        ("a URL that is fetched", url("https://example.com/a.png")),
        (
            "the cloud's metadata",
            url("http://169.254.169.254/latest/meta-data"),
        ),
        (
            "a backslash in a host",
            url("http://example.com\\@127.0.0.1/a.png"),
        ),
        ("a file", url("file:///etc/passwd")),
        ("no base64", url("data:image/png,abc")),
        ("broken base64", url("data:image/png;base64,@@@@")),
        ("nothing", picture(b"")),
        ("text", picture(b"What is this?")),
        (
            "SVG",
            picture(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>"),
        ),
        (
            "JPEG 2000",
            picture(b"\x00\x00\x00\x0cjP  \x0d\x0a\x87\x0a"),
        ),
        ("BMP", picture(b"BM\x3a\0\0\0\0\0\0\0\x36\0\0\0")),
        ("TIFF", picture(b"II*\0\x08\0\0\0")),
        ("a cut PNG", picture(&square[..square.len() / 2])),
        ("a PNG's signature", picture(&square[..8])),
        ("a width of 0", picture(&spoilt("square.png", 16, &[0; 4]))),
        (
            "a PNG of 2^31 columns",
            picture(&spoilt("square.png", 16, &[0x7f, 0xff, 0xff, 0xff])),
        ),
        (
            "a wrong checksum",
            picture(&spoilt("square.png", 29, &[1, 2, 3, 4])),
        ),
        ("a GIF bomb", picture(b"GIF89a\xff\xff\xff\xff\0\0\0")),
        (
            "a cut GIF",
            picture(b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0"),
        ),
        ("a cut JPEG", picture(b"\xff\xd8\xff\xe0\0\x10JFIF\0")),
        ("a JPEG without a frame", picture(b"\xff\xd8\xff\xd9")),
        ("a cut WebP", picture(b"RIFF\x1a\0\0\0WEBPVP8L")),
        (
            "a WebP of 2^24 columns",
            picture(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff"),
        ),
        (
            "a kind that there is not",
            json!({ "type": "video_url", "video_url": { "url": "data:" } }),
        ),
    ];
    let tried = bad.len();
    let mut answered = 0;
    for (what, part) in bad {
        let body = asked(&[text("Look: "), part]);
        let response = server.post("/v1/chat/completions", body.to_string()).await;
        let (status, error) = error_of(response).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{what}: {error}");
        assert_eq!(error["param"], "messages", "{what}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.starts_with("messages[0].content[1]"),
            "{what}: {message}"
        );
        // Fixed texts: nothing of what a decoder says.
        assert!(message.len() < 200, "{what}: {message}");
        answered += 1;
    }
    println!("figure bad_images_tried {tried}\nfigure bad_images_answered {answered}");
    let assistant = json!({
        "model": MODEL,
        "messages": [{ "role": "assistant", "content": [picture(&square)] }],
    });
    let response = server
        .post("/v1/chat/completions", assistant.to_string())
        .await;
    assert_eq!(error_of(response).await.0, StatusCode::BAD_REQUEST);
    // The name of the picture's token is text, and a prompt of tokens cannot show what is not there.
    let typed = asked(&[text("<|image|><|image|> what is this?")]);
    answer(&server, &typed).await;
    let tokens = json!({ "model": MODEL, "prompt": [5, 768, 6], "max_tokens": 1 });
    let response = server.post("/v1/completions", tokens.to_string()).await;
    assert_eq!(error_of(response).await.0, StatusCode::BAD_REQUEST);
    answer(&server, &asked(&[picture(&square), text("?")])).await;
}

#[tokio::test]
async fn more_pictures_than_memory_has_room_for_are_refused_before_they_are_read() {
    let server = start(None).await;
    let many: Vec<Value> = (0..900).map(|_| picture(&file("tiny.png"))).collect();
    let response = server
        .post("/v1/chat/completions", asked(&many).to_string())
        .await;
    let (status, error) = error_of(response).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{error}");
}
