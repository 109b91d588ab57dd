//! Golden cases: `input.yaml` (an object) and `facts.yaml` (what the cluster says) → `objects.yaml` and `status.yaml`.
//!
//! A new case needs no Rust: make a folder with the first two files and run with `UPDATE_GOLDEN=1`, then review the others.

use std::path::Path;

use chandler_operator::api::{ModelCache, ModelDeployment};
use chandler_operator::config::PodDefaults;
use chandler_operator::{digest, model_cache, model_deployment};
use jiff::Timestamp;
use serde_json::{Value, json};

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cases");

#[test]
fn every_case_decides_as_written() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for entry in std::fs::read_dir(CASES).unwrap() {
        let folder = entry.unwrap().path();
        count += 1;
        let (objects, status) = decide(&folder);
        for (name, value) in [("objects.yaml", objects), ("status.yaml", status)] {
            let path = folder.join(name);
            let text = serde_saphyr::to_string(&digest::sorted(value)).unwrap();
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, &text).unwrap();
            } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
                wrong.push(format!("{}: decided\n{text}", path.display()));
            }
        }
    }
    assert!(count > 0, "no case in {CASES}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn decide(folder: &Path) -> (Value, Value) {
    let input = read(&folder.join("input.yaml"));
    let facts = read(&folder.join("facts.yaml"));
    let defaults = PodDefaults {
        image: "registry.test/chandler-runtime:1".to_owned(),
        cuda_image: "registry.test/chandler-runtime-cuda:1".to_owned(),
        ..PodDefaults::default()
    };
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    let kind: Value = serde_saphyr::from_str(&input).unwrap();
    let (input, facts) = asked(&input, &facts, &defaults);
    match kind["kind"].as_str() {
        Some("ModelDeployment") => deployment(&input, &facts, &defaults, now),
        Some("ModelCache") => cache(&input, &facts, &defaults, now),
        other => panic!("{}: kind {other:?}", folder.display()),
    }
}

/// Puts the digest of what the spec asks the hub into the place of `REQ`, and the spec's own into the place of `SPEC`.
fn asked(input: &str, facts: &str, defaults: &PodDefaults) -> (String, String) {
    use model_deployment::validate::{Origin, Validated, validate};
    const PLACE: &str = "request: REQ";
    let filled = |digest: &str| {
        let digest = format!("request: \"{digest}\"");
        (input.replace(PLACE, &digest), facts.replace(PLACE, &digest))
    };
    let object: ModelDeployment = match serde_saphyr::from_str(input) {
        Ok(object) => object,
        Err(_) => return (input.to_owned(), facts.to_owned()),
    };
    let spec = model_deployment::revision::spec_digest(&object);
    let facts = facts.replace("spec: SPEC", &format!("spec: \"{spec}\""));
    if !input.contains(PLACE) && !facts.contains(PLACE) {
        return (input.to_owned(), facts);
    }
    let observed = serde_saphyr::from_str(&facts).unwrap();
    match validate(&object, &observed, defaults, None, 0) {
        Ok(Validated {
            origin: Origin::Hub { request, .. },
            ..
        }) => {
            let (input, _) = filled(&digest::of(&request));
            let digest = format!("request: \"{}\"", digest::of(&request));
            (input, facts.replace(PLACE, &digest))
        }
        other => panic!("nothing is asked, so there is no digest for REQ: {other:?}"),
    }
}

fn deployment(input: &str, facts: &str, defaults: &PodDefaults, now: Timestamp) -> (Value, Value) {
    use model_deployment::decide::decide;
    let object: ModelDeployment = serde_saphyr::from_str(input).unwrap();
    let decided = |facts: &str| {
        let mut observed: model_deployment::observe::Observed =
            serde_saphyr::from_str(facts).unwrap();
        let cache = observed.cache.clone();
        let decision = decide(&object, &mut observed, defaults, now, &|_, _| {
            (cache.clone(), None)
        });
        (decision, observed)
    };
    // Facts write `new` for the digest of the pods that this spec wants.
    let (first, _) = decided(facts);
    let digest = first.wanted.as_ref().and_then(|w| w.template_digest());
    let facts = facts.replace(
        "chandler.dev/revision: new",
        &format!("chandler.dev/revision: \"{}\"", digest.unwrap_or("new")),
    );
    let (decision, observed) = decided(&facts);
    let objects = &decision.objects;
    let written = json!({
        "service": objects.service, "job": objects.job, "cache": objects.cache,
        "revision": objects.revision.as_ref().map(shortened), "workload": objects.workload, "budget": objects.budget,
        "staleJobs": names(&objects.stale_jobs), "staleRevisions": names(&objects.stale_revisions),
    });
    let status = model_deployment::status::status(&object, &decision, None, &observed, now);
    (
        without_nulls(written),
        serde_json::to_value(status).unwrap(),
    )
}

/// A revision without the template, which stands in the workload.
fn shortened(revision: &k8s_openapi::api::apps::v1::ControllerRevision) -> Value {
    let mut value = serde_json::to_value(revision).unwrap();
    value["data"].as_object_mut().unwrap().remove("template");
    value
}

fn cache(input: &str, facts: &str, defaults: &PodDefaults, now: Timestamp) -> (Value, Value) {
    use model_cache::status::Outcome;
    let object: ModelCache = serde_saphyr::from_str(input).unwrap();
    let observed: model_cache::observe::Observed = serde_saphyr::from_str(facts).unwrap();
    let (objects, outcome) = match model_cache::validate::validate(&object, defaults) {
        Err(violation) => (json!({}), Outcome::Invalid(violation)),
        Ok(validated) => {
            let progress = model_cache::progress::progress(&object, &validated, &observed);
            let objects =
                model_cache::build::build(&object, &validated, &progress, &observed, defaults);
            let written = json!({
                "claim": objects.claim, "job": objects.job, "staleJobs": names(&objects.stale_jobs),
            });
            (
                without_nulls(written),
                Outcome::Reached(validated, progress),
            )
        }
    };
    let status = model_cache::status::status(&object, &outcome, &observed, now);
    (objects, serde_json::to_value(status).unwrap())
}

fn names<K: kube::Resource>(objects: &[K]) -> Vec<Option<String>> {
    objects
        .iter()
        .map(|object| object.meta().name.clone())
        .collect()
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| (key, without_nulls(value)))
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(without_nulls).collect()),
        other => other,
    }
}
