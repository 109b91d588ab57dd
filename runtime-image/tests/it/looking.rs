//! The engine with pictures: what else runs, how prompts are cut, what the arena still knows, which pictures are shared and
//! who gives way change no bit of an answer; a picture is encoded once.

use std::sync::Arc;

use chandler_runtime::engine::Event;
use chandler_runtime::pictures::Picture;
use chandler_runtime::request::{GenerateRequest, PromptPicture, Sampling};
use futures::future::join_all;

use crate::engine::{ROOMY, Settings, arithmetics, ask, assert_same, request, start_on, until};
use crate::pictures::preparation;
use crate::vision::{PICTURE, cases, fixture};

/// The fixture's pictures, from one to four tiles.
fn gallery() -> Vec<Arc<Picture>> {
    let preparation = preparation();
    ["square", "wide", "rgba", "portrait", "landscape"]
        .iter()
        .map(|name| {
            let file = std::fs::read(fixture("images").join(format!("{name}.png"))).unwrap();
            preparation.read_picture(&file).unwrap()
        })
        .collect()
}

/// A prompt of this length that shows pictures at these places; its text is like others' of the same `story`.
fn showing(
    gallery: &[Arc<Picture>],
    length: usize,
    story: u32,
    shown: &[(usize, usize)],
    most_tokens: usize,
) -> GenerateRequest {
    let mut prompt: Vec<u32> = (0..length as u32)
        .map(|at| (at * 37 + story * 101 + 5) % 500)
        .collect();
    for (place, _) in shown {
        prompt[*place] = PICTURE;
    }
    let mut request = request(prompt, most_tokens);
    request.pictures = shown
        .iter()
        .map(|(position, picture)| PromptPicture {
            position: *position,
            picture: Arc::clone(&gallery[*picture]),
        })
        .collect();
    request
}

fn mixture(gallery: &[Arc<Picture>]) -> Vec<GenerateRequest> {
    let mut requests = vec![
        showing(gallery, 40, 0, &[], 20),
        showing(gallery, 40, 0, &[(35, 0)], 12),
        showing(gallery, 40, 0, &[(3, 0)], 30),
        // The same text with other pictures.
        showing(gallery, 40, 0, &[(3, 1)], 30),
        showing(gallery, 70, 1, &[(0, 2), (40, 3)], 9),
        showing(gallery, 70, 1, &[(0, 2), (1, 3), (2, 2)], 25),
        // A chat that goes on.
        showing(gallery, 110, 1, &[(0, 2), (40, 3), (100, 4)], 14),
        showing(gallery, 33, 2, &[(32, 4)], 6),
        showing(gallery, 90, 3, &[], 8),
        showing(gallery, 65, 3, &[(31, 1), (32, 1), (64, 0)], 11),
    ];
    for (index, request) in requests.iter_mut().enumerate() {
        if index % 2 == 1 {
            request.sampling = Sampling {
                temperature: 1.3,
                top_p: 0.9,
                repetition: 1.2,
                frequency: 0.2,
                seed: index as u64,
                ..Sampling::greedy()
            };
        }
        request.choices = 1 + index % 3;
        request.prompt_logprobs = (index % 4 == 2).then_some(2);
    }
    requests
}

#[tokio::test]
async fn company_chunks_cache_and_preemption_change_no_bit_of_an_answer_about_pictures() {
    for dtype in arithmetics() {
        change_no_bit_of_an_answer(Settings { dtype, ..ROOMY }).await;
    }
}

async fn change_no_bit_of_an_answer(roomy: Settings) {
    let gallery = gallery();
    let mut alone = Vec::new();
    let (engine, _) = start_on(&fixture("model"), roomy);
    for (index, mut request) in mixture(&gallery).into_iter().enumerate() {
        request.salt = index.to_string();
        alone.push(ask(&engine, request).await);
    }
    let tight = Settings {
        rows: 19,
        blocks: 12,
        sequences: 5,
        guesses: 3,
        ..roomy
    };
    let early = |settings: Settings| Settings {
        ahead: true,
        ..settings
    };
    for settings in [
        tight,
        Settings { rows: 7, ..tight },
        roomy,
        early(tight),
        early(roomy),
    ] {
        let (engine, metrics) = start_on(&fixture("model"), settings);
        for round in 0..2 {
            let asked = mixture(&gallery).into_iter();
            let together = join_all(asked.map(|request| ask(&engine, request))).await;
            for (index, (one, other)) in alone.iter().zip(together).enumerate() {
                let context = format!("request {index}, round {round}, {settings:?}");
                assert_same(one, &other, &context);
            }
        }
        let text = metrics.text();
        if settings.blocks == tight.blocks {
            assert!(!text.contains("vllm:num_preemptions_total{model_name=\"tiny\"} 0"));
        } else {
            // Five pictures, whatever the number of requests that show them.
            assert_eq!(metrics.pictures_encoded.get(), 5);
        }
        until(|| metrics.running.get() == 0).await;
        let empty = "kv_cache_usage_perc{model_name=\"tiny\"} 0.0";
        until(|| metrics.text().contains(empty)).await;
    }
}

#[tokio::test]
async fn greedy_answers_about_pictures_are_the_reference_s() {
    let preparation = preparation();
    let (engine, _) = start_on(&fixture("model"), Settings { rows: 11, ..ROOMY });
    for case in cases() {
        let mut asked = request(case.prompt_tokens.clone(), 32);
        let places = case.prompt_tokens.iter().enumerate();
        let places = places.filter(|(_, token)| **token == PICTURE);
        asked.pictures = places
            .zip(&case.images)
            .map(|((position, _), name)| {
                let file = std::fs::read(fixture("images").join(name)).unwrap();
                let picture = preparation.read_picture(&file).unwrap();
                PromptPicture { position, picture }
            })
            .collect();
        let (_, answers) = ask(&engine, asked).await;
        assert_eq!(answers[0].ids(), case.greedy_ids, "{}", case.name);
    }
}

#[tokio::test]
async fn a_chat_that_goes_on_encodes_no_picture_again_and_other_tenants_share_none() {
    let gallery = gallery();
    let (engine, metrics) = start_on(&fixture("model"), ROOMY);
    ask(&engine, showing(&gallery, 60, 5, &[(4, 2), (30, 3)], 5)).await;
    assert_eq!(metrics.pictures_encoded.get(), 2);
    let (_, answers) = ask(
        &engine,
        showing(&gallery, 90, 5, &[(4, 2), (30, 3), (80, 3)], 5),
    )
    .await;
    assert_eq!(metrics.pictures_encoded.get(), 2);
    assert_eq!(answers[0].cached, 32);
    assert!(metrics.pictures_found.get() >= 1);
    let mut stranger = showing(&gallery, 60, 5, &[(4, 2)], 5);
    stranger.salt = "stranger".to_owned();
    let (_, answers) = ask(&engine, stranger).await;
    assert_eq!((metrics.pictures_encoded.get(), answers[0].cached), (3, 0));
    // What stands before the first picture is shared with those who show none.
    let (_, answers) = ask(&engine, showing(&gallery, 60, 6, &[(40, 2)], 5)).await;
    assert_eq!(answers[0].cached, 0);
    let (_, answers) = ask(&engine, showing(&gallery, 60, 6, &[], 5)).await;
    assert_eq!(answers[0].cached, 32);
}

#[tokio::test]
async fn who_leaves_while_a_picture_is_encoded_gives_all_back() {
    let gallery = gallery();
    let (engine, metrics) = start_on(&fixture("model"), ROOMY);
    let asked: Vec<_> = (0..6)
        .map(|index| {
            let asked = showing(&gallery, 60, index, &[(4, 1), (30, 2)], 500);
            let permit = engine.admit().unwrap();
            engine.submit(asked, permit).unwrap()
        })
        .collect();
    drop(asked);
    until(|| metrics.text().contains("finished_reason=\"abort\"} 6")).await;
    let empty = "kv_cache_usage_perc{model_name=\"tiny\"} 0.0";
    until(|| metrics.text().contains(empty)).await;
    engine.idle().await;
}

#[tokio::test]
async fn answers_go_on_while_a_picture_is_encoded() {
    let gallery = gallery();
    let (engine, _) = start_on(&fixture("model"), ROOMY);
    let submit = |shown: &[(usize, usize)]| {
        let permit = engine.admit().unwrap();
        let request = showing(&gallery, 60, 8, shown, 900);
        engine.submit(request, permit).unwrap()
    };
    let mut text = submit(&[]);
    text.next().await.unwrap();
    let mut shows = submit(&[(4, 1)]);
    let mut meanwhile = 0;
    loop {
        tokio::select! {
            // Whatever came meanwhile is counted, also where this thread was held up.
            biased;
            token = text.next() => match token.unwrap() {
                Event::Text { .. } => meanwhile += 1,
                _ => break,
            },
            first = shows.next() => {
                first.unwrap();
                break;
            }
        }
    }
    // Each step computes a token of the text and one stage of the picture, of which there are more.
    assert!(meanwhile >= 4, "{meanwhile} tokens");
}

#[tokio::test]
async fn metrics_tell_which_part_of_the_cache_pictures_use() {
    let gallery = gallery();
    let (engine, metrics) = start_on(&fixture("model"), ROOMY);
    let submit = |shown: &[(usize, usize)]| {
        let permit = engine.admit().unwrap();
        let request = showing(&gallery, 60, 7, shown, 900);
        engine.submit(request, permit).unwrap()
    };
    let line = |number: &str| {
        let line = format!("chandler_picture_cache_usage{{model_name=\"tiny\"}} {number}\n");
        let text = metrics.text();
        text.contains(&line)
    };
    // Text alone uses nothing of it.
    let text = submit(&[]);
    until(|| metrics.cache_usage.get() > 0.0).await;
    assert!(line("0.0"), "{}", metrics.text());
    let shows = submit(&[(4, 1), (30, 2)]);
    until(|| metrics.picture_cache_usage.get() > 0.0 && !line("0.0")).await;
    assert!(metrics.picture_cache_usage.get() < metrics.cache_usage.get());
    drop((text, shows));
    until(|| line("0.0")).await;
}
