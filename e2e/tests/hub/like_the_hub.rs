//! Without faults: metadata, redirects, ranges, refusals.

use std::time::Duration;

use serde_json::{Value, json};

use crate::fixture::{CONFIG, RunningHub, header, location, refusal, sha256, weights};

#[tokio::test]
async fn metadata_names_commit_sizes_and_digests() {
    let hub = RunningHub::start().await;
    let model: Value = hub
        .get("/api/models/org/tiny/revision/main?blobs=true")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(model["id"], "org/tiny");
    assert_eq!(model["sha"].as_str().unwrap().len(), 40);
    let siblings = model["siblings"].as_array().unwrap();
    let names: Vec<&str> = siblings
        .iter()
        .map(|sibling| sibling["rfilename"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["config.json", "sub/notes.txt", "weights.gguf"]);
    assert_eq!(siblings[2]["lfs"]["sha256"], sha256(&weights()));
    assert_eq!(siblings[2]["size"], 300_000);
    // `printf 'a note' | git hash-object --stdin`
    assert_eq!(
        siblings[1]["blobId"],
        "4fb6e84e02b3c0d7113d7bb723398fddf04b2519"
    );
}

#[tokio::test]
async fn the_commit_follows_from_the_contents_alone() {
    let (one, two) = (RunningHub::start().await, RunningHub::start().await);
    let commit = |model: Value| model["sha"].as_str().unwrap().to_owned();
    let first = commit(one.get("/api/models/org/tiny").await.json().await.unwrap());
    let second = commit(two.get("/api/models/org/tiny").await.json().await.unwrap());
    assert_eq!(first, second);
}

#[tokio::test]
async fn small_files_stay_on_the_hub_and_large_ones_go_to_the_cdn() {
    let hub = RunningHub::start().await;
    let small = hub.get("/org/tiny/resolve/main/config.json").await;
    assert_eq!(small.status(), 307);
    assert!(location(&small).starts_with("/api/resolve-cache/models/org/tiny/"));
    let small = hub.get(&location(&small)).await;
    assert!(header(&small, "x-repo-commit").is_some());
    assert_eq!(small.text().await.unwrap(), CONFIG);

    let large = hub.get("/org/tiny/resolve/main/weights.gguf").await;
    assert_eq!(large.status(), 302);
    assert_eq!(
        header(&large, "x-linked-etag").unwrap(),
        format!("\"{}\"", sha256(&weights()))
    );
    assert_eq!(header(&large, "x-linked-size").unwrap(), "300000");
    assert!(location(&large).starts_with("http://localhost:"));
    let bytes = hub.get(&location(&large)).await.bytes().await.unwrap();
    assert!(bytes == weights());
}

#[tokio::test]
async fn the_cdn_serves_ranges() {
    let hub = RunningHub::start().await;
    let link = hub.link().await;
    let part = hub.get_with(&link, &[("range", "bytes=299990-")]).await;
    assert_eq!(part.status(), 206);
    assert_eq!(
        header(&part, "content-range").unwrap(),
        "bytes 299990-299999/300000"
    );
    assert!(part.bytes().await.unwrap() == weights()[299_990..]);
    let beyond = hub.get_with(&link, &[("range", "bytes=300000-")]).await;
    assert_eq!(beyond.status(), 416);
}

#[tokio::test]
async fn links_expire_and_cannot_be_forged() {
    let hub = RunningHub::with_link_lifetime(Duration::ZERO).await;
    let link = hub.link().await;
    assert_eq!(hub.get(&link).await.status(), 403);
    let hub = RunningHub::start().await;
    let link = hub.link().await;
    assert_eq!(hub.get(&link).await.status(), 200);
    let forged = link.replace("Expires=1", "Expires=2");
    assert_eq!(hub.get(&forged).await.status(), 403);
}

#[tokio::test]
async fn an_anonymous_caller_is_not_told_whether_a_repository_exists() {
    let hub = RunningHub::start().await;
    let anonymous = refusal(hub.get("/api/models/org/missing").await).await;
    assert_eq!(anonymous.0, 401);
    assert_eq!(anonymous.1, "RepoNotFound");
    let signed_in = hub
        .get_with("/api/models/org/missing", &[("authorization", "Bearer t")])
        .await;
    let (status, code, _) = refusal(signed_in).await;
    assert_eq!((status, code.as_str()), (404, "RepoNotFound"));
}

#[tokio::test]
async fn missing_revisions_and_files_have_codes_of_their_own() {
    let hub = RunningHub::start().await;
    let revision = refusal(hub.get("/api/models/org/tiny/revision/none").await).await;
    assert_eq!((revision.0, revision.1.as_str()), (404, "RevisionNotFound"));
    let entry = refusal(hub.get("/org/tiny/resolve/main/none.json").await).await;
    assert_eq!((entry.0, entry.1.as_str()), (404, "EntryNotFound"));
    let outside = hub.get("/org/tiny/resolve/main/..%2F..%2Fhub.json").await;
    assert_eq!(outside.status(), 404);
}

#[tokio::test]
async fn a_gated_repository_shows_its_files_and_gives_them_to_members_only() {
    let hub = RunningHub::start().await;
    let settings = json!({ "access": "gated", "tokens": ["member"], "otherTokens": ["guest"] });
    hub.settings("org/tiny", settings).await;
    assert_eq!(hub.get("/api/models/org/tiny").await.status(), 200);

    let path = "/org/tiny/resolve/main/weights.gguf";
    let (status, code, text) = refusal(hub.get(path).await).await;
    assert_eq!((status, code.as_str()), (401, "GatedRepo"));
    assert!(text.contains("Please log in"), "{text}");
    let guest = hub
        .get_with(path, &[("authorization", "Bearer guest")])
        .await;
    let (status, code, text) = refusal(guest).await;
    assert_eq!((status, code.as_str()), (403, "GatedRepo"));
    assert!(text.contains("authorized list"), "{text}");
    let member = hub
        .get_with(path, &[("authorization", "Bearer member")])
        .await;
    assert_eq!(member.status(), 302);
}

#[tokio::test]
async fn a_copy_may_be_truncated_and_has_the_digest_of_what_is_left() {
    let hub = RunningHub::start().await;
    let settings = json!({ "copyOf": "org/tiny", "truncate": { "weights.gguf": 1000 } });
    hub.settings("other/short", settings).await;
    let model: Value = hub
        .get("/api/models/other/short?blobs=true")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(
        model["siblings"][2]["lfs"]["sha256"],
        sha256(&weights()[..1000])
    );
    let answer = hub.get("/other/short/resolve/main/weights.gguf").await;
    let bytes = hub.get(&location(&answer)).await.bytes().await.unwrap();
    assert!(bytes == weights()[..1000]);
}

#[tokio::test]
async fn an_uploaded_file_is_served() {
    let hub = RunningHub::start().await;
    let url = format!("{}/_files/new/model/sub/a.txt", hub.endpoint);
    let answer = reqwest::Client::new().put(url).body("text").send().await;
    assert_eq!(answer.unwrap().status(), 201);
    let answer = hub.get("/new/model/resolve/main/sub/a.txt").await;
    let text = hub.get(&location(&answer)).await.text().await.unwrap();
    assert_eq!(text, "text");
    assert!(hub.folder.path().join("new/model/sub/a.txt").exists());
}
