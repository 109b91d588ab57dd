//! The engine over tiny real weights: what else runs, how prompts are cut, what the arena still knows and what is guessed
//! change no bit of an answer.

use std::path::Path;
use std::sync::Arc;

use chandler_runtime::compute::{Arithmetic, multiplies_bf16};
use chandler_runtime::engine::{Engine, EngineLimits, Event, Finish, TokenLogprobs};
use chandler_runtime::metrics::Metrics;
use chandler_runtime::model::{self, Capacity, Setup};
use chandler_runtime::request::{Ending, GenerateRequest, Sampling};
use chandler_runtime::weights::folder;

use crate::golden::{cases, fixture};
use crate::server::PATIENCE;

/// How an engine is set up for a test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) rows: usize,
    pub(crate) blocks: usize,
    pub(crate) sequences: usize,
    pub(crate) guesses: usize,
    pub(crate) ahead: bool,
    pub(crate) dtype: Arithmetic,
}

pub(crate) const ROOMY: Settings = Settings {
    rows: 256,
    blocks: 400,
    sequences: 8,
    guesses: 0,
    ahead: false,
    dtype: Arithmetic::Float32,
};

/// Both ways to compute, where this machine has both.
#[expect(clippy::print_stdout, reason = "what is not tested is told")]
pub(crate) fn arithmetics() -> Vec<Arithmetic> {
    if multiplies_bf16() {
        return vec![Arithmetic::Float32, Arithmetic::Auto];
    }
    println!("neither AVX512-BF16 nor AMX: rounded inputs are not tested");
    vec![Arithmetic::Float32]
}

fn start(settings: Settings) -> (Engine, Arc<Metrics>) {
    start_on(&fixture("model"), settings)
}

pub(crate) fn start_on(model: &Path, settings: Settings) -> (Engine, Arc<Metrics>) {
    let opened = folder::open(model).unwrap();
    let mut weights = opened.weights;
    let capacity = Capacity {
        rows: settings.rows,
        logits_rows: settings.sequences + 4,
        blocks: settings.blocks,
    };
    let model = model::load(
        weights.as_mut(),
        Setup {
            threads: 2,
            ranks: 1,
            dtype: settings.dtype,
            capacity,
        },
    )
    .unwrap();
    let limits = EngineLimits {
        context_length: 1_024,
        sequences: settings.sequences,
        queue: 64,
        guesses: settings.guesses,
        ahead: settings.ahead,
    };
    let metrics = Arc::new(Metrics::new("tiny"));
    let tokenizer = Arc::new(opened.tokenizer);
    let (engine, _) = Engine::start(model, tokenizer, limits, Arc::clone(&metrics)).unwrap();
    (engine, metrics)
}

/// All that one answer brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenLogprobs>,
    pub(crate) finish: Option<Finish>,
    pub(crate) cached: usize,
}

impl Answer {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.token).collect()
    }
}

/// Log probabilities of a prompt, and its answers.
type Answered = (Vec<Option<TokenLogprobs>>, Vec<Answer>);

pub(crate) async fn ask(engine: &Engine, request: GenerateRequest) -> Answered {
    let choices = request.choices;
    let permit = engine.admit_choices(choices).unwrap();
    let mut generation = engine.submit(request, permit).unwrap();
    let (mut prompt, mut answers) = (Vec::new(), vec![Answer::default(); choices]);
    while answers.iter().any(|answer| answer.finish.is_none()) {
        match tokio::time::timeout(PATIENCE, generation.next())
            .await
            .expect("the engine goes on")
            .unwrap()
        {
            Event::Prompt { logprobs } => prompt = logprobs,
            Event::Text {
                choice,
                text,
                tokens,
            } => {
                answers[choice].text.push_str(&text);
                answers[choice].tokens.extend(tokens);
            }
            Event::Finished {
                choice,
                finish,
                cached_tokens,
                ..
            } => {
                answers[choice].finish = Some(finish);
                answers[choice].cached = cached_tokens;
            }
        }
    }
    (prompt, answers)
}

/// Equal floats of one sign have equal bits.
pub(crate) fn assert_same(one: &Answered, other: &Answered, context: &str) {
    assert_eq!(one.0, other.0, "{context}: prompt");
    for (one, other) in one.1.iter().zip(&other.1) {
        assert_eq!(one.tokens, other.tokens, "{context}");
        assert_eq!((&one.text, one.finish), (&other.text, other.finish));
    }
}

pub(crate) fn request(prompt: Vec<u32>, most_tokens: usize) -> GenerateRequest {
    let ending = Ending {
        most_tokens,
        texts: Vec::new(),
        tokens: Vec::new(),
        ignores_end_tokens: true,
    };
    GenerateRequest {
        logprobs: Some(3),
        ..GenerateRequest::new(prompt, Sampling::greedy(), ending)
    }
}

/// A prompt that begins like the others' and goes on in its own way.
fn prompt(length: usize, own: usize) -> Vec<u32> {
    (0..length)
        .map(|at| {
            let shared = if at < length - own { 0 } else { length as u32 };
            (at as u32 * 37 + shared * 11 + 5) % 500
        })
        .collect()
}

/// Requests of many kinds.
fn mixture() -> Vec<GenerateRequest> {
    let mut requests = Vec::new();
    for (index, (length, own)) in [
        (1, 1),
        (31, 3),
        (32, 1),
        (33, 2),
        (65, 1),
        (100, 4),
        (150, 60),
        (200, 5),
        (200, 5),
        (257, 20),
    ]
    .into_iter()
    .enumerate()
    {
        let mut request = request(prompt(length, own), 5 + index * 5);
        if index % 2 == 1 {
            request.sampling = Sampling {
                temperature: 1.5,
                top_p: 0.95,
                frequency: 0.3,
                repetition: 1.1,
                bias: vec![(7, 2.0)],
                seed: index as u64,
                ..Sampling::greedy()
            };
        }
        request.choices = 1 + index % 3;
        request.prompt_logprobs = (index % 4 == 2).then_some(2);
        requests.push(request);
    }
    requests
}

#[tokio::test]
async fn company_chunks_cache_copies_and_preemption_change_no_bit_of_an_answer() {
    for dtype in arithmetics() {
        change_no_bit_of_an_answer(Settings { dtype, ..ROOMY }).await;
    }
}

async fn change_no_bit_of_an_answer(roomy: Settings) {
    let mut alone = Vec::new();
    let (engine, _) = start(roomy);
    for (index, mut request) in mixture().into_iter().enumerate() {
        // A salt of its own finds nothing of the others.
        request.salt = index.to_string();
        alone.push(ask(&engine, request).await);
    }
    let tight = Settings {
        rows: 19,
        blocks: 13,
        sequences: 5,
        guesses: 4,
        ..roomy
    };
    let small = Settings { rows: 8, ..tight };
    let large = Settings {
        blocks: 300,
        ..roomy
    };
    let early = |settings: Settings| Settings {
        ahead: true,
        ..settings
    };
    for settings in [
        tight,
        small,
        large,
        early(tight),
        early(small),
        early(large),
    ] {
        let (engine, metrics) = start(settings);
        for round in 0..2 {
            let asked = mixture().into_iter().map(|request| ask(&engine, request));
            let together = futures::future::join_all(asked).await;
            for (index, (one, other)) in alone.iter().zip(together).enumerate() {
                let context = format!("request {index} in round {round} with {settings:?}");
                assert_same(one, &other, &context);
            }
        }
        assert!(metrics.prefix_hits.get() > 0);
        let text = metrics.text();
        if settings.blocks == tight.blocks {
            assert!(!text.contains("vllm:num_preemptions_total{model_name=\"tiny\"} 0"));
            // Whether an answer repeats itself is known of the arithmetic that is the same on every processor.
            if settings.dtype == Arithmetic::Float32 {
                assert_eq!(metrics.confirmed.get() > 0, !settings.ahead);
            }
        }
        until(|| metrics.running.get() == 0).await;
        assert!(
            metrics
                .text()
                .contains("kv_cache_usage_perc{model_name=\"tiny\"} 0.0"),
            "blocks are still held"
        );
    }
}

pub(crate) async fn until(reached: impl Fn() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !reached() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    });
    waited.await.expect("it is reached in time");
}

#[tokio::test]
async fn greedy_answers_are_the_reference_s() {
    for guesses in [0, 8] {
        let (engine, _) = start(Settings { guesses, ..ROOMY });
        for case in cases() {
            let (_, answers) = ask(&engine, request(case.prompt_tokens, 32)).await;
            assert_eq!(answers[0].ids(), case.greedy_ids, "{}", case.name);
        }
    }
}

#[tokio::test]
async fn a_prefix_that_is_still_being_computed_is_computed_once() {
    let (engine, metrics) = start(Settings { rows: 64, ..ROOMY });
    let asked = (0..6).map(|index| {
        let mut tokens = prompt(320, 1);
        tokens.push(index);
        ask(&engine, request(tokens, 2))
    });
    let answers = futures::future::join_all(asked).await;
    let cached: usize = answers.iter().map(|(_, answers)| answers[0].cached).sum();
    assert_eq!(cached, 5 * 320);
    assert_eq!(metrics.prefix_hits.get(), 5 * 320);
    assert_eq!(metrics.prefix_queries.get(), 6 * 321);
    // Another tenant finds nothing of it.
    let stranger = GenerateRequest {
        salt: "stranger".to_owned(),
        ..request(prompt(320, 1), 2)
    };
    assert_eq!(ask(&engine, stranger).await.1[0].cached, 0);
}

#[tokio::test]
async fn the_choices_of_one_prompt_differ_and_come_again_with_the_seed() {
    let (engine, metrics) = start(ROOMY);
    let sampled = || {
        let mut request = request(prompt(40, 1), 12);
        request.choices = 5;
        request.sampling = Sampling {
            temperature: 2.0,
            seed: 3,
            ..Sampling::greedy()
        };
        request
    };
    let (_, first) = ask(&engine, sampled()).await;
    let (_, again) = ask(&engine, sampled()).await;
    // The second time finds the prompt's first block.
    for (one, other) in first.iter().zip(&again) {
        assert_eq!(one.tokens, other.tokens);
    }
    for (index, answer) in first.iter().enumerate() {
        assert_eq!(answer.finish, Some(Finish::Length));
        assert!(
            first[..index]
                .iter()
                .all(|other| other.ids() != answer.ids())
        );
    }
    // The second choice is what its seed gives alone.
    let mut alone = sampled();
    (alone.choices, alone.sampling.seed) = (1, 4);
    assert_eq!(ask(&engine, alone).await.1[0].tokens, first[1].tokens);
    assert_eq!(metrics.prompt_tokens.get(), 3 * 40);
}

#[tokio::test]
async fn a_prompt_alone_can_be_asked_for_with_its_log_probabilities() {
    let (engine, _) = start(ROOMY);
    let tokens = prompt(50, 1);
    let asked = GenerateRequest {
        prompt_logprobs: Some(4),
        ..request(tokens.clone(), 0)
    };
    let (noted, answers) = ask(&engine, asked).await;
    assert_eq!((noted.len(), answers[0].ids().len()), (50, 0));
    assert!(noted[0].is_none());
    // What stands at a place is what an answer at this place is chosen from.
    for at in [1, 17, 32, 49] {
        let noted = noted[at].as_ref().unwrap();
        assert_eq!(noted.token, tokens[at]);
        let (_, answers) = ask(&engine, request(tokens[..at].to_vec(), 1)).await;
        assert_eq!(answers[0].tokens[0].top, noted.top[..3]);
    }
}

#[tokio::test]
async fn who_leaves_gives_all_blocks_back() {
    let (engine, metrics) = start(ROOMY);
    let mut asked = request(prompt(300, 1), 700);
    asked.choices = 3;
    let permit = engine.admit_choices(3).unwrap();
    let mut generation = engine.submit(asked, permit).unwrap();
    generation.next().await.unwrap();
    drop(generation);
    let text = || metrics.text();
    until(|| text().contains("finished_reason=\"abort\"} 3")).await;
    until(|| text().contains("kv_cache_usage_perc{model_name=\"tiny\"} 0.0")).await;
    engine.idle().await;
}
