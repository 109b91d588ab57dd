//! The demo model's real GGUF file, whole and damaged. `make unit` brings it and names it in `CHANDLER_DEMO_MODEL`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use chandler_runtime::config::Config;
use chandler_runtime::serve::load;
use chandler_runtime::tokenizer::Prompt;
use chandler_runtime::weights::LoadError;

use crate::server::{Server, config, json_of};

/// A question to which llama.cpp's greedy answer on the same file is "The capital of France is Paris."
const QUESTION: &str = "What is the capital of France? Answer in one sentence.";

fn demo_model() -> PathBuf {
    let path = std::env::var_os("CHANDLER_DEMO_MODEL").expect(
        "CHANDLER_DEMO_MODEL is not set: run `make unit`, or set it to what hack/demo-model prints",
    );
    PathBuf::from(path)
}

fn config_of(model: &Path) -> Config {
    Config {
        model: model.to_owned(),
        context_length: Some(256),
        max_sequences: 2,
        threads: 2,
        ..config()
    }
}

#[tokio::test]
async fn the_demo_model_answers_greedily_that_the_capital_of_france_is_paris() {
    let config = config_of(&demo_model());
    let settings = config.clone();
    let server =
        Server::start_with(config, std::sync::Arc::default(), move || load(&settings)).await;
    server.until_ready().await;
    let body = json_of(
        server
            .chat(
                QUESTION,
                serde_json::json!({ "temperature": 0, "max_tokens": 24 }),
            )
            .await,
    )
    .await;
    assert_eq!(
        body["choices"][0]["message"]["content"], "The capital of France is Paris.",
        "{body}"
    );
    assert_eq!(body["choices"][0]["finish_reason"], "stop", "{body}");
}

#[test]
fn the_demo_model_s_tokenizer_gives_text_back_byte_by_byte() {
    let loaded = load(&config_of(&demo_model())).unwrap();
    for text in [
        "Hello, world!\n\n  12345 tabs\tand ünïcödé €",
        "日本語 🙂",
        " leading",
        "a\u{0}b",
    ] {
        let prompt = Prompt {
            text: text.to_owned(),
            guard: None,
        };
        let tokens = loaded.tokenizer.encode(&prompt).unwrap();
        let bytes: Vec<u8> = tokens
            .iter()
            .flat_map(|token| loaded.tokenizer.bytes(*token))
            .copied()
            .collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), text);
    }
}

/// Every way to break the file gives an error that names it and says what is wrong; nothing panics.
#[test]
fn a_damaged_gguf_is_named_with_what_is_wrong_with_it() {
    let whole = std::fs::read(demo_model()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("broken.gguf");
    let check = |what: &str, bytes: &[u8], words: &[&str]| {
        std::fs::File::create(&path)
            .unwrap()
            .write_all(bytes)
            .unwrap();
        let error: LoadError = match load(&config_of(&path)) {
            Ok(_) => panic!("{what}: it was loaded"),
            Err(error) => error,
        };
        let message = error.to_string();
        assert!(
            message.contains("broken.gguf"),
            "{what}: the file is not named: {message}"
        );
        assert!(
            words.iter().any(|word| message.contains(word)),
            "{what}: {message}"
        );
    };
    check("empty", b"", &["bytes", "GGUF"]);
    check("no GGUF", b"PK\x03\x04 something else entirely", &["GGUF"]);
    let header = 1_000_000;
    for length in [4, 8, 16, 24, 100, header] {
        check(
            &format!("cut in the header at {length}"),
            &whole[..length],
            &["cut", "bytes", "header", "end"],
        );
    }
    for length in [50_000_000, whole.len() - 1] {
        check(
            &format!("cut in the tensors at {length}"),
            &whole[..length],
            &["bytes"],
        );
    }
    let mut version = whole[..header].to_vec();
    version[4] = 99;
    check("an unknown version", &version, &["version", "GGUF"]);
    let mut counts = whole[..header].to_vec();
    counts[8..24].fill(0xff);
    check(
        "more tensors than bytes",
        &counts,
        &["GGUF", "bytes", "header", "cut", "end"],
    );
}

#[test]
fn a_context_longer_than_the_model_s_is_refused_with_the_longest() {
    let error = load(&Config {
        context_length: Some(8_193),
        ..config_of(&demo_model())
    })
    .err()
    .unwrap();
    assert!(error.to_string().contains("8192"), "{error}");
}
