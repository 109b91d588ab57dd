//! The engine on a played card: tokens that the card chooses are those that the host would choose, what does not fit into the
//! card's memory costs one answer, a card that is lost ends the engine with its reason.

use std::sync::Arc;
use std::time::Instant;

use chandler_runtime::compute::cuda::Settings;
use chandler_runtime::compute::cuda::card::CardError;
use chandler_runtime::compute::cuda::emulated::Emulated;
use chandler_runtime::compute::cuda::matrix::Floats;
use chandler_runtime::engine::{
    Death, Engine, EngineLimits, Event, Generation, Interrupted, SampleError,
};
use chandler_runtime::grammar::{Form, Grammar, Grammars, Thoughts};
use chandler_runtime::metrics::Metrics;
use chandler_runtime::model::Capacity;
use chandler_runtime::request::{Ending, GenerateRequest, Sampling};
use chandler_runtime::weights::folder;
use tokio::sync::oneshot;

use crate::golden::fixture;
use crate::{card, load, settings};

pub(crate) struct Started {
    pub(crate) engine: Engine,
    end: oneshot::Receiver<Option<Death>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) card: Emulated,
}

pub(crate) fn start(ahead: bool) -> Started {
    start_with(ahead, true)
}

/// The same, with steps that are recorded or not.
pub(crate) fn start_with(ahead: bool, graphs: bool) -> Started {
    let settings = Settings {
        invariant: true,
        graphs,
        ..settings(Floats::F32)
    };
    let capacity = Capacity {
        rows: 48,
        logits_rows: 12,
        blocks: 100,
    };
    let card = card();
    let model = load(&card, settings, &fixture("model"), capacity);
    let limits = EngineLimits {
        context_length: 512,
        sequences: 6,
        queue: 16,
        guesses: 0,
        ahead,
    };
    let metrics = Arc::new(Metrics::new("tiny"));
    let tokenizer = Arc::new(folder::open(&fixture("model")).unwrap().tokenizer);
    let (engine, end) = Engine::start(model, tokenizer, limits, Arc::clone(&metrics)).unwrap();
    Started {
        engine,
        end,
        metrics,
        card,
    }
}

fn sampling(seed: u64) -> Sampling {
    match seed % 4 {
        0 => Sampling::greedy(),
        1 => Sampling {
            temperature: 0.8,
            seed,
            ..Sampling::greedy()
        },
        2 => Sampling {
            temperature: 1.3,
            top_k: 20,
            top_p: 0.9,
            bias: vec![(7, 4.0), (9, -100.0), (1 << 20, 1.0)],
            seed,
            ..Sampling::greedy()
        },
        _ => Sampling {
            temperature: 1.0,
            min_p: 0.05,
            seed,
            ..Sampling::greedy()
        },
    }
}

pub(crate) fn request(number: u64, most_tokens: usize, sampling: Sampling) -> GenerateRequest {
    let length = 5 + number as u32 * 13 % 60;
    let prompt = (0..length).map(|at| (at * 37 + number as u32 * 11 + 5) % 500);
    let ending = Ending {
        most_tokens,
        texts: Vec::new(),
        // A token that comes now and then, so that answers end while their next row is computed.
        tokens: (0..500).step_by(37).collect(),
        ignores_end_tokens: true,
    };
    GenerateRequest::new(prompt.collect(), sampling, ending)
}

fn submit(engine: &Engine, request: GenerateRequest) -> Generation {
    let permit = engine.admit().unwrap();
    engine.submit(request, permit).unwrap()
}

/// The text and number of tokens of an answer.
async fn answer(mut generation: Generation) -> Result<(String, usize), Interrupted> {
    let mut all = String::new();
    loop {
        match generation.next().await? {
            Event::Text { text, .. } => all.push_str(&text),
            Event::Finished {
                completion_tokens, ..
            } => return Ok((all, completion_tokens)),
            Event::Prompt { .. } => {}
        }
    }
}

pub(crate) async fn answers(
    engine: &Engine,
    requests: Vec<GenerateRequest>,
) -> Vec<Result<(String, usize), Interrupted>> {
    let begun = requests.into_iter().map(|request| submit(engine, request));
    futures::future::join_all(begun.collect::<Vec<_>>().into_iter().map(answer)).await
}

pub(crate) fn simple_requests() -> Vec<GenerateRequest> {
    let one = |number| request(number, 24, sampling(number));
    (0..8).map(one).collect()
}

#[tokio::test]
async fn tokens_that_the_card_chooses_are_the_host_s() {
    let mut all = Vec::new();
    for ahead in [false, true] {
        let started = start(ahead);
        let mut requests = simple_requests();
        // One that only the host can choose for comes and goes among them.
        requests.insert(
            3,
            GenerateRequest {
                logprobs: Some(1),
                ..request(20, 5, Sampling::greedy())
            },
        );
        let penalized = Sampling {
            frequency: 0.5,
            ..sampling(1)
        };
        requests.push(request(21, 9, penalized));
        let found = answers(&started.engine, requests).await;
        assert!(found.iter().all(Result::is_ok), "{found:?}");
        all.push(found);
        let text = started.metrics.text();
        assert!(text.contains("part=\"host\""), "{text}");
        assert!(text.contains("chandler_device_memory_bytes"), "{text}");
    }
    assert_eq!(all[0], all[1]);
    let lengths: Vec<usize> = all[0].iter().flatten().map(|(_, tokens)| *tokens).collect();
    assert!(lengths.iter().any(|length| *length < 20), "{lengths:?}");
}

/// Seconds that a part of steps took.
fn seconds(metrics: &Metrics, part: &str) -> f64 {
    let text = metrics.text();
    let name =
        format!("chandler_device_step_seconds_total{{model_name=\"tiny\",part=\"{part}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("{part}: {text}"))
        .parse()
        .unwrap()
}

#[tokio::test]
async fn long_answers_are_measured_now_and_then() {
    let (started, begun) = (start(true), Instant::now());
    let mut long = request(2, 300, sampling(1));
    long.ending.tokens.clear();
    let found = answers(&started.engine, vec![long]).await;
    assert_eq!(found[0].as_ref().unwrap().1, 300);
    for part in ["gemm", "attention", "sampling", "other", "host"] {
        assert!(seconds(&started.metrics, part) > 0.0, "{part}");
    }
    // The driver is not asked for the card's memory at every turn.
    let questions = started.card.questions() as u64;
    assert!(questions <= 2 + begun.elapsed().as_secs(), "{questions}");
    // All other steps of one row were repeated as recorded.
    assert!(started.card.replays() > 280, "{}", started.card.replays());
}

/// Answers in a form, and such as avoid what was said, beside simple ones.
fn bound_requests(grammar: &Grammar) -> Vec<GenerateRequest> {
    let repeats = Sampling {
        repetition: 1.3,
        presence: 0.4,
        frequency: 0.2,
        bias: vec![(3, -1.5), (11, 2.0)],
        ..sampling(5)
    };
    let mut requests = vec![
        request(1, 140, sampling(1)),
        request(2, 140, sampling(2)),
        request(3, 140, repeats),
        request(4, 60, sampling(4)),
    ];
    for request in &mut requests {
        request.ending.tokens.clear();
    }
    for form in [0, 1, 3] {
        requests[form].grammar = Some(grammar.clone());
    }
    requests
}

#[tokio::test]
async fn answers_in_a_form_and_without_repeats_are_chosen_on_the_card() {
    let opened = folder::open(&fixture("model")).unwrap();
    let grammars = Grammars::new(&Arc::new(opened.tokenizer)).unwrap();
    let form = Form::Pattern("[a-z ]{1000}".to_owned());
    let grammar = grammars.compile(&form, Thoughts::None).unwrap();
    let mut all = Vec::new();
    for ahead in [false, true] {
        let started = start(ahead);
        let found = answers(&started.engine, bound_requests(&grammar)).await;
        let text = &found[0].as_ref().unwrap().0;
        let formed = |letter: char| letter.is_ascii_lowercase() || letter == ' ';
        assert!(text.len() > 100 && text.chars().all(formed), "{text}");
        if ahead {
            assert!(seconds(&started.metrics, "sampling") > 0.0);
        }
        all.push(found);
    }
    assert_eq!(all[0], all[1]);
}

#[tokio::test]
async fn a_step_without_memory_costs_one_answer() {
    for ahead in [false, true] {
        let whole = answers(&start(ahead).engine, simple_requests()).await;
        for after in [1, 300, 2_000] {
            let started = start_with(ahead, false);
            started
                .card
                .fail_after(after, CardError::Memory { asked: 64 });
            let found = answers(&started.engine, simple_requests()).await;
            let failed = found.iter().filter(|answer| {
                matches!(answer, Err(Interrupted::Sample(SampleError::Memory(detail))) if detail.contains("64"))
            });
            assert_eq!(failed.count(), 1, "{after}: {found:?}");
            for (found, whole) in found.iter().zip(&whole) {
                assert!(found.is_err() || found == whole, "{found:?} {whole:?}");
            }
            // And it goes on.
            let again = answers(&started.engine, simple_requests()).await;
            assert_eq!(again, whole);
            assert!(
                started
                    .metrics
                    .text()
                    .contains("chandler_device_out_of_memory_total{model_name=\"tiny\"} 1")
            );
        }
    }
}

#[tokio::test]
async fn a_lost_card_ends_the_engine_with_its_reason() {
    for ahead in [false, true] {
        let started = start(ahead);
        let reason = "uncorrectable ECC error".to_owned();
        started.card.fail_after(500, CardError::Lost(reason));
        let found = answers(&started.engine, simple_requests()).await;
        assert!(
            found
                .iter()
                .any(|answer| matches!(answer, Err(Interrupted::Stopped(_))))
        );
        let death = started.end.await.unwrap().unwrap();
        let lost = "the card is lost: uncorrectable ECC error";
        assert!(
            matches!(&death, Death::Device(detail) if detail.contains(lost)),
            "{death}"
        );
    }
}
