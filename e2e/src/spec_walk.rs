//! Walks each field of a ModelDeployment's spec through valid and invalid values on a live object, and back.
//!
//! What the object becomes must depend on its last spec alone: back at the first spec, everything is as with a fresh object.

pub mod values;

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, MODEL_DEPLOYMENT};
use crate::end_state::{EndState, diff};
use crate::faults::Reference;
use crate::local_operator::Program;
use crate::model::{condition, describe};
use crate::stage::Stage;
use crate::wait::{Seen, until};
use values::{Field, Sample};

/// How soon the operator says something about a changed spec.
const SAID_WITHIN: Duration = Duration::from_secs(60);

/// How soon everything is as before, growing pauses of controllers included.
const BACK_WITHIN: Duration = Duration::from_secs(180);

/// What went wrong on the walk along one field; nothing if the list is empty.
pub type Complaints = Vec<String>;

/// Walks one field and returns to the base spec. Gives the complaints, each with its value.
///
/// # Errors
/// When the walk itself is not possible.
pub async fn walk(
    cluster: &Cluster,
    program: &Program,
    base: &Reference,
    field: &Field,
    namespace: &str,
) -> Result<Complaints> {
    let stage = Stage::start(cluster, program, namespace, None).await?;
    let mut complaints = Vec::new();
    for step in &base.story.steps {
        step.act(&stage).await?;
    }
    let first = &base.states[base.states.len() - 1];
    stage.reaches(first, "the base spec").await?;
    let spec = crate::faults::stories::deployment("model")["spec"].clone();
    for sample in &field.samples {
        if let Some(complaint) = try_value(&stage, &spec, field, sample).await? {
            complaints.push(complaint);
        }
    }
    set(&stage, &spec)
        .await?
        .context("the base spec was refused")?;
    let back = until(
        BACK_WITHIN,
        "everything to be as with a fresh object",
        async || {
            let lines = diff(
                &comparable(first, first),
                &comparable(&stage.state().await?, first),
            );
            Ok(Seen::when(lines.is_empty(), || lines.join("\n    ")))
        },
    );
    if let Err(error) = back.await {
        complaints.push(format!(
            "{}: back at the base spec: {error}",
            field.path.join(".")
        ));
    }
    if stage.operator.ended_by_itself() > 0 {
        complaints.push(format!(
            "{}: the operator ended by itself",
            field.path.join(".")
        ));
    }
    if complaints.is_empty() {
        let _ = std::fs::remove_file(&stage.operator.log);
        stage.end().await?;
    }
    Ok(complaints)
}

/// Sets one value on the base spec and waits for the operator's word about it.
async fn try_value(
    stage: &Stage,
    base: &Value,
    field: &Field,
    sample: &Sample,
) -> Result<Option<String>> {
    let mut spec = base.clone();
    put(&mut spec, &field.path, sample.value.clone());
    let complain = |what: &str| {
        Some(format!(
            "{} = {}: {what}",
            field.path.join("."),
            sample.value
        ))
    };
    let Ok(changed) = set(stage, &spec).await? else {
        // Refused at admission: nothing was changed. Rules between fields refuse some valid values, too.
        return Ok(None);
    };
    if !sample.is_valid {
        return Ok(complain("the schema forbids it, and it was taken"));
    }
    let generation = changed["metadata"]["generation"].clone();
    let said = until(
        SAID_WITHIN,
        "the operator's word about the spec",
        async || {
            let object = live(stage).await?;
            let ready = condition(&object, "Ready");
            let is_said = object["status"]["observedGeneration"] == generation
                && ready["reason"]
                    .as_str()
                    .is_some_and(|reason| !reason.is_empty());
            Ok(Seen::when(is_said, || describe(&object)))
        },
    );
    Ok(match said.await {
        Ok(()) => None,
        Err(error) => complain(&format!("{error:#}")),
    })
}

async fn live(stage: &Stage) -> Result<Value> {
    stage
        .cluster
        .get(MODEL_DEPLOYMENT, &stage.namespace, "model")
        .await?
        .context("the ModelDeployment is gone")
}

/// Makes the live object's spec exactly this one. The inner error is the API server's refusal.
async fn set(stage: &Stage, spec: &Value) -> Result<Result<Value>> {
    let object = live(stage).await?;
    let patch = json!({ "spec": merge_patch(&object["spec"], spec) });
    Ok(stage
        .cluster
        .change(MODEL_DEPLOYMENT, &stage.namespace, "model", &patch)
        .await)
}

/// The merge patch that leads from one value to another.
fn merge_patch(from: &Value, to: &Value) -> Value {
    let (Value::Object(old), Value::Object(new)) = (from, to) else {
        return to.clone();
    };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in new {
        let before = old.get(key).unwrap_or(&Value::Null);
        if before != value {
            patch.insert(key.clone(), merge_patch(before, value));
        }
    }
    Value::Object(patch)
}

/// Puts a value at a path; `null` removes the field.
fn put(spec: &mut Value, path: &[String], value: Value) {
    let mut place = spec;
    let Some((last, parents)) = path.split_last() else {
        return;
    };
    for key in parents {
        if !place[key].is_object() {
            place[key] = json!({});
        }
        place = &mut place[key];
    }
    if let Value::Object(fields) = place {
        if value.is_null() {
            fields.remove(last);
        } else {
            fields.insert(last.clone(), value);
        }
    }
}

/// What must be as before: not the history of rollouts, not weights that are kept though nobody uses them,
/// and not the question to the hub, which is not asked again while the answer is known.
fn comparable(state: &EndState, expected: &EndState) -> EndState {
    let is_kept = |key: &String, object: &Value| {
        let is_forgotten_cache = key.starts_with("ModelCache/")
            && object["status"]["usedBy"]
                .as_array()
                .is_none_or(Vec::is_empty);
        is_forgotten_cache && !expected.contains_key(key)
    };
    let forgotten: Vec<String> = state
        .iter()
        .filter(|(key, object)| is_kept(key, object))
        .map(|(key, _)| key.trim_start_matches("ModelCache/").to_owned())
        .collect();
    let mut state = state.clone();
    state.retain(|key, object| {
        let cache = object["metadata"]["labels"]["chandler.dev/model-cache"].as_str();
        let is_of_forgotten = cache.is_some_and(|cache| forgotten.iter().any(|name| name == cache));
        let is_history = key.starts_with("ControllerRevision/") && !expected.contains_key(key);
        let is_question = object["metadata"]["labels"]["app.kubernetes.io/component"] == "resolve";
        !is_of_forgotten && !is_history && !is_question && !is_kept(key, object)
    });
    for (key, object) in &mut state {
        if key.starts_with("ControllerRevision/") {
            object["revision"] = Value::Null;
        }
        if let Some(annotations) = object["metadata"]["annotations"].as_object_mut() {
            annotations.remove("deployment.kubernetes.io/revision");
        }
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_removes_what_is_not_wanted() {
        let from = json!({"a": 1, "b": {"c": 1, "d": 2}});
        let to = json!({"b": {"c": 3}});
        assert_eq!(
            merge_patch(&from, &to),
            json!({"a": null, "b": {"c": 3, "d": null}})
        );
    }

    #[test]
    fn a_value_is_put_where_no_parent_is() {
        let mut spec = json!({"model": {}});
        put(
            &mut spec,
            &["pod".into(), "labels".into()],
            json!({"a": "b"}),
        );
        assert_eq!(spec, json!({"model": {}, "pod": {"labels": {"a": "b"}}}));
        put(&mut spec, &["pod".into()], Value::Null);
        assert_eq!(spec, json!({"model": {}}));
    }
}
