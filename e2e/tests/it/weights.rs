//! Weights that find no room, and weights that arrive whole and are still not a model.

use std::time::Duration;

use anyhow::ensure;
use chandler_e2e::cluster::{
    MODEL_CACHE, MODEL_DEPLOYMENT, PERSISTENT_VOLUME, POD, STORAGE_CLASS, names,
};
use chandler_e2e::model::{self, NOT_CACHED};
use chandler_e2e::story::{Company, story};
use chandler_e2e::volume::{self, NodeMemory};
use chandler_e2e::wait::{Seen, until};
use serde_json::json;

/// Volume, two Jobs, and a serving pod that fails.
const TOLD_WITHIN: Duration = Duration::from_secs(150);

/// What a hub gives on each connection: with it a fetch of 98 MB takes long enough to be watched.
const SLOW_BYTES_PER_SECOND: u64 = 2_000_000;

#[test]
fn how_far_a_fetch_is_can_be_watched_and_never_goes_back() {
    story("progress", Company::Welcome, async |story| {
        let (cluster, hub) = (&story.world.cluster, &story.world.hub);
        let repository = story.repository();
        hub.offer(&repository, json!({})).await?;
        let slow = json!({ "site": "cdn", "then": { "bytesPerSecond": SLOW_BYTES_PER_SECOND } });
        hub.spoil(&repository, slow).await?;
        let source = json!({ "hub": { "id": repository, "format": "ggufv2" } });
        let cache = json!({ "metadata": { "name": "weights" }, "spec": { "source": source } });
        story.apply(MODEL_CACHE, cache).await?;

        let (mut bytes, mut steps, mut killed) = (0, 0, Vec::new());
        let finished = until(
            TOLD_WITHIN,
            "the fetch to be watched to its end",
            async || {
                let cache = cluster
                    .get(MODEL_CACHE, &story.namespace, "weights")
                    .await?;
                let cache = cache.unwrap_or_default();
                let status = &cache["status"];
                let now = status["bytesFetched"].as_i64().unwrap_or_default();
                ensure!(now >= bytes, "from {bytes} bytes back to {now}");
                if model::condition(&cache, "Ready")["status"] == "True" {
                    return Ok(Seen::Yes(cache));
                }
                let words = status["progress"].as_str().unwrap_or_default();
                if now > bytes && !words.is_empty() {
                    let total = status["bytesTotal"].as_i64().unwrap_or_default();
                    ensure!(now <= total, "{now} of {total} bytes");
                    ensure!(words.contains("% of 98.4 MB, "), "{words}");
                    (bytes, steps) = (now, steps + 1);
                }
                if steps == 2 && killed.is_empty() {
                    let selector = "app.kubernetes.io/component=fetch";
                    killed = names(&cluster.list(POD, &story.namespace, selector).await?);
                    for pod in &killed {
                        cluster.delete(POD, &story.namespace, pod).await?;
                    }
                }
                Ok(Seen::NotYet(status.to_string()))
            },
        )
        .await?;
        ensure!(killed.len() == 1, "the fetch was over too soon: {killed:?}");
        ensure!(steps > 2, "nothing was told after the pod began anew");
        let status = &finished["status"];
        ensure!(status["bytesFetched"] == status["bytesTotal"], "{status}");
        for over in ["progress", "bytesPerSecond", "secondsLeft"] {
            ensure!(status[over].is_null(), "{over} stays: {status}");
        }
        Ok(())
    });
}

#[test]
fn a_truncated_gguf_is_named_with_what_is_wrong_with_it() {
    story("truncated", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let file = hub.model_file().await?;
        // The hub's own size and digest are those of the truncated file, so the fetch has nothing to object.
        let settings = json!({ "truncate": { &file: 50_000_000 } });
        hub.offer(&repository, settings).await?;
        story
            .apply(MODEL_DEPLOYMENT, model::deployment(&repository))
            .await?;
        let message = story
            .reason(TOLD_WITHIN, ("RuntimeHealthy", "False", "LoadFailed"))
            .await?;
        ensure!(
            message.contains(&file),
            "the file {file} is not named: {message}"
        );
        let says_why = ["truncated", "too short", "ends", "beyond", "bytes"]
            .iter()
            .any(|word| message.contains(word));
        ensure!(says_why, "it is not told what is wrong: {message}");
        let ready = story
            .reason(Duration::from_secs(30), ("Ready", "False", "LoadFailed"))
            .await?;
        ensure!(ready.contains(&file), "{ready}");
        Ok(())
    });
}

#[test]
fn storage_without_a_class_or_without_room_is_told_and_heals_where_it_grows() {
    story("storage", Company::Welcome, async |story| {
        let (cluster, name) = (&story.world.cluster, &story.namespace);
        cluster.delete(STORAGE_CLASS, "", name).await?;
        volume::remove(name).await?;
        let storage = json!({ "storage": { "storageClassName": name } });
        story.deploy_with(json!({ "weights": storage })).await?;
        let texts = [
            "does not exist",
            name,
            "local-path",
            "storage.storageClassName",
        ];
        story
            .told(TOLD_WITHIN, &NOT_CACHED, "StorageClassMissing", &texts)
            .await?;

        let class =
            json!({ "metadata": { "name": name }, "provisioner": "kubernetes.io/no-provisioner" });
        cluster.apply(STORAGE_CLASS, "", class).await?;
        story
            .reason(TOLD_WITHIN, ("WeightsCached", "False", "ClaimPending"))
            .await?;

        // One trouble is over, and the next is made.
        story.disturbs();
        let memory = NodeMemory::mount(name, "20m").await?;
        let small = volume::in_folder(name, name, "ReadWriteOnce", &memory.path);
        cluster.apply(PERSISTENT_VOLUME, "", small).await?;
        let texts = [
            "is full",
            "20.00 MiB free",
            "PersistentVolumeClaim weights-",
            "enlarge the claim",
        ];
        story
            .told(TOLD_WITHIN, &NOT_CACHED, "StorageFull", &texts)
            .await?;

        memory.resize("300m").await?;
        story.healed().await?;
        cluster.delete(PERSISTENT_VOLUME, "", name).await?;
        cluster.delete(STORAGE_CLASS, "", name).await
    });
}
