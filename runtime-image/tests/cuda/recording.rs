//! Steps that are recorded and repeated: what the card refuses of that costs no answer, and steps are launched from then on.

use chandler_runtime::compute::cuda::card::CardError;
use chandler_runtime::compute::cuda::emulated::Recording;
use chandler_runtime::request::Sampling;

use crate::engine::{Started, answers, request, simple_requests, start};

fn out_of_memory(started: &Started) -> bool {
    let none = "chandler_device_out_of_memory_total{model_name=\"tiny\"} 0";
    !started.metrics.text().contains(none)
}

#[tokio::test]
async fn a_refused_recording_costs_no_answer_and_is_the_last() {
    let whole = answers(&start(true).engine, simple_requests()).await;
    for part in [
        Recording::Begin,
        Recording::Work,
        Recording::End,
        Recording::Replay,
    ] {
        let refused = CardError::Failed("operation not permitted".to_owned());
        for error in [refused, CardError::Memory { asked: 0 }] {
            let started = start(true);
            started.card.refuse(part, error);
            for _ in 0..2 {
                let found = answers(&started.engine, simple_requests()).await;
                assert!(found == whole, "{part:?}: {found:?}");
            }
            assert_eq!(started.card.replays(), 0, "{part:?}");
            assert!(!out_of_memory(&started));
        }
    }
}

#[tokio::test]
async fn a_repeated_step_without_memory_is_launched_again() {
    let whole = answers(&start(true).engine, simple_requests()).await;
    let started = start(true);
    started
        .card
        .fail_after(2_000, CardError::Memory { asked: 64 });
    assert_eq!(answers(&started.engine, simple_requests()).await, whole);
    let replays = started.card.replays();
    assert!(replays > 0 && !out_of_memory(&started));
    assert_eq!(answers(&started.engine, simple_requests()).await, whole);
    assert_eq!(started.card.replays(), replays);
}

#[tokio::test]
async fn parts_of_a_long_prompt_do_not_pile_up_before_the_card() {
    let mut ahead = Vec::new();
    for length in [100, 450] {
        let started = start(true);
        let mut long = request(0, 2, Sampling::greedy());
        long.prompt = (0..length).map(|at| (at * 37 + 5) % 500).collect();
        let found = answers(&started.engine, vec![long]).await;
        assert!(found[0].is_ok(), "{found:?}");
        ahead.push(started.card.most_ahead());
    }
    assert!(ahead[1] < ahead[0] * 3 / 2, "{ahead:?}");
}
