//! Everything is pulled from a registry that needs a login: operator, Jobs and serving pods.
//!
//! The registry is distribution's own, as a pod, at the one address that the cluster's node reaches without TLS.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chandler_e2e::chat::QUESTION;
use chandler_e2e::cluster::{DEPLOYMENT, JOB, POD, SECRET, SERVICE};
use chandler_e2e::forward::Forward;
use chandler_e2e::images::Image;
use chandler_e2e::model::{NAME, SERVING};
use chandler_e2e::operator;
use chandler_e2e::story::{Company, Story, story};
use chandler_e2e::tools::{checkout, run};
use chandler_e2e::wait::{Seen, until};
use serde_json::{Value, json};

/// Where the node pulls from; e2e/cluster prepares its containerd for this address.
const CLUSTER_ADDRESS: &str = "10.96.0.50";
const REGISTRY: &str = "10.96.0.50:5000";
const USER: &str = "puller";
const PASSWORD: &str = "only-for-the-story";
/// bcrypt of the password, with few rounds: the registry checks it with every request.
const HTPASSWD: &str = "puller:$2b$06$TR.AqAJDW6YwrWzXsgbAPuCRwBeUNRc.trZFO4JSsvYGzc7gplegW";
const LOGIN: &str = "registry-login";

#[test]
fn everything_is_pulled_from_a_registry_that_needs_a_login() {
    story("registry", Company::Alone, async |story| {
        let result = install_from_registry(story).await;
        if result.is_err() {
            chandler_e2e::namespace::dump(&story.world.cluster, &story.namespace).await;
        }
        // The other stories need the usual operator, however this one ended. It brings another runtime image to the model here.
        story.disturbs();
        operator::install(&story.world.cluster, &story.world.images).await?;
        result
    });
}

async fn install_from_registry(story: &Story) -> Result<()> {
    let (cluster, images) = (&story.world.cluster, &story.world.images);
    let pod = start_registry(story).await?;
    let way = Forward::to_pod(&cluster.client, &story.namespace, &pod, 5000).await?;
    check_login_is_needed(&way).await?;
    for image in [&images.operator, &images.runtime] {
        push(&way, image).await?;
    }

    operator::uninstall(cluster).await?;
    for namespace in [operator::NAMESPACE, story.namespace.as_str()] {
        cluster.apply(SECRET, namespace, login(REGISTRY)).await?;
    }
    let values = [
        format!("image.registry={REGISTRY}/chandler"),
        format!("image.tag={}", images.operator.tag),
        "image.pullPolicy=Always".to_owned(),
        format!("runtime.image.tag={}", images.runtime.tag),
        "runtime.image.pullPolicy=Always".to_owned(),
        format!("imagePullSecrets[0].name={LOGIN}"),
        format!(
            "hubs.huggingface.endpoint={}",
            chandler_e2e::hub_pod::ENDPOINT
        ),
    ];
    operator::install_with(cluster, &values).await?;

    let seen = deploy_and_watch_images(story).await?;
    let runtime = format!(
        "{REGISTRY}/chandler/chandler-runtime:{}",
        images.runtime.tag
    );
    for component in ["resolve", "fetch", "serve"] {
        ensure!(
            seen.contains(&(component.to_owned(), runtime.clone())),
            "no pod \"{component}\" ran {runtime}: {seen:?}"
        );
    }
    let operator = cluster
        .get(
            POD,
            operator::NAMESPACE,
            &operator::running_pod(cluster).await?,
        )
        .await?
        .unwrap_or_default();
    let image = operator["spec"]["containers"][0]["image"].as_str();
    ensure!(
        image.is_some_and(|image| image.starts_with(REGISTRY)),
        "the operator runs {image:?}"
    );
    Ok(())
}

/// Component and image of every pod that ran until the model was Ready; Jobs are asked too, since their pods may go early.
async fn deploy_and_watch_images(story: &Story) -> Result<BTreeSet<(String, String)>> {
    story.deploy().await?;
    let ready = story.ready().await?;
    let answer = story.endpoint(&ready).await?.ask(NAME, QUESTION).await?;
    ensure!(answer.text().contains("Paris"), "{answer:?}");
    let cluster = &story.world.cluster;
    // A pod tells what it found before its Job is counted as done.
    let jobs = until(
        Duration::from_secs(60),
        "every Job to succeed",
        async || {
            let jobs = cluster.list(JOB, &story.namespace, "").await?;
            let waiting = jobs.iter().find(|job| job["status"]["succeeded"] != 1);
            Ok(match waiting {
                None => Seen::Yes(jobs),
                Some(job) => Seen::NotYet(format!("{} {}", job["metadata"]["name"], job["status"])),
            })
        },
    )
    .await?;
    let mut templates: Vec<Value> = jobs
        .iter()
        .map(|job| job["spec"]["template"].clone())
        .collect();
    templates.extend(cluster.list(POD, &story.namespace, SERVING).await?);
    templates
        .iter()
        .map(|template| {
            let component = &template["metadata"]["labels"]["app.kubernetes.io/component"];
            let container = &template["spec"]["containers"][0];
            ensure!(
                template["spec"]["imagePullSecrets"] == json!([{ "name": LOGIN }]),
                "the pull secret did not reach {template}"
            );
            ensure!(container["imagePullPolicy"] == "Always", "{container}");
            Ok((
                component.as_str().unwrap_or_default().to_owned(),
                container["image"].as_str().unwrap_or_default().to_owned(),
            ))
        })
        .collect()
}

async fn start_registry(story: &Story) -> Result<String> {
    let image = std::env::var("CHANDLER_REGISTRY_IMAGE").context(
        "CHANDLER_REGISTRY_IMAGE is not set: the image with distribution's registry, which `make e2e` packs and loads",
    )?;
    let settings = json!({
        "metadata": { "name": "registry" },
        "stringData": {
            "htpasswd": HTPASSWD,
            "config.yml": "version: 0.1\nhttp:\n  addr: 0.0.0.0:5000\nstorage:\n  filesystem:\n    rootdirectory: /data\nauth:\n  htpasswd:\n    realm: registry\n    path: /settings/htpasswd\n",
        },
    });
    story.apply(SECRET, settings).await?;
    let deployment = json!({
        "metadata": { "name": "registry" },
        "spec": {
            "selector": { "matchLabels": { "app": "registry" } },
            "template": {
                "metadata": { "labels": { "app": "registry" } },
                "spec": {
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 1,
                    "securityContext": { "runAsNonRoot": true, "runAsUser": 65532, "fsGroup": 65532, "seccompProfile": { "type": "RuntimeDefault" } },
                    "containers": [{
                        "name": "registry",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "args": ["serve", "/settings/config.yml"],
                        "env": [{ "name": "OTEL_TRACES_EXPORTER", "value": "none" }],
                        "readinessProbe": { "tcpSocket": { "port": 5000 }, "periodSeconds": 1 },
                        "resources": { "requests": { "cpu": "10m", "memory": "32Mi" }, "limits": { "memory": "256Mi" } },
                        "securityContext": { "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] } },
                        "volumeMounts": [{ "name": "settings", "mountPath": "/settings" }, { "name": "data", "mountPath": "/data" }],
                    }],
                    "volumes": [{ "name": "settings", "secret": { "secretName": "registry" } }, { "name": "data", "emptyDir": {} }],
                },
            },
        },
    });
    story.apply(DEPLOYMENT, deployment).await?;
    let service = json!({
        "metadata": { "name": "registry" },
        "spec": {
            "clusterIP": CLUSTER_ADDRESS,
            "selector": { "app": "registry" },
            "ports": [{ "port": 5000 }],
        },
    });
    story.apply(SERVICE, service).await?;
    until(
        Duration::from_secs(60),
        "the registry's pod to be ready",
        async || {
            let pods = story
                .world
                .cluster
                .list(POD, &story.namespace, "app=registry")
                .await?;
            let ready = pods
                .iter()
                .find(|pod| pod["status"]["containerStatuses"][0]["ready"] == true);
            Ok(match ready {
                Some(pod) => Seen::Yes(pod["metadata"]["name"].as_str().unwrap_or("").to_owned()),
                None => Seen::NotYet(format!("{} pods", pods.len())),
            })
        },
    )
    .await
}

async fn check_login_is_needed(way: &Forward) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let url = format!("http://{}/v2/", way.address);
    let anonymous = client.get(&url).send().await?.status();
    ensure!(anonymous == 401, "an anonymous caller gets {anonymous}");
    let known = client
        .get(&url)
        .basic_auth(USER, Some(PASSWORD))
        .send()
        .await?
        .status();
    ensure!(known == 200, "a caller with the login gets {known}");
    Ok(())
}

/// Pushes as `make images-push` does, with a login as `docker login` leaves it.
async fn push(way: &Forward, image: &Image) -> Result<()> {
    let registry = way.address.to_string();
    let home = tempfile::TempDir::new()?;
    let config = docker_config(&registry).to_string();
    std::fs::write(home.path().join("config.json"), config)?;
    let name = image.name.rsplit('/').next().unwrap_or(&image.name);
    let packer = checkout().join("build/bin/image");
    let home_argument = format!("DOCKER_CONFIG={}", home.path().display());
    run(
        "env",
        &[
            home_argument.as_str(),
            text(&packer)?,
            "push",
            "--archive",
            text(&image.archive)?,
            "--to",
            &format!("{registry}/chandler/{name}:{}", image.tag),
        ],
    )
    .await?;
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path is not text")
}

fn docker_config(registry: &str) -> Value {
    json!({ "auths": { registry: { "username": USER, "password": PASSWORD, "auth": BASIC } } })
}

/// Base64 of `USER:PASSWORD`, which the format wants beside the two.
const BASIC: &str = "cHVsbGVyOm9ubHktZm9yLXRoZS1zdG9yeQ==";

fn login(registry: &str) -> Value {
    json!({
        "metadata": { "name": LOGIN },
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": { ".dockerconfigjson": docker_config(registry).to_string() },
    })
}
