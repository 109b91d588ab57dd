//! Answers `hack/bench-vision`, which asks how long pictures and answers about them take: `vision_speed FOLDER THREADS`.
//!
//! Each line of standard input is a [`Command`], and one line of seconds comes back for each.

use std::collections::HashMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use chandler_runtime::compute::Arithmetic;
use chandler_runtime::engine::{Engine, EngineLimits, Event};
use chandler_runtime::metrics::Metrics;
use chandler_runtime::model::{self, Capacity, Setup};
use chandler_runtime::pictures::{Picture, Preparation, Rgb};
use chandler_runtime::request::{Ending, GenerateRequest, PromptPicture, Sampling};
use chandler_runtime::weights::folder;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};

/// Sequences at once.
const SEQUENCES: usize = 8;
/// Rows of a step, as `serve` has them.
const ROWS: usize = 512;
/// Room for 16 pictures of four tiles and their texts, so that a chat's second turn finds those of its first.
const BLOCKS: usize = 16 * 201 + 256;

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Command {
    /// Fit a decoded picture into tiles.
    Prepare(Shown),
    /// Answer all of these at once.
    Ask(Vec<Asked>),
}

/// Width, height and what else tells a picture from others.
type Shown = (usize, usize, u64);

#[derive(Deserialize)]
struct Asked {
    /// What its text tells of: prompts of one story begin alike.
    story: u32,
    /// Tokens of the prompt, pictures included, which stand right after the first.
    prompt: usize,
    pictures: Vec<Shown>,
    /// Of the answer, at least 2.
    tokens: usize,
}

/// In seconds from the command.
#[derive(Serialize)]
struct Took {
    /// To the first token of each answer.
    first: Vec<f64>,
    /// To the last one of all.
    all: f64,
}

struct Bench {
    engine: Engine,
    preparation: Preparation,
    picture_token: u32,
    pictures: HashMap<Shown, Arc<Picture>>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, threads] = arguments.as_slice() else {
        return Err("usage: vision_speed FOLDER THREADS".into());
    };
    let mut bench = Bench::load(Path::new(folder), threads.parse()?)?;
    for line in std::io::stdin().lock().lines() {
        let took = match serde_json::from_str(&line?)? {
            Command::Prepare(shown) => bench.prepare(shown),
            Command::Ask(asked) => bench.ask(&asked).await?,
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&took)?)?;
        out.flush()?;
    }
    Ok(())
}

impl Bench {
    fn load(folder: &Path, threads: usize) -> Result<Self, Box<dyn Error>> {
        let mut opened = folder::open(folder)?;
        let setup = Setup {
            threads,
            ranks: 1,
            dtype: Arithmetic::Auto,
            capacity: Capacity {
                rows: ROWS,
                logits_rows: SEQUENCES,
                blocks: BLOCKS,
            },
        };
        let model = model::load(opened.weights.as_mut(), setup)?;
        let blind = "this model looks at no pictures";
        let picture_token = model.pictures().ok_or(blind)?.token;
        let limits = EngineLimits {
            context_length: 4_096,
            sequences: SEQUENCES,
            queue: SEQUENCES,
            guesses: 0,
            ahead: false,
        };
        let metrics = Arc::new(Metrics::new("bench"));
        let (engine, _) = Engine::start(model, Arc::new(opened.tokenizer), limits, metrics)?;
        Ok(Self {
            engine,
            preparation: opened.preparation.ok_or(blind)?,
            picture_token,
            pictures: HashMap::new(),
        })
    }

    fn prepare(&self, shown: Shown) -> Took {
        let decoded = noise(shown);
        let begin = Instant::now();
        let picture = self.preparation.prepare(&decoded);
        let all = begin.elapsed().as_secs_f64();
        drop(picture);
        Took {
            first: Vec::new(),
            all,
        }
    }

    async fn ask(&mut self, asked: &[Asked]) -> Result<Took, Box<dyn Error>> {
        let requests: Vec<GenerateRequest> =
            asked.iter().map(|asked| self.request(asked)).collect();
        let begin = Instant::now();
        let engine = &self.engine;
        let answers = requests.into_iter().map(|request| async move {
            let mut generation = engine.submit(request, engine.admit()?)?;
            let mut first = None;
            loop {
                match generation.next().await? {
                    Event::Text { .. } => {
                        first.get_or_insert_with(|| begin.elapsed().as_secs_f64());
                    }
                    Event::Finished { .. } => {
                        return first
                            .ok_or_else(|| Box::<dyn Error>::from("an answer had no token"));
                    }
                    Event::Prompt { .. } => {}
                }
            }
        });
        let first = try_join_all(answers).await?;
        let all = begin.elapsed().as_secs_f64();
        Ok(Took { first, all })
    }

    fn request(&mut self, asked: &Asked) -> GenerateRequest {
        let mut prompt: Vec<u32> = (0..asked.prompt as u32)
            .map(|at| (at * 37 + asked.story * 101 + 5) % 500)
            .collect();
        let mut pictures = Vec::new();
        for (index, shown) in asked.pictures.iter().enumerate() {
            let position = index + 1;
            prompt[position] = self.picture_token;
            let picture = self.pictures.entry(*shown).or_insert_with(|| {
                let picture = self.preparation.prepare(&noise(*shown));
                Arc::new(picture)
            });
            pictures.push(PromptPicture {
                position,
                picture: Arc::clone(picture),
            });
        }
        let ending = Ending {
            most_tokens: asked.tokens,
            texts: Vec::new(),
            tokens: Vec::new(),
            ignores_end_tokens: true,
        };
        GenerateRequest {
            pictures,
            // So that each token is told, whether or not it completes a character.
            logprobs: Some(0),
            ..GenerateRequest::new(prompt, Sampling::greedy(), ending)
        }
    }
}

/// A picture of random pixels, whose time does not depend on them.
fn noise((width, height, seed): Shown) -> Rgb {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let pixels = (0..3 * width * height).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    Rgb {
        width,
        height,
        pixels: pixels.collect(),
    }
}
