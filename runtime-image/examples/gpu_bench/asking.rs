//! Requests to the engine, and how long they take.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use chandler_runtime::config::Config;
use chandler_runtime::engine::{Engine, EngineLimits, Event};
use chandler_runtime::metrics::Metrics;
use chandler_runtime::pictures::{Picture, Preparation, Rgb};
use chandler_runtime::request::{Ending, GenerateRequest, PromptPicture, Sampling};
use chandler_runtime::serve::Loaded;
use futures::future::try_join_all;

/// Pixels on a side of a picture: four tiles.
const SIDE: usize = 1_120;

pub(crate) struct Asker {
    engine: Engine,
    preparation: Preparation,
    picture_token: u32,
    /// Prompts so far, so that none begins like another unless it is to.
    stories: u32,
}

/// A prompt that is asked again and again.
#[derive(Clone)]
struct Prompt {
    story: u32,
    tokens: usize,
    picture: Option<Arc<Picture>>,
}

impl Asker {
    pub(crate) fn start(loaded: Loaded, config: &Config) -> Result<Self, Box<dyn Error>> {
        let blind = "this model looks at no pictures";
        let picture_token = loaded.model.pictures().ok_or(blind)?.token;
        let limits = EngineLimits {
            context_length: loaded.context_length,
            sequences: config.max_sequences,
            queue: config.max_queue,
            guesses: 0,
            ahead: loaded.model.chooses(),
        };
        let metrics = Arc::new(Metrics::new("bench"));
        let (engine, _) = Engine::start(loaded.model, Arc::new(loaded.tokenizer), limits, metrics)?;
        Ok(Self {
            engine,
            preparation: loaded.preparation.ok_or(blind)?,
            picture_token,
            stories: 0,
        })
    }

    /// The first requests find everything in place.
    pub(crate) async fn warm(&mut self) -> Result<(), Box<dyn Error>> {
        let picture = Some(self.picture());
        let prompt = self.prompt(64, picture);
        self.ask(&[prompt], 4).await?;
        Ok(())
    }

    /// Seconds of a token of each of so many answers: what more tokens take longer, once all before them is computed.
    pub(crate) async fn decode(
        &mut self,
        answers: usize,
        context: usize,
        [short, long]: [usize; 2],
        looks: bool,
    ) -> Result<f64, Box<dyn Error>> {
        let prompts: Vec<Prompt> = (0..answers)
            .map(|_| {
                let picture = looks.then(|| self.picture());
                self.prompt(context, picture)
            })
            .collect();
        self.ask(&prompts, short).await?;
        let less = self.ask(&prompts, short).await?;
        let more = self.ask(&prompts, long).await?;
        Ok((more - less) / (long - short) as f64)
    }

    /// Seconds until a prompt of so many tokens is computed.
    pub(crate) async fn prefill(&mut self, tokens: usize) -> Result<f64, Box<dyn Error>> {
        let prompt = self.prompt(tokens, None);
        self.ask(&[prompt], 1).await
    }

    /// Seconds that each of so many pictures takes which nobody has shown before: a prompt with it, less one with a known picture.
    pub(crate) async fn encode(&mut self, pictures: usize) -> Result<f64, Box<dyn Error>> {
        let mut seconds = 0.0;
        for _ in 0..pictures {
            let picture = self.picture();
            let new = self.prompt(16, Some(Arc::clone(&picture)));
            let known = self.prompt(16, Some(picture));
            seconds += self.ask(&[new], 1).await? - self.ask(&[known], 1).await?;
        }
        Ok(seconds / pictures as f64)
    }

    /// Seconds until all are answered.
    async fn ask(&self, prompts: &[Prompt], tokens: usize) -> Result<f64, Box<dyn Error>> {
        let engine = &self.engine;
        let begin = Instant::now();
        let answers = prompts.iter().map(|prompt| async move {
            let request = self.request(prompt, tokens);
            let mut generation = engine.submit(request, engine.admit()?)?;
            loop {
                if let Event::Finished {
                    completion_tokens, ..
                } = generation.next().await?
                {
                    return Ok::<_, Box<dyn Error>>(completion_tokens);
                }
            }
        });
        let counts = try_join_all(answers).await?;
        let seconds = begin.elapsed().as_secs_f64();
        if counts.iter().any(|count| *count != tokens) {
            return Err(format!("answers of {counts:?} tokens, expected {tokens}").into());
        }
        Ok(seconds)
    }

    fn prompt(&mut self, tokens: usize, picture: Option<Arc<Picture>>) -> Prompt {
        self.stories += 1;
        Prompt {
            story: self.stories,
            tokens,
            picture,
        }
    }

    fn picture(&mut self) -> Arc<Picture> {
        self.stories += 1;
        Arc::new(self.preparation.prepare(&noise(self.stories)))
    }

    fn request(&self, prompt: &Prompt, tokens: usize) -> GenerateRequest {
        let mut words: Vec<u32> = (0..prompt.tokens as u32)
            .map(|at| (at * 37 + prompt.story * 101 + 5) % 500)
            .collect();
        let mut pictures = Vec::new();
        if let Some(picture) = &prompt.picture {
            words[1] = self.picture_token;
            pictures.push(PromptPicture {
                position: 1,
                picture: Arc::clone(picture),
            });
        }
        let ending = Ending {
            most_tokens: tokens,
            texts: Vec::new(),
            tokens: Vec::new(),
            ignores_end_tokens: true,
        };
        GenerateRequest {
            pictures,
            ..GenerateRequest::new(words, Sampling::greedy(), ending)
        }
    }
}

/// A picture of random pixels, whose time does not depend on them.
fn noise(seed: u32) -> Rgb {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let pixels = (0..3 * SIDE * SIDE).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    });
    Rgb {
        width: SIDE,
        height: SIDE,
        pixels: pixels.collect(),
    }
}
