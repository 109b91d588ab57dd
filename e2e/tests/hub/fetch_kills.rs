//! The fetching process killed at random moments and lengths: what is left is never wrong, and the next one goes on.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;
use tempfile::TempDir;

use crate::fetch_faults::wrong_files;
use crate::fixture::{RunningHub, weights};
use crate::runtime::Job;

/// Kills that count: of a process that was at work.
const KILLS: usize = 104;

/// Volumes that are worked on at the same time.
const AT_ONCE: usize = 4;

/// Kills in a row on one volume before it may finish.
const IN_A_ROW: usize = 4;

/// A fetch of 300 kB at the throttled speed takes about so long.
const LONGEST: u64 = 330;

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_killed_at_any_moment_goes_on_and_ends_right() {
    let hub = RunningHub::start().await;
    // Slow enough for a kill to fall between any two bytes.
    hub.fault(json!({ "site": "cdn", "then": { "bytesPerSecond": 1_500_000 } }))
        .await;
    let volumes = KILLS / IN_A_ROW;
    let kills: Vec<usize> = futures::stream::iter(0..volumes as u64)
        .map(|seed| killed_again_and_again(&hub, seed))
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let kills: usize = kills.into_iter().sum();
    eprintln!("figure fetch_kill_points {kills}");
    assert!(
        kills >= 100,
        "only {kills} processes were still at work when they were killed"
    );
}

/// How many kills fell into a fetch at work.
async fn killed_again_and_again(hub: &RunningHub, seed: u64) -> usize {
    let mut random = Random(seed);
    let mut kills = 0;
    let mut volume = TempDir::new().unwrap();
    while kills < IN_A_ROW {
        // Half of the volumes get the file in one stream, half in parts.
        let part_bytes = if seed.is_multiple_of(2) {
            1 << 20
        } else {
            4096
        };
        let job = Job::new(hub)
            .with(format!("--to={}", volume.path().display()))
            .with(format!("--part-bytes={part_bytes}"));
        let mut child = job.start("fetch");
        tokio::time::sleep(Duration::from_millis(random.below(LONGEST))).await;
        let was_at_work = child.try_wait().unwrap().is_none();
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        assert_eq!(wrong_files(volume.path()), None);
        if was_at_work {
            kills += 1;
        } else {
            // It was faster than the kill: the volume is complete, and another one is begun.
            volume = TempDir::new().unwrap();
        }
    }
    finish(hub, &volume).await;
    kills
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_the_making_of_any_length_is_continued() {
    let hub = RunningHub::start().await;
    let model: serde_json::Value = hub.get("/api/models/org/tiny").await.json().await.unwrap();
    let commit = model["sha"].as_str().unwrap();
    let whole = weights();
    for length in [0, 1, 4095, 4096, 4097, 150_000, 299_999, 300_000, 300_001] {
        for is_right in [true, false] {
            let volume = TempDir::new().unwrap();
            let staging = volume.path().join(".chandler").join(commit);
            std::fs::create_dir_all(&staging).unwrap();
            let mut bytes = whole.clone();
            bytes.resize(length, 0);
            if let Some(last) = bytes.last_mut().filter(|_| !is_right) {
                *last = !*last;
            }
            std::fs::write(staging.join("weights.gguf.partial"), bytes).unwrap();
            finish(&hub, &volume).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_writers_on_one_volume_do_each_other_no_harm() {
    let hub = RunningHub::start().await;
    hub.fault(json!({ "site": "cdn", "then": { "bytesPerSecond": 1_500_000 } }))
        .await;
    let volume = TempDir::new().unwrap();
    let job = Job::new(&hub).with(format!("--to={}", volume.path().display()));
    let mut killed = job.start("fetch");
    let (first, second, ()) = tokio::join!(job.run("fetch"), job.run("fetch"), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        killed.start_kill().unwrap();
        killed.wait().await.unwrap();
    });
    assert_eq!(first.done("Fetched"), second.done("Fetched"));
    assert_eq!(wrong_files(volume.path()), None);
    let log = hub.log().await;
    let loads = log.iter().filter(|entry| entry.is_download()).count();
    assert!((1..=2).contains(&loads), "{log:?}");
}

async fn finish(hub: &RunningHub, volume: &TempDir) {
    let job = Job::new(hub).with(format!("--to={}", volume.path().display()));
    let answer = job.run("fetch").await.done("Fetched");
    let folder = volume.path().join(answer["commit"].as_str().unwrap());
    assert!(std::fs::read(folder.join("weights.gguf")).unwrap() == weights());
    assert_eq!(wrong_files(volume.path()), None);
}

/// Numbers that are the same in every run (the generator of Numerical Recipes).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}
