//! Where weights may come from besides Hugging Face itself: the other hub, a volume that is there already, a hub behind proxy and private CA.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::chat::QUESTION;
use chandler_e2e::cluster::{
    CLAIM, DEPLOYMENT, MODEL_CACHE, MODEL_DEPLOYMENT, PERSISTENT_VOLUME, SECRET, SERVICE,
};
use chandler_e2e::model::{self, NOT_CACHED};
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::volume::{self, NodeMemory};
use chandler_e2e::wait::{Seen, until};
use chandler_e2e::{hub_pod, operator, tls};
use serde_json::{Value, json};

const TOLD_WITHIN: Duration = Duration::from_secs(120);

/// Names that only the proxy can resolve.
const HUB: &str = "huggingface.example.com";
const CDN: &str = "cdn.example.com";

async fn answers(story: &Story) -> Result<Value> {
    let ready = story.ready().await?;
    let endpoint = story.endpoint(&ready).await?;
    let answer = endpoint.ask(model::NAME, QUESTION).await?;
    ensure!(answer.text().contains("Paris"), "{answer:?}");
    Ok(ready)
}

/// The only cache of the story.
async fn cache(story: &Story) -> Result<Value> {
    let found = story
        .world
        .cluster
        .list(MODEL_CACHE, &story.namespace, "")
        .await?;
    let [cache] = found.try_into().ok().context("not one cache")?;
    Ok(cache)
}

#[test]
fn a_model_comes_from_modelscope_with_its_default_branch() {
    story("modelscope", Company::Welcome, async |story| {
        let (hub, repository) = (&story.world.hub, story.repository());
        let settings =
            json!({ "access": "gated", "tokens": ["ms_member"], "otherTokens": ["ms_guest"] });
        let commit = hub.offer(&repository, settings).await?;
        let secret =
            json!({ "metadata": { "name": "hub" }, "stringData": { "token": "ms_member" } });
        story.apply(SECRET, secret).await?;
        let mut object = model::deployment(&repository);
        let source = object
            .pointer_mut("/spec/model/inline/variants/0/sources/0/hub")
            .context("no source")?;
        *source = json!("modelscope");
        object["spec"]["weights"] = json!({
            "endpoint": hub_pod::ENDPOINT, "tokenSecretRef": { "name": "hub", "key": "token" },
        });
        story.apply(MODEL_DEPLOYMENT, object).await?;
        let ready = answers(story).await?;
        ensure!(ready["status"]["model"]["hub"] == "modelscope", "{ready}");
        ensure!(ready["status"]["model"]["commit"] == commit, "{ready}");
        let log = hub.requests(&repository).await?;
        let is_foreign =
            |path: &str| path.starts_with("/api/models/") || path.contains("/resolve/");
        ensure!(
            !log.is_empty() && !log.iter().any(|entry| is_foreign(&entry.path)),
            "the other hub's addresses were asked: {log:?}"
        );
        Ok(())
    });
}

#[test]
fn a_filled_claim_serves_without_any_hub_and_is_compared_with_its_manifest() {
    story("air-gap", Company::Welcome, async |story| {
        let (cluster, hub, repository) =
            (&story.world.cluster, &story.world.hub, story.repository());
        let commit = hub.offer(&repository, json!({})).await?;
        // Filled where there is a hub, by a cache whose volume stays.
        let source = json!({ "hub": { "id": repository, "format": "ggufv2" } });
        let filled = json!({ "metadata": { "name": "filled" }, "spec": { "source": source } });
        story.apply(MODEL_CACHE, filled).await?;
        let filled = until(TOLD_WITHIN, "the claim to be filled", async || {
            let cache = cache(story).await?;
            let is_ready = model::condition(&cache, "Ready")["status"] == "True";
            Ok(if is_ready {
                Seen::Yes(cache)
            } else {
                Seen::NotYet(model::describe(&cache))
            })
        })
        .await?;
        cluster
            .delete(MODEL_CACHE, &story.namespace, "filled")
            .await?;
        hub.withdraw(&repository).await?;
        let asked = hub.requests(&repository).await?.len();

        // No token is asked for, although the card's hub would want one.
        let claim = json!({ "claimName": "filled", "path": commit });
        story
            .respec(json!({ "weights": { "claim": claim } }))
            .await?;
        answers(story).await?;
        let now = hub.requests(&repository).await?.len();
        ensure!(now == asked, "the hub was asked {} times", now - asked);
        let found = cache(story).await?;
        for field in ["manifestDigest", "bytesTotal", "files"] {
            let (was, is) = (&filled["status"][field], &found["status"][field]);
            ensure!(!is.is_null() && was == is, "{field} was {was} and is {is}");
        }
        Ok(())
    });
}

#[test]
fn a_claim_without_a_manifest_gets_one_and_wrong_bytes_are_told() {
    story("own-claim", Company::Welcome, async |story| {
        let (cluster, name) = (&story.world.cluster, &story.namespace);
        cluster.delete(PERSISTENT_VOLUME, "", name).await?;
        volume::remove(name).await?;
        let memory = NodeMemory::mount(name, "400m").await?;
        let file = std::env::var("CHANDLER_DEMO_MODEL")?;
        let models = memory.folder("models")?;
        std::fs::copy(&file, models.join("model.gguf"))?;
        let volume = volume::in_folder(name, "", "ReadWriteOnce", &memory.path);
        cluster.apply(PERSISTENT_VOLUME, "", volume).await?;
        let claim = json!({
            "metadata": { "name": "mine" },
            "spec": {
                "storageClassName": "", "volumeName": name, "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": "1Gi" } },
            },
        });
        story.apply(CLAIM, claim).await?;
        let weights = json!({ "claim": { "claimName": "mine", "path": "models" } });
        story.respec(json!({ "weights": weights })).await?;
        answers(story).await?;
        let made = std::fs::read_to_string(models.join("chandler.json"))?;
        let manifest: Value = serde_json::from_str(&made)?;
        ensure!(manifest["files"][0]["path"] == "model.gguf", "{manifest}");
        let found = cache(story).await?;
        ensure!(
            found["status"]["bytesTotal"] == manifest["files"][0]["size"],
            "{found}"
        );

        // The same claim under another folder, whose manifest promises other bytes.
        story.disturbs();
        let other = memory.folder("other")?;
        std::fs::copy(&file, other.join("model.gguf"))?;
        let digest = manifest["files"][0]["sha256"]
            .as_str()
            .context("no digest")?;
        let wrong = made.replace(digest, &"0".repeat(digest.len()));
        std::fs::write(other.join("chandler.json"), wrong)?;
        let weights = json!({ "claim": { "claimName": "mine", "path": "other" } });
        story.respec(json!({ "weights": weights })).await?;
        let texts = ["other/model.gguf", "other bytes", "manifest"];
        story
            .told(TOLD_WITHIN, &NOT_CACHED, "DigestMismatch", &texts)
            .await?;
        std::fs::write(other.join("chandler.json"), &made)?;
        story.healed().await?;
        cluster.delete(PERSISTENT_VOLUME, "", name).await
    });
}

/// A hub and its proxy in one pod: only there do the hub's names lead anywhere.
fn hub_behind_proxy(image: &str) -> Value {
    json!({
        "metadata": { "name": "away" },
        "spec": {
            "selector": { "matchLabels": { "app": "away" } },
            "template": {
                "metadata": { "labels": { "app": "away" } },
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "hostAliases": [{ "ip": "127.0.0.1", "hostnames": [HUB, CDN] }],
                    "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
                    "volumes": [{ "name": "tls", "secret": { "secretName": "tls" } }],
                    "containers": [{
                        "name": "hub",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "args": [
                            "--folder=/srv/hub", format!("--cdn-url=https://{CDN}:8444"),
                            "--relay-listen=0.0.0.0:3128", "--tls-folder=/tls",
                        ],
                        "readinessProbe": { "httpGet": { "path": "/_healthz", "port": 8080 }, "periodSeconds": 1 },
                        "volumeMounts": [{ "name": "tls", "mountPath": "/tls", "readOnly": true }],
                        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "256Mi" } },
                        "securityContext": {
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": { "drop": ["ALL"] },
                        },
                    }],
                },
            },
        },
    })
}

#[test]
fn a_hub_behind_a_proxy_and_a_private_authority_is_reached_when_both_are_named() {
    story("proxied", Company::Alone, async |story| {
        let (cluster, images) = (&story.world.cluster, &story.world.images);
        let names = vec![HUB.to_owned(), CDN.to_owned()];
        let made = rcgen::generate_simple_self_signed(names)?;
        let secret = json!({
            "metadata": { "name": "tls" },
            "stringData": { tls::CERTIFICATE: made.cert.pem(), tls::KEY: made.signing_key.serialize_pem() },
        });
        story.apply(SECRET, secret).await?;
        let service = json!({
            "metadata": { "name": "proxy" },
            "spec": { "selector": { "app": "away" }, "ports": [{ "port": 3128 }] },
        });
        story.apply(SERVICE, service).await?;
        let hub = hub_behind_proxy(&images.hub.reference());
        story.apply(DEPLOYMENT, hub).await?;

        let proxy = format!(
            "proxy.httpsProxy=http://proxy.{}.svc.cluster.local:3128",
            story.namespace
        );
        let mut values = operator::values(images)?;
        values.push(proxy);
        operator::install_with(cluster, &values).await?;
        let mut object = model::deployment(&story.world.hub.demo_repository);
        object["spec"]["weights"] = json!({ "endpoint": format!("https://{HUB}:8443") });
        story.apply(MODEL_DEPLOYMENT, object).await?;
        // The proxy is passed, and then nobody vouches for the hub.
        let message = story
            .reason(TOLD_WITHIN, ("WeightsCached", "False", "HubUnreachable"))
            .await?;
        ensure!(message.to_lowercase().contains("certificate"), "{message}");

        values.push(format!("caBundle={}", made.cert.pem().replace(',', "\\,")));
        operator::install_with(cluster, &values).await?;
        answers(story).await?;
        operator::install(cluster, images).await
    });
}
