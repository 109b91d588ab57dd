//! Faults: each does what it says, as often as it says, to the requests that it names.

use serde_json::json;

use crate::fixture::{RunningHub, weights};

#[tokio::test]
async fn a_status_is_answered_so_many_times_and_then_the_hub_is_well() {
    let hub = RunningHub::start().await;
    hub.fault(json!({
        "path": "/api/models", "times": 2,
        "then": { "status": 429, "headers": { "Retry-After": "7" }, "body": "slow down" },
    }))
    .await;
    for _ in 0..2 {
        let answer = hub.get("/api/models/org/tiny").await;
        assert_eq!(answer.status(), 429);
        assert_eq!(answer.headers()["retry-after"], "7");
        assert_eq!(answer.text().await.unwrap(), "slow down");
    }
    assert_eq!(hub.get("/api/models/org/tiny").await.status(), 200);
}

#[tokio::test]
async fn a_cut_gives_the_first_half_and_then_an_error() {
    let hub = RunningHub::start().await;
    hub.fault(json!({ "site": "cdn", "then": { "cutAfterPercent": 50 } }))
        .await;
    let mut answer = hub.get(&hub.link().await).await;
    assert_eq!(answer.content_length(), Some(300_000));
    let mut received = Vec::new();
    let error = loop {
        match answer.chunk().await {
            Ok(Some(chunk)) => received.extend_from_slice(&chunk),
            Ok(None) => panic!("the body ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert!(received == weights()[..150_000], "{}", received.len());
    assert!(error.is_body() || error.is_decode(), "{error:?}");
}

#[tokio::test]
async fn wrong_bytes_keep_the_length() {
    let hub = RunningHub::start().await;
    hub.fault(json!({ "site": "cdn", "then": { "wrongBytes": { "start": 10, "end": 12 } } }))
        .await;
    let bytes = hub.get(&hub.link().await).await.bytes().await.unwrap();
    let mut expected = weights();
    expected[10] = !expected[10];
    expected[11] = !expected[11];
    assert!(bytes == expected);
}

#[tokio::test]
async fn a_slow_answer_takes_its_time() {
    let hub = RunningHub::start().await;
    hub.fault(json!({ "site": "cdn", "then": { "bytesPerSecond": 600_000 } }))
        .await;
    let link = hub.link().await;
    let started = std::time::Instant::now();
    let bytes = hub.get(&link).await.bytes().await.unwrap();
    assert!(bytes == weights());
    assert!(
        started.elapsed().as_millis() >= 400,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test]
async fn an_ignored_range_is_answered_with_everything() {
    let hub = RunningHub::start().await;
    hub.fault(json!({ "site": "cdn", "then": { "ignoreRange": true } }))
        .await;
    let link = hub.link().await;
    let answer = hub.get_with(&link, &[("range", "bytes=1000-")]).await;
    assert_eq!(answer.status(), 200);
    assert!(answer.bytes().await.unwrap() == weights());
}

#[tokio::test]
async fn a_lie_about_the_length_is_told_in_both_directions() {
    let hub = RunningHub::start().await;
    let link = hub.link().await;
    hub.fault(json!({ "site": "cdn", "then": { "lengthOffBy": -1000 } }))
        .await;
    let short = hub.get(&link).await.bytes().await.unwrap();
    assert!(short == weights()[..299_000]);
    hub.fault(json!({ "site": "cdn", "then": { "lengthOffBy": 1000 } }))
        .await;
    let long = hub.get(&link).await;
    assert_eq!(long.content_length(), Some(301_000));
    assert!(long.bytes().await.is_err());
}

#[tokio::test]
async fn a_redirect_leads_elsewhere() {
    let hub = RunningHub::start().await;
    hub.fault(json!({ "then": { "redirect": "http://localhost:1/" } }))
        .await;
    let answer = hub.get("/org/tiny/resolve/main/config.json").await;
    assert_eq!(answer.status(), 302);
    assert_eq!(answer.headers()["location"], "http://localhost:1/");
}

#[tokio::test]
async fn a_fault_of_one_repository_leaves_the_others_alone() {
    let hub = RunningHub::start().await;
    hub.settings("story/tiny", json!({ "copyOf": "org/tiny" }))
        .await;
    hub.fault(json!({ "repository": "story/tiny", "then": { "status": 503 } }))
        .await;
    assert_eq!(hub.get("/api/models/story/tiny").await.status(), 503);
    assert_eq!(hub.get("/api/models/org/tiny").await.status(), 200);
}

#[tokio::test]
async fn the_log_tells_where_credentials_came_without_keeping_them() {
    let hub = RunningHub::start().await;
    let path = "/org/tiny/resolve/main/weights.gguf";
    hub.get_with(path, &[("authorization", "Bearer secret-value")])
        .await;
    let log = hub.log().await;
    let entry = log.last().unwrap();
    assert!(entry.authorization);
    assert_eq!(entry.repository.as_deref(), Some("org/tiny"));
    assert_eq!(entry.status, 302);
    let text = hub.get("/_requests").await.text().await.unwrap();
    assert!(!text.contains("secret-value"));
}
