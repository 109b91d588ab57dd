//! A model that looks at pictures comes from both hubs in their own layouts, and answers: what its pods do, without a cluster.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use chandler_e2e::chat::Endpoint;
use chandler_e2e::chat_about_pictures::{ask, picture, pictures_encoded, three_turns};
use chandler_e2e::tools::checkout;
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::fixture::RunningHub;
use crate::runtime::{Job, program};

const REPOSITORY: &str = "chandler/mllama-tiny";

/// Longer than a tiny model takes to load on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_looks_at_pictures_comes_from_both_hubs_and_answers_about_them() {
    let hub = RunningHub::start().await;
    let from = checkout().join("runtime-image/tests/fixtures/mllama-tiny/model");
    let to = hub.folder.path().join(REPOSITORY);
    std::fs::create_dir_all(&to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
    let mut fetched = Vec::new();
    for site in ["huggingface", "modelscope"] {
        let volume = TempDir::new().unwrap();
        let job = Job {
            hub: site,
            id: REPOSITORY.into(),
            format: "pytorch",
            ..Job::new(&hub)
        };
        let resolved = job.run("resolve").await.done("Resolved");
        assert_eq!(resolved["architecture"], "MllamaForConditionalGeneration");
        assert_eq!(resolved["supported"], true, "{resolved}");
        let expected = json!({
            "layers": 4, "crossAttentionLayers": 2, "keyValueHeads": 2, "headSize": 16, "hiddenSize": 64,
            "vocabularySize": 768, "contextLength": 2048, "imageTokens": 68,
        });
        let mut dimensions = resolved["dimensions"].as_object().unwrap().clone();
        let memory = dimensions.remove("memory").unwrap();
        assert_eq!(Value::Object(dimensions), expected);
        // Every part of the plan has a number; that they agree with what is then taken, the runtime's own tests show.
        let parts = memory.as_object().unwrap();
        assert!(
            parts.len() == 9 && parts.values().all(|part| part.as_u64() > Some(0)),
            "{memory}"
        );

        let commit = resolved["commit"].as_str().unwrap().to_owned();
        let fetch = Job {
            revision: commit.clone(),
            ..job
        };
        let fetch = fetch.with(format!("--to={}", volume.path().display()));
        fetch.run("fetch").await.done("Fetched");
        let folder = volume.path().join(&commit);
        let manifest = std::fs::read(folder.join("chandler.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        fetched.push(manifest["files"].clone());

        let (api, management) = (free(), free());
        let mut serve = Command::new(program())
            .arg("serve")
            .arg(format!("--model={}", folder.display()))
            .arg("--served-name=vision")
            .arg("--images-per-prompt=2")
            .arg("--context-length=1024")
            .arg(format!("--listen={api}"))
            .arg(format!("--management-listen={management}"))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        until(READY_WITHIN, "the model to be ready", async || {
            let url = format!("http://{management}/readyz");
            let answer = http.get(url).send().await;
            let is_ready = answer.as_ref().is_ok_and(|answer| answer.status() == 200);
            Ok(Seen::when(is_ready, || format!("{answer:?}")))
        })
        .await
        .unwrap();

        let endpoint = Endpoint::at(api).unwrap();
        three_turns(&endpoint, "vision").await.unwrap();
        assert_eq!(pictures_encoded(management).await.unwrap(), 2, "{site}");
        let square = picture("square.png").unwrap();
        let three = json!([square, square, square]);
        let refused = ask(&endpoint, "vision", three).await.unwrap();
        let message = refused.error().unwrap();
        assert_eq!(refused.status, 400, "{message}");
        assert!(
            message.contains("3 pictures") && message.contains("at most 2"),
            "{message}"
        );
        serve.kill().await.unwrap();
    }
    assert_eq!(fetched[0], fetched[1]);
}
