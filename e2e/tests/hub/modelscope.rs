//! The runtime resolves and fetches from ModelScope as its own client does.

use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{RunningHub, sha256, weights};
use crate::runtime::Job;

fn job(hub: &RunningHub) -> Job {
    Job {
        hub: "modelscope",
        ..Job::new(hub)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_pinned_to_its_commit_and_fetched_by_it() {
    let hub = RunningHub::start().await;
    let volume = TempDir::new().unwrap();
    // `main` is what is asked for where nobody says a revision; here it is called `master`.
    let resolved = job(&hub).run("resolve").await.done("Resolved");
    let commit = resolved["commit"].as_str().unwrap();
    assert_eq!((commit.len(), &resolved["bytes"]), (40, &json!(300_000)));

    let fetch = Job {
        revision: commit.to_owned(),
        ..job(&hub)
    }
    .with(format!("--to={}", volume.path().display()));
    let fetched = fetch.run("fetch").await.done("Fetched");
    assert_eq!(fetched["commit"], commit);
    let folder = volume.path().join(commit);
    assert!(std::fs::read(folder.join("weights.gguf")).unwrap() == weights());
    let manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("chandler.json")).unwrap()).unwrap();
    assert_eq!(manifest["hub"], "modelscope");
    assert_eq!(manifest["files"][0]["sha256"], sha256(&weights()));
    // Every byte was asked for at the commit, never at the branch.
    for entry in hub.log().await {
        let is_file = entry.path.ends_with("/repo");
        assert!(
            !is_file || entry.query.contains(&format!("Revision={commit}")),
            "{entry:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_small_files_comes_from_the_hub_itself() {
    let hub = RunningHub::start().await;
    let volume = TempDir::new().unwrap();
    let fetched = job(&hub)
        .with("--file=*.json")
        .with("--file=weights.gguf")
        .with(format!("--to={}", volume.path().display()))
        .run("fetch")
        .await
        .done("Fetched");
    assert_eq!(fetched["files"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_refuses_is_told_with_its_reason() {
    let hub = RunningHub::start().await;
    let reason = async |job: Job| {
        let ended = job.run("resolve").await;
        let (reason, message) = ended.failed();
        (reason.to_owned(), message.to_owned())
    };
    let absent = Job {
        id: "org/missing".into(),
        ..job(&hub)
    };
    assert_eq!(reason(absent).await.0, "NotFoundOnHub");
    let revision = Job {
        revision: "v9".into(),
        ..job(&hub)
    };
    let (word, message) = reason(revision).await;
    assert_eq!(word, "NotFoundOnHub");
    assert!(message.contains("no revision \"v9\""), "{message}");

    hub.settings(
        "org/tiny",
        json!({ "access": "private", "tokens": ["member"] }),
    )
    .await;
    let (word, message) = reason(job(&hub)).await;
    assert_eq!(word, "CredentialsMissing");
    assert!(message.contains("/models/org/tiny"), "{message}");

    let token = TempDir::new().unwrap();
    let file = token.path().join("token");
    std::fs::write(&file, "stranger").unwrap();
    let with_token = job(&hub).with(format!("--token-file={}", file.display()));
    assert_eq!(reason(with_token.clone()).await.0, "LicenceNotAccepted");
    std::fs::write(&file, "member").unwrap();
    with_token.run("resolve").await.done("Resolved");
    let log = hub.log().await;
    assert!(log.iter().any(|entry| entry.path.starts_with("/repos/")));
    for entry in log {
        assert!(
            !entry.path.starts_with("/repos/") || !entry.authorization,
            "{entry:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_that_the_hub_may_have_cut_is_refused() {
    let hub = RunningHub::start().await;
    let files: Vec<_> = (0..3000)
        .map(|at| json!({ "Path": format!("{at}.gguf"), "Type": "blob", "Size": 1, "Sha256": "" }))
        .collect();
    let listing = json!({ "Code": 200, "Data": { "Files": files, "LatestCommitter": { "Id": "a".repeat(40) } } });
    hub.fault(
        json!({ "path": "/repo/files", "then": { "status": 200, "body": listing.to_string() } }),
    )
    .await;
    let ended = job(&hub).run("resolve").await;
    let (reason, message) = ended.failed();
    assert_eq!(reason, "InvalidSource");
    assert!(message.contains("cut"), "{message}");
}
