//! Apply a ModelDeployment, get an answer.

use anyhow::{Context, Result, ensure};
use chandler_e2e::chat::QUESTION;
use chandler_e2e::cluster::{CLAIM, DEPLOYMENT, JOB, MODEL_CACHE, POD, SERVICE, names};
use chandler_e2e::model::{SERVING, condition, describe};
use chandler_e2e::python;
use chandler_e2e::story::{Company, story};
use serde_json::Value;

use crate::served::{SHARED, endpoint, served};

#[test]
fn an_applied_example_answers_that_the_capital_of_france_is_paris() {
    story("answer", Company::Welcome, async |story| {
        let object = served(story).await?;
        for kind in [
            "ModelResolved",
            "WeightsCached",
            "RuntimeHealthy",
            "Available",
            "Ready",
        ] {
            let found = condition(&object, kind);
            ensure!(
                found["status"] == "True",
                "{kind} is not True:\n  {}",
                describe(&object)
            );
        }
        let status = &object["status"];
        ensure!(status["readyReplicas"] == 1, "{status}");
        ensure!(
            status["model"]["commit"]
                .as_str()
                .is_some_and(|commit| commit.len() == 40),
            "{status}"
        );
        let answer = story
            .endpoint(&object)
            .await?
            .ask("smollm2", QUESTION)
            .await?;
        ensure!(answer.status == 200, "{answer:?}");
        ensure!(answer.text().contains("Paris"), "{answer:?}");
        Ok(())
    });
}

#[test]
fn the_same_question_gets_the_same_greedy_answer() {
    story("greedy", Company::Welcome, async |story| {
        let endpoint = endpoint(story).await?;
        let first = endpoint.ask("smollm2", QUESTION).await?;
        let second = endpoint.ask("smollm2", QUESTION).await?;
        ensure!(!first.text().is_empty(), "{first:?}");
        ensure!(first.text() == second.text(), "{first:?} {second:?}");
        Ok(())
    });
}

#[test]
fn the_openai_python_client_streams_unmodified() {
    story("python", Company::Welcome, async |story| {
        let endpoint = endpoint(story).await?;
        let printed = python::script("stream.py", &[&endpoint.base, "smollm2", QUESTION]).await?;
        let seen: Value = serde_json::from_str(&printed).context(printed)?;
        ensure!(seen["models"] == serde_json::json!(["smollm2"]), "{seen}");
        ensure!(
            seen["pieces"].as_u64() >= Some(4),
            "not streamed piece by piece: {seen}"
        );
        ensure!(
            seen["spreadSeconds"].as_f64() > Some(0.0),
            "all pieces came at once: {seen}"
        );
        let text = seen["text"].as_str().unwrap_or_default();
        ensure!(text.contains("Paris"), "{seen}");
        ensure!(
            seen["whole"] == text,
            "streamed and whole answer differ: {seen}"
        );
        ensure!(
            ["stop", "length"].contains(&seen["finish"].as_str().unwrap_or_default()),
            "{seen}"
        );
        ensure!(seen["completionTokens"].as_u64() > Some(0), "{seen}");
        ensure!(
            seen["refusal"].is_string(),
            "an unknown model was not refused with 404: {seen}"
        );
        Ok(())
    });
}

#[test]
fn every_child_is_there_once_and_runs_restricted() {
    story("children", Company::Welcome, async |story| {
        served(story).await?;
        let cluster = &story.world.cluster;
        let count = async |kind| -> Result<Vec<String>> {
            Ok(names(&cluster.list(kind, SHARED, "").await?))
        };
        let deployments = count(DEPLOYMENT).await?;
        ensure!(deployments == ["smollm2"], "{deployments:?}");
        let services = count(SERVICE).await?;
        ensure!(services == ["smollm2"], "{services:?}");
        let caches = count(MODEL_CACHE).await?;
        ensure!(caches.len() == 1, "{caches:?}");
        ensure!(
            count(CLAIM).await? == caches,
            "the claim is not named as its cache: {caches:?}"
        );
        for component in ["resolve", "fetch"] {
            let selector = format!("app.kubernetes.io/component={component}");
            let jobs = names(&cluster.list(JOB, SHARED, &selector).await?);
            ensure!(jobs.len() == 1, "{component}: {jobs:?}");
        }
        for pod in cluster.list(POD, SHARED, SERVING).await? {
            check_restricted(&pod)?;
        }
        Ok(())
    });
}

/// More than the namespace enforces: what api.md promises of every pod.
fn check_restricted(pod: &Value) -> Result<()> {
    let spec = &pod["spec"];
    ensure!(spec["automountServiceAccountToken"] == false, "{spec}");
    let volumes = spec["volumes"].as_array().context("no volumes")?;
    ensure!(
        volumes.iter().all(|volume| volume["secret"].is_null()),
        "a serving pod sees a Secret: {spec}"
    );
    for container in spec["containers"].as_array().context("no containers")? {
        let security = &container["securityContext"];
        ensure!(security["readOnlyRootFilesystem"] == true, "{container}");
        ensure!(security["allowPrivilegeEscalation"] == false, "{container}");
        ensure!(
            container["resources"]["requests"]["memory"].is_string(),
            "{container}"
        );
        ensure!(
            container["resources"]["limits"]["memory"].is_string(),
            "{container}"
        );
        let weights = container["volumeMounts"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|mount| mount["mountPath"] == "/weights")
            .context("no /weights")?;
        ensure!(weights["readOnly"] == true, "{weights}");
    }
    Ok(())
}
