//! The published Llama 3.2 Vision without its weights: every tensor of both sizes has the name and shape that the loader asks
//! for, what they would take is what the plan says, and a checkpoint of true widths and few layers is served.

use std::cell::RefCell;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use chandler_runtime::answer::Memory;
use chandler_runtime::compute::tensor::{Kind, Tensor};
use chandler_runtime::model::decoder::Decoder;
use chandler_runtime::model::size::{EXTRA_LOGITS, STEP_ROWS};
use chandler_runtime::model::{self, Capacity};
use chandler_runtime::weights::hub_files::{HubFiles, planned_memory};
use chandler_runtime::weights::sight::Sight;
use chandler_runtime::weights::{LoadError, Shape, Weights};
use serde_json::{Value, json};

use crate::checkpoint::{self, Content, Sizes};
use crate::vision::fixture;
use counter::Counter;

mod counter;

/// Files that are opened but not read: tensors are asked for by the files' own names and shapes, and are zeros.
struct Unread {
    files: HubFiles,
    asked: RefCell<Vec<String>>,
}

impl Unread {
    fn note(&self, name: &str, shape: &[usize]) -> Result<(), LoadError> {
        self.asked.borrow_mut().push(self.files.named(name, shape)?);
        Ok(())
    }
}

impl Weights for Unread {
    fn path(&self) -> &Path {
        self.files.path()
    }

    fn architecture(&self) -> &str {
        self.files.architecture()
    }

    fn known_architectures(&self) -> &'static [&'static str] {
        self.files.known_architectures()
    }

    fn shape(&self) -> Result<Shape, LoadError> {
        self.files.shape()
    }

    fn sight(&self) -> Result<Option<Sight>, LoadError> {
        self.files.sight()
    }

    fn packed_bytes(&self) -> u64 {
        self.files.packed_bytes()
    }

    fn has(&self, name: &str) -> bool {
        self.files.has(name)
    }

    fn tensor(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor, LoadError> {
        self.note(name, &[rows, columns])?;
        // Memory that nobody touches is none.
        Ok(Tensor::new(Kind::BF16, rows, columns, vec![0; rows * columns * 2]).unwrap())
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
        self.note(name, &[length])?;
        Ok(vec![0.0; length])
    }
}

/// Blocks of the arena for so many tokens, sequences and pictures in each.
fn blocks(memory: &Memory, context: u64, sequences: u64, images: u64) -> u64 {
    (context.div_ceil(memory.block_tokens) + 1 + images * memory.image_blocks) * sequences
}

fn percent(planned: u64, taken: u64) -> f64 {
    100.0 * (planned as f64 - taken as f64).abs() / taken as f64
}

#[test]
fn both_published_sizes_have_what_the_loader_asks_for_and_take_what_is_planned() {
    let mut worst = 0_f64;
    for (name, sizes, tensors, numbers) in [
        ("11B", Sizes::published_11b(), 906, 10.670),
        ("90B", Sizes::published_90b(), 1_494, 88.593),
    ] {
        let listed = checkpoint::tensors(&sizes);
        let total: usize = listed.iter().map(checkpoint::Tensor::count).sum();
        println!("{name}: {} tensors, {total} numbers", listed.len());
        assert_eq!(listed.len(), tensors);
        assert!((total as f64 / 1e9 - numbers).abs() < 5e-4, "{total}");

        let folder = tempfile::tempdir().unwrap();
        checkpoint::write(folder.path(), &sizes, 5, Content::Holes).unwrap();
        let config = std::fs::read(folder.path().join("config.json")).unwrap();
        let planned = planned_memory(&config).unwrap();
        let mut names: Vec<String> = listed.into_iter().map(|tensor| tensor.name).collect();
        names.sort();
        for (context, sequences, images) in [(8_192, 1, 1), (131_072, 16, 4)] {
            let mut unread = Unread {
                files: HubFiles::open(folder.path()).unwrap(),
                asked: RefCell::default(),
            };
            assert_eq!(model::shape(&unread).unwrap().context_length, 131_072);
            let blocks = blocks(&planned, context, sequences, images);
            let capacity = Capacity {
                rows: STEP_ROWS,
                logits_rows: sequences as usize + EXTRA_LOGITS,
                blocks: blocks as usize,
            };
            let counter = Counter::default();
            let decoder = Decoder::load(&mut unread, counter.clone(), capacity).unwrap();
            let mut asked = unread.asked.take();
            asked.sort();
            assert!(asked == names, "{name}: each tensor is asked for once");

            let tables = decoder.weight_bytes() as u64 - counter.matrices();
            let weights = counter.matrices() + counter.vectors() + tables;
            for (what, planned, taken) in [
                ("weights", planned.weights_bytes, weights),
                (
                    "keys and values",
                    blocks * planned.block_numbers * 4,
                    counter.arena(),
                ),
                ("buffers", planned.buffers(sequences), counter.buffers()),
            ] {
                let error = percent(planned, taken);
                println!(
                    "{name} {context} x {sequences}, {images} pictures: {what} {planned} bytes planned, {taken} taken"
                );
                assert!(error < 0.1, "{name} {what}: {error} %");
                worst = worst.max(error);
            }
        }
    }
    println!("figure memory_plan_error_percent_published {worst:.4}");
}

/// The longest time that a start may take on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(300);

/// A server of its own process, ended with the test.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Served {
    /// Bytes of memory that the process holds, files aside.
    fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:"));
        let number = line.unwrap().split_whitespace().nth(1).unwrap();
        number.parse::<u64>().unwrap() << 10
    }
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

#[tokio::test]
async fn true_widths_with_few_layers_are_served_and_take_what_is_planned() {
    let sizes = Sizes {
        vocabulary: 768,
        ..Sizes::published_11b().with_layers(5, 2, 1)
    };
    let folder = tempfile::tempdir().unwrap();
    checkpoint::write(folder.path(), &sizes, 3, Content::Random).unwrap();
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.json",
    ] {
        std::fs::copy(fixture("model").join(name), folder.path().join(name)).unwrap();
    }
    let config = std::fs::read(folder.path().join("config.json")).unwrap();
    let planned = planned_memory(&config).unwrap();
    let (context, sequences, images) = (512, 1, 1);
    let (api, management) = (free_port(), free_port());
    let mut served = Served(
        Command::new(env!("CARGO_BIN_EXE_chandler-runtime"))
            .args(["serve", "--served-name=random", "--threads=2"])
            .arg(format!("--model={}", folder.path().display()))
            .arg(format!("--context-length={context}"))
            .arg(format!("--max-sequences={sequences}"))
            .arg(format!("--images-per-prompt={images}"))
            .arg(format!("--listen=127.0.0.1:{api}"))
            .arg(format!("--management-listen=127.0.0.1:{management}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    // A second call finds the first one's provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let begun = Instant::now();
    let ready = format!("http://127.0.0.1:{management}/readyz");
    loop {
        let answer = http.get(&ready).send().await;
        if answer.is_ok_and(|answer| answer.status().is_success()) {
            break;
        }
        assert!(served.0.try_wait().unwrap().is_none(), "serve has ended");
        assert!(begun.elapsed() < STARTS_WITHIN, "not ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // A picture of four tiles and a prompt that fills a step touch what is set aside for them: only then is it taken.
    let url = format!(
        "data:image/png;base64,{}",
        BASE64_STANDARD.encode(four_tiles())
    );
    let text = "What is it? ".repeat(26);
    for content in [
        json!("What is it?"),
        json!([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]),
    ] {
        let body = json!({
            "model": "random", "max_completion_tokens": 4, "temperature": 0, "logprobs": true, "ignore_eos": true,
            "messages": [{"role": "user", "content": content}],
        });
        let answer = http
            .post(format!("http://127.0.0.1:{api}/v1/chat/completions"))
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert!(status.is_success(), "{answer}");
        assert_eq!(answer["usage"]["completion_tokens"], 4, "{answer}");
        let tokens = answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .unwrap();
        let finite = |token: &Value| token["logprob"].as_f64().is_some_and(f64::is_finite);
        assert!(tokens.iter().all(finite), "{answer}");
        println!("prompt of {} tokens", answer["usage"]["prompt_tokens"]);
    }

    let taken = served.resident();
    let arena = blocks(&planned, context, sequences, images) * planned.block_numbers * 4;
    let (weights, buffers) = (planned.weights_bytes, planned.buffers(sequences));
    let sum = weights + arena + buffers;
    let error = percent(sum, taken);
    println!(
        "planned {weights} weights + {arena} keys and values + {buffers} buffers = {sum} bytes, taken {taken}"
    );
    println!("figure memory_plan_error_percent {error:.3}");
    assert!(error <= 2.0, "{error} %");
}

/// A picture that takes as many tiles as there may be.
fn four_tiles() -> Vec<u8> {
    let picture = image::RgbImage::from_fn(1_120, 1_120, |x, y| {
        image::Rgb([(x / 5) as u8, (y / 5) as u8, ((x + y) / 9) as u8])
    });
    let mut file = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut file, image::ImageFormat::Png)
        .unwrap();
    file.into_inner()
}
