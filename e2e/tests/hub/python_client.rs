//! PyPI's huggingface_hub and modelscope, unmodified and pinned by digest, take the stand-in for their hub.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;
use tempfile::TempDir;

use crate::fixture::{RunningHub, weights};

fn environment() -> PathBuf {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/python/venv");
    let output = Command::new(script).arg("hubs").output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

async fn python(hub: &RunningHub, home: &Path, token: Option<&str>, code: &str) -> Output {
    let mut command = tokio::process::Command::new(environment().join("bin/python"));
    command
        .args(["-c", code])
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HOME", home)
        .env("MODELSCOPE_ENDPOINT", &hub.endpoint)
        .env("MODELSCOPE_CACHE", home.join("modelscope"))
        .env("HOME", home)
        .env_remove("HF_TOKEN")
        .env_remove("MODELSCOPE_API_TOKEN");
    if let Some(token) = token {
        command
            .env("HF_TOKEN", token)
            .env("MODELSCOPE_API_TOKEN", token);
    }
    command.output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn huggingface_hub_downloads_a_snapshot() {
    let hub = RunningHub::start().await;
    let home = TempDir::new().unwrap();
    let code = "import huggingface_hub; print(huggingface_hub.snapshot_download('org/tiny'))";
    let output = python(&hub, home.path(), None, code).await;
    assert!(output.status.success(), "{output:?}");
    let folder = String::from_utf8(output.stdout).unwrap();
    let folder = Path::new(folder.trim());
    assert!(std::fs::read(folder.join("weights.gguf")).unwrap() == weights());
    assert_eq!(
        std::fs::read(folder.join("sub/notes.txt")).unwrap(),
        b"a note"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn huggingface_hub_asks_again_after_a_cut() {
    let hub = RunningHub::start().await;
    let home = TempDir::new().unwrap();
    hub.fault(
        json!({ "site": "cdn", "method": "GET", "times": 1, "then": { "cutAfterPercent": 50 } }),
    )
    .await;
    let code = "import huggingface_hub; print(huggingface_hub.hf_hub_download('org/tiny', 'weights.gguf'))";
    let output = python(&hub, home.path(), None, code).await;
    assert!(output.status.success(), "{output:?}");
    let file = String::from_utf8(output.stdout).unwrap();
    assert!(std::fs::read(file.trim()).unwrap() == weights());
    let log = hub.log().await;
    let loads = log.iter().filter(|entry| entry.path.starts_with("/repos/"));
    assert_eq!(loads.count(), 2, "{log:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn huggingface_hub_recognises_a_gated_and_a_missing_repository() {
    let hub = RunningHub::start().await;
    let home = TempDir::new().unwrap();
    let settings = json!({ "access": "gated", "tokens": ["member"] });
    hub.settings("org/tiny", settings).await;
    let code = r"
import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
def raised(repository, file, **more):
    try:
        huggingface_hub.hf_hub_download(repository, file, **more)
    except Exception as error:
        return type(error).__name__
    return 'none'
print(raised('org/tiny', 'weights.gguf', token=False))
print(raised('org/missing', 'weights.gguf'))
print(raised('org/tiny', 'absent.gguf'))
print(raised('org/tiny', 'weights.gguf', revision='none'))
print(raised('org/tiny', 'weights.gguf'))
";
    let output = python(&hub, home.path(), Some("member"), code).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names: Vec<&str> = text.lines().collect();
    assert_eq!(
        names,
        [
            "GatedRepoError",
            "RepositoryNotFoundError",
            "RemoteEntryNotFoundError",
            "RevisionNotFoundError",
            "none"
        ]
    );
    // The account's token goes to the hub and never to the CDN.
    let log = hub.log().await;
    let on_cdn: Vec<_> = log
        .iter()
        .filter(|entry| entry.path.starts_with("/repos/"))
        .collect();
    assert!(!on_cdn.is_empty());
    assert!(
        on_cdn.iter().all(|entry| !entry.authorization),
        "{on_cdn:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn modelscope_downloads_a_snapshot_of_a_branch_and_of_a_commit() {
    let hub = RunningHub::start().await;
    let home = TempDir::new().unwrap();
    let model: serde_json::Value = hub.get("/api/models/org/tiny").await.json().await.unwrap();
    let commit = model["sha"].as_str().unwrap();
    let code = format!(
        "from modelscope import snapshot_download\n\
         print(snapshot_download('org/tiny'))\n\
         print(snapshot_download('org/tiny', revision='{commit}', local_dir='{}'))",
        home.path().join("pinned").display()
    );
    let output = python(&hub, home.path(), None, &code).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let folders: Vec<&str> = text.lines().filter(|line| line.starts_with('/')).collect();
    assert_eq!(folders.len(), 2, "{text}");
    for folder in folders.into_iter().map(Path::new) {
        assert!(std::fs::read(folder.join("weights.gguf")).unwrap() == weights());
        let note = std::fs::read(folder.join("sub/notes.txt")).unwrap();
        assert_eq!(note, b"a note");
    }
    // It finds each file's digest in the listing, so a wrong byte would have been refused.
    let log = hub.log().await;
    assert!(
        log.iter()
            .any(|entry| entry.path.ends_with("/org/tiny/repo/files") && entry.status == 200),
        "{log:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn modelscope_continues_after_a_cut_and_refuses_wrong_bytes() {
    let hub = RunningHub::start().await;
    let home = TempDir::new().unwrap();
    hub.fault(
        json!({ "site": "cdn", "method": "GET", "times": 1, "then": { "cutAfterPercent": 50 } }),
    )
    .await;
    let code = "from modelscope import model_file_download; print(model_file_download('org/tiny', 'weights.gguf'))";
    let output = python(&hub, home.path(), None, code).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let file = text.lines().rfind(|line| line.starts_with('/')).unwrap();
    assert!(std::fs::read(file).unwrap() == weights());

    hub.fault(json!({ "site": "cdn", "then": { "wrongBytes": { "start": 10, "end": 12 } } }))
        .await;
    let other = TempDir::new().unwrap();
    let code = "from modelscope import snapshot_download; snapshot_download('org/tiny')";
    let output = python(&hub, other.path(), None, code).await;
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("weights.gguf"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn modelscope_tells_a_private_from_an_absent_repository() {
    let hub = RunningHub::start().await;
    let home = TempDir::new().unwrap();
    let settings = json!({ "access": "private", "tokens": ["member"] });
    hub.settings("org/tiny", settings).await;
    let code = r"
from modelscope_hub import HubApi
def raised(repository, token=None, revision=None):
    try:
        HubApi(token=token).download_file(repository, 'model', 'weights.gguf', revision=revision)
    except Exception as error:
        return type(error).__name__
    return 'none'
print('|', raised('org/tiny'))
print('|', raised('org/missing', 'member'))
print('|', raised('org/tiny', 'member', 'none'))
print('|', raised('org/tiny', 'member'))
";
    let output = python(&hub, home.path(), None, code).await;
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    let names: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .collect();
    assert_eq!(
        names,
        [
            "PermissionDeniedError",
            "NotExistError",
            "NotExistError",
            "none"
        ],
        "{output:?}"
    );
}
