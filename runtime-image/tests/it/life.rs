//! From the first moment to the last: loading, ready, draining, failing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use chandler_runtime::answer::Reason;
use chandler_runtime::model::fake::FakeControl;
use chandler_runtime::serve::ServeError;
use chandler_runtime::weights::LoadError;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::server::{CONTEXT, Server, config, error_of, fake, json_of, until};

#[tokio::test]
async fn both_ports_answer_while_the_model_loads() {
    let (config, control) = (config(), Arc::new(FakeControl::default()));
    let (settings, switches) = (config.clone(), control.clone());
    let (go, gone) = std::sync::mpsc::channel();
    let server = Server::start_with(config, control, move || {
        gone.recv().unwrap();
        fake(&settings, switches)
    })
    .await;
    assert_eq!(server.look("/healthz").await.0, StatusCode::OK);
    assert_eq!(
        server.look("/readyz").await,
        (StatusCode::SERVICE_UNAVAILABLE, "Loading".to_owned())
    );
    let status: Value = serde_json::from_str(&server.look("/status").await.1).unwrap();
    assert_eq!(
        status,
        json!({ "version": env!("CARGO_PKG_VERSION"), "phase": "Loading", "device": "cpu", "phases": {} })
    );
    let response = server.chat("x", json!({})).await;
    assert!(response.headers().contains_key("retry-after"));
    let (status, error) = error_of(response).await;
    assert_eq!(
        (status, &error["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("unavailable"))
    );
    go.send(()).unwrap();
    server.until_ready().await;
    let text = server.look("/status").await.1;
    assert!(text.len() < 1_024, "{text}");
    let status: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["phase"], "Ready");
    assert_eq!(status["device"], "cpu");
    assert_eq!(
        status["limits"],
        json!({ "contextLength": CONTEXT, "maxSequences": 4 })
    );
    for phase in ["loadedSeconds", "warmSeconds"] {
        assert!(status["phases"][phase].is_number(), "{status}");
    }
    let metrics = server.look("/metrics").await.1;
    for phase in ["load", "warm"] {
        let name =
            format!("chandler_runtime_startup_seconds{{model_name=\"fake\",phase=\"{phase}\"}} ");
        assert!(metrics.contains(&name), "{metrics}");
    }
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_be_loaded_ends_the_process_with_its_reason() {
    let server = Server::start_with(config(), Arc::default(), || {
        Err(LoadError::Setup("x.gguf is cut short".to_owned()))
    })
    .await;
    let error = server.ended().await.unwrap_err();
    assert_eq!(
        (error.reason(), error.to_string().as_str()),
        (Reason::LoadFailed, "x.gguf is cut short")
    );
}

#[tokio::test]
async fn a_terminated_server_finishes_what_runs_and_turns_late_requests_away() {
    let mut config = config();
    // Long enough to be met below on a busy machine, and over before the stream ends.
    config.drain_grace = std::time::Duration::from_secs(1);
    let mut server = Server::start(config).await;
    server.slow_down(100);
    let running = server
        .chat("a", json!({ "stream": true, "ignore_eos": true }))
        .await;
    server.terminate();
    until("readiness to be off", async || {
        server.look("/readyz").await == (StatusCode::SERVICE_UNAVAILABLE, "Draining".to_owned())
    })
    .await;
    let late = server.chat("y", json!({ "max_tokens": 1 })).await;
    assert_eq!(
        late.status(),
        StatusCode::OK,
        "a request right after SIGTERM is still taken"
    );
    until("late requests to be turned away", async || {
        let response = server.chat("y", json!({ "max_tokens": 1 })).await;
        let closes = response
            .headers()
            .get("connection")
            .is_some_and(|value| value == "close");
        let refused = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        assert!(!refused || closes, "a refused request keeps its connection");
        refused && error_of(response).await.1["code"] == "unavailable"
    })
    .await;
    assert!(
        running.text().await.unwrap().ends_with("data: [DONE]\n\n"),
        "the running stream was cut"
    );
    server.ended().await.unwrap();
}

#[tokio::test]
async fn a_stream_that_outlasts_the_drain_is_cut_off() {
    let mut config = config();
    config.drain = std::time::Duration::from_millis(200);
    let mut server = Server::start(config).await;
    server.slow_down(200);
    let running = server
        .chat("a", json!({ "stream": true, "ignore_eos": true }))
        .await;
    server.terminate();
    server.ended().await.unwrap();
    drop(running);
}

#[tokio::test]
async fn the_status_of_a_model_in_memory_is_whole_before_its_first_step() {
    let (config, control) = (config(), Arc::new(FakeControl::default()));
    control.delay_milliseconds.store(500, Ordering::SeqCst);
    let (settings, switches) = (config.clone(), control.clone());
    let server = Server::start_with(config, control, move || fake(&settings, switches)).await;
    let mut status = Value::Null;
    until("the first step to be under way", async || {
        status = serde_json::from_str(&server.look("/status").await.1).unwrap();
        status["phase"] == "Warming"
    })
    .await;
    assert_eq!(
        (&status["dtype"], &status["bytesResident"]),
        (&json!("none"), &json!(0))
    );
    assert_eq!(status["limits"]["contextLength"], CONTEXT);
    let phases = status["phases"].as_object().unwrap();
    assert!(
        phases.contains_key("loadedSeconds") && !phases.contains_key("warmSeconds"),
        "{status}"
    );
}

#[tokio::test]
async fn an_engine_that_dies_answers_those_who_wait_and_ends_the_process() {
    let server = Server::start(config()).await;
    server.control.panics.store(true, Ordering::SeqCst);
    let (status, error) = error_of(server.chat("a", json!({})).await).await;
    assert_eq!(
        (status, &error["type"]),
        (StatusCode::INTERNAL_SERVER_ERROR, &json!("server_error"))
    );
    let error = server.ended().await.unwrap_err();
    assert!(
        matches!(&error, ServeError::Engine(message) if message.contains("told to panic")),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_that_is_no_number_ends_alone() {
    let server = Server::start(config()).await;
    server.control.gives_nonsense.store(true, Ordering::SeqCst);
    let (status, error) = error_of(server.chat("a", json!({})).await).await;
    assert_eq!(
        (status, &error["type"]),
        (StatusCode::INTERNAL_SERVER_ERROR, &json!("server_error"))
    );
    server.control.gives_nonsense.store(false, Ordering::SeqCst);
    assert_eq!(server.chat("x", json!({})).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn metrics_count_under_the_names_that_dashboards_know() {
    let server = Server::start(config()).await;
    json_of(server.chat("xx", json!({})).await).await;
    for line in [
        // The first step at start counts as well.
        "vllm:prompt_tokens_total{model_name=\"fake\"} 3",
        "vllm:generation_tokens_total{model_name=\"fake\"} 4",
        "vllm:num_requests_running{model_name=\"fake\"} 0",
        "vllm:request_success_total{model_name=\"fake\",finished_reason=\"stop\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"fake\"} 2",
        "vllm:e2e_request_latency_seconds_count{model_name=\"fake\"} 2",
        "vllm:request_queue_time_seconds_count{model_name=\"fake\"} 2",
        "vllm:inter_token_latency_seconds_count{model_name=\"fake\"} 2",
        "vllm:request_prompt_tokens_sum{model_name=\"fake\"} 3.0",
        "vllm:request_generation_tokens_sum{model_name=\"fake\"} 4.0",
        "vllm:num_requests_waiting{model_name=\"fake\"} 0",
        "vllm:kv_cache_usage_perc{model_name=\"fake\"} 0.0",
        "vllm:cache_config_info{model_name=\"fake\",block_size=\"32\",num_gpu_blocks=\"64\"} 1",
    ] {
        server.until_counted(line).await;
    }
}
