//! Volumes that hold traps or have no room.

use std::os::unix::fs::symlink;
use std::process::Stdio;

use serde_json::json;
use tempfile::TempDir;
use tokio::process::Command;

use crate::fetch_faults::wrong_files;
use crate::fixture::{RunningHub, weights};
use crate::runtime::{Job, program};

async fn commit(hub: &RunningHub) -> String {
    let model: serde_json::Value = hub.get("/api/models/org/tiny").await.json().await.unwrap();
    model["sha"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_place_of_a_file_is_replaced_and_never_written_through() {
    let hub = RunningHub::start().await;
    let commit = commit(&hub).await;
    for place in [
        format!("{commit}/weights.gguf"),
        format!(".chandler/{commit}/weights.gguf.partial"),
    ] {
        let (volume, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let precious = outside.path().join("precious");
        std::fs::write(&precious, "keep me").unwrap();
        let link = volume.path().join(&place);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&precious, &link).unwrap();
        let job = Job::new(&hub).with(format!("--to={}", volume.path().display()));
        job.run("fetch").await.done("Fetched");
        assert_eq!(std::fs::read(&precious).unwrap(), b"keep me", "{place}");
        assert_eq!(wrong_files(volume.path()), None, "{place}");
        let file = volume.path().join(&commit).join("weights.gguf");
        assert!(std::fs::symlink_metadata(file).unwrap().is_file());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_in_place_of_a_folder_is_refused() {
    let hub = RunningHub::start().await;
    let commit = commit(&hub).await;
    for place in [".chandler".to_owned(), commit.clone()] {
        let (volume, outside) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        symlink(outside.path(), volume.path().join(&place)).unwrap();
        let job = Job::new(&hub).with(format!("--to={}", volume.path().display()));
        let ended = job.run("fetch").await;
        let (reason, message) = ended.failed();
        assert_eq!(reason, "InvalidSource", "{message}");
        assert!(message.contains("symbolic link"), "{message}");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_damaged_before_the_manifest_is_fetched_again() {
    let hub = RunningHub::start().await;
    let commit = commit(&hub).await;
    let volume = TempDir::new().unwrap();
    let folder = volume.path().join(&commit);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("weights.gguf"), vec![0; 300_000]).unwrap();
    std::fs::write(folder.join("chandler.json"), "{").unwrap();
    let job = Job::new(&hub).with(format!("--to={}", volume.path().display()));
    job.run("fetch").await.done("Fetched");
    assert_eq!(wrong_files(volume.path()), None);
}

/// The volume is a file system of this size in a namespace of its own, so the test needs no rights.
/// It is full before the fetch, then in the middle of it, and grows each time.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_volume_is_told_with_its_numbers_and_heals_when_it_grows() {
    let hub = RunningHub::start().await;
    hub.fault(json!({ "site": "cdn", "then": { "bytesPerSecond": 400_000 } }))
        .await;
    let folder = TempDir::new().unwrap();
    let script = r#"
set -u
mount -t tmpfs -o size=200k none "$1"
fetch() { "$2" fetch --endpoint="$3" --id=org/tiny --format=ggufv2 --to="$1" --patience-seconds=5; }
fetch "$@" && exit 90
mount -o remount,size=8m "$1"
fetch "$@" & pid=$!
for i in $(seq 100); do [ -n "$(find "$1/.chandler" -name '*.partial' -size +0)" ] && break; sleep 0.05; done
head -c 9m /dev/zero >"$1/other" 2>/dev/null
wait $pid && exit 91
rm "$1/other"
fetch "$@" || exit 92
cp "$1"/????????????????????????????????????????/weights.gguf "$4"
"#;
    let copied = folder.path().join("copied");
    let mount = folder.path().join("volume");
    std::fs::create_dir(&mount).unwrap();
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(&mount)
        .arg(program())
        .arg(&hub.endpoint)
        .arg(&copied)
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let answers: Vec<serde_json::Value> = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    assert_eq!(answers.len(), 3, "{output:?}");
    for full in &answers[..2] {
        assert_eq!(full["reason"], "StorageFull", "{answers:?}");
        let message = full["message"].as_str().unwrap();
        assert!(
            message.contains("free") && message.contains("enlarge"),
            "{message}"
        );
    }
    assert_eq!(answers[2]["outcome"], "Fetched", "{answers:?}");
    assert!(std::fs::read(copied).unwrap() == weights());
}
