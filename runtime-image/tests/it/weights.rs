//! The demo model's real GGUF file, whole and damaged, and small ones whose sizes make no sense. `make unit` brings it and names it in `CHANDLER_DEMO_MODEL`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device};
use chandler_runtime::config::Config;
use chandler_runtime::serve::load;
use chandler_runtime::tokenizer::{Prompt, Tokenizer};
use chandler_runtime::weights::{LoadError, folder};

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

/// A file without tensors but one, and with these sizes in place of sensible ones.
fn sized(path: &Path, wrong: &[(&str, Value)]) {
    let text = |text: &str| Value::String(text.to_owned());
    let tokens = Value::Array(vec![text("a"), text("b")]);
    let mut metadata: BTreeMap<&str, Value> = [
        ("general.architecture", text("llama")),
        ("llama.block_count", Value::U32(1)),
        ("llama.embedding_length", Value::U32(8)),
        ("llama.feed_forward_length", Value::U32(8)),
        ("llama.context_length", Value::U32(64)),
        ("llama.attention.head_count", Value::U32(2)),
        ("llama.attention.key_length", Value::U32(4)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.ggml.merges", Value::Array(Vec::new())),
    ]
    .into();
    metadata.extend(wrong.iter().cloned());
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (*key, value)).collect();
    let zeros = candle_core::Tensor::zeros((2, 8), DType::F32, &Device::Cpu).unwrap();
    let embedding = QTensor::quantize(&zeros, GgmlDType::F32).unwrap();
    let mut file = std::fs::File::create(path).unwrap();
    gguf_file::write(&mut file, &metadata, &[("token_embd.weight", &embedding)]).unwrap();
}

/// Sizes that would divide by zero, wrap around or take all memory are refused before anything is made of them.
#[test]
fn sizes_that_make_no_sense_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sized.gguf");
    let shape = |wrong: &[(&str, Value)]| {
        sized(&path, wrong);
        folder::open(&path).unwrap().weights.shape()
    };
    shape(&[]).expect("the sizes make sense");
    for (key, words) in [
        ("llama.attention.head_count", "number of heads"),
        ("llama.attention.head_count_kv", "number of key heads"),
        ("llama.attention.key_length", "width of a head"),
        ("llama.block_count", "number of layers"),
        ("llama.embedding_length", "hidden size"),
        ("llama.feed_forward_length", "inner size"),
        ("llama.context_length", "context length"),
    ] {
        for value in [
            Value::U32(0),
            Value::U32(u32::MAX),
            Value::U64(1 << 60),
            Value::U64(u64::MAX),
        ] {
            let shown = format!("{key} = {value:?}");
            let error = shape(&[(key, value)]).expect_err(&shown).to_string();
            assert!(error.contains(words), "{shown}: {error}");
        }
    }
    for wrong in [Value::I32(-1), Value::String("2".to_owned())] {
        let key = "llama.attention.head_count";
        let error = shape(&[(key, wrong)]).expect_err("refused").to_string();
        assert!(error.contains(key), "{error}");
    }
}

/// Both made the tokenizers library panic; the first was found by fuzzing.
#[test]
fn merges_that_make_no_token_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("merged.gguf");
    let merges = Value::Array(vec![Value::String("a b".to_owned())]);
    sized(&path, &[("tokenizer.ggml.merges", merges)]);
    let error = folder::open(&path).err().expect("refused").to_string();
    assert!(error.contains(r#""a" and "b" make no token"#), "{error}");
    for merge in [serde_json::json!(["a", "b"]), serde_json::json!("a b")] {
        let json = serde_json::json!({
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [merge]},
        });
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let error = Tokenizer::from_folder(folder.path());
        let error = error.err().expect("refused").to_string();
        assert!(error.contains(r#""a" and "b" make no token"#), "{error}");
    }
}

#[test]
fn tensors_of_more_than_can_be_counted_are_refused_by_name() {
    // The blocks of the first can be counted, their bytes cannot; the other has two tensors that begin at one place.
    for name in ["tensor-of-too-many-bytes", "tensors-at-one-place"] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/fixtures/damaged/{name}.gguf"));
        let error = folder::open(&file).err().expect("refused").to_string();
        assert!(error.contains("makes no sense"), "{name}: {error}");
    }
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
