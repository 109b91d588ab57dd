//! What users do: each story is a few steps, and each step is one change by a user.

use std::fmt;

use anyhow::Result;
use serde_json::{Value, json};

use crate::cluster::{Kind, MODEL_CACHE, MODEL_CARD, MODEL_DEPLOYMENT};
use crate::model;
use crate::stage::Stage;

/// A few steps.
pub struct Story {
    /// What it is about.
    pub name: &'static str,
    /// The changes, in their order.
    pub steps: Vec<Step>,
}

/// One change by a user. A cluster-wide object, and whoever names it, has the stage's own name instead of `STAGE`.
pub enum Step {
    /// Applies an object.
    Apply(Kind, Value),
    /// Changes an object by a merge patch.
    Change(Kind, &'static str, Value),
    /// Deletes an object.
    Delete(Kind, &'static str),
}

/// Stands for the stage's name.
pub const STAGE: &str = "STAGE";

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apply(kind, object) => {
                write!(f, "apply {} {}", kind.word(), object["metadata"]["name"])
            }
            Self::Change(kind, name, patch) => write!(f, "change {} {name} {patch}", kind.word()),
            Self::Delete(kind, name) => write!(f, "delete {} {name}", kind.word()),
        }
    }
}

impl Step {
    /// Does it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn act(&self, stage: &Stage) -> Result<()> {
        let namespace = |kind: Kind| {
            if kind.word() == MODEL_CARD.word() {
                ""
            } else {
                stage.namespace.as_str()
            }
        };
        let own = |name: &str| name.replace(STAGE, &stage.namespace);
        match self {
            Self::Apply(kind, object) => {
                let object = serde_json::from_str(&own(&object.to_string()))?;
                stage.cluster.apply(*kind, namespace(*kind), object).await?;
            }
            Self::Change(kind, name, patch) => {
                stage
                    .cluster
                    .change(*kind, namespace(*kind), &own(name), patch)
                    .await?;
            }
            Self::Delete(kind, name) => {
                stage
                    .cluster
                    .delete(*kind, namespace(*kind), &own(name))
                    .await?;
            }
        }
        Ok(())
    }
}

/// The repository that the stories name. Nobody asks for it.
const REPOSITORY: &str = "played/SmolLM2-135M-Instruct-GGUF";

/// A ModelDeployment as the stories apply it.
#[must_use]
pub fn deployment(name: &str) -> Value {
    let mut object = model::deployment(REPOSITORY);
    object["metadata"]["name"] = name.into();
    object
}

fn apply(name: &str) -> Step {
    Step::Apply(MODEL_DEPLOYMENT, deployment(name))
}

fn change(spec: &Value) -> Step {
    Step::Change(MODEL_DEPLOYMENT, "model", json!({ "spec": spec }))
}

/// All stories.
#[must_use]
pub fn all() -> Vec<Story> {
    vec![
        Story {
            name: "create",
            steps: vec![apply("model")],
        },
        Story {
            name: "roll out a changed spec",
            steps: vec![
                apply("model"),
                change(&json!({ "limits": { "contextLength": 1024 } })),
                change(
                    &json!({ "runtime": { "env": [{ "name": "A", "value": "1" }] }, "replicas": 2 }),
                ),
            ],
        },
        Story {
            name: "scale",
            steps: vec![
                apply("model"),
                change(&json!({ "replicas": 3 })),
                change(&json!({ "replicas": 1 })),
            ],
        },
        Story {
            name: "suspend and resume",
            steps: vec![
                apply("model"),
                change(&json!({ "replicas": 0 })),
                change(&json!({ "replicas": 1 })),
            ],
        },
        Story {
            name: "another revision of the model",
            steps: vec![
                apply("model"),
                change(&json!({ "model": { "revision": "other" } })),
            ],
        },
        delete(),
        edit_card(),
        share_a_cache(),
        named_cache(),
    ]
}

fn delete() -> Story {
    let mut object = deployment("model");
    object["spec"]["weights"] = json!({ "storage": { "reclaimPolicy": "Delete" } });
    Story {
        name: "delete, weights included",
        steps: vec![
            Step::Apply(MODEL_DEPLOYMENT, object),
            Step::Delete(MODEL_DEPLOYMENT, "model"),
        ],
    }
}

fn edit_card() -> Story {
    let mut object = deployment("model");
    let mut card = object["spec"]["model"]["inline"].take();
    card["defaults"] = json!({ "maxSequences": 4 });
    object["spec"]["model"] = json!({ "card": STAGE });
    object["spec"]["limits"] = json!({ "contextLength": 2048 });
    Story {
        name: "edit the card",
        steps: vec![
            Step::Apply(
                MODEL_CARD,
                json!({ "metadata": { "name": STAGE }, "spec": card }),
            ),
            // Not the other way round: what is said of an absent card names all others, and other stages have theirs.
            Step::Apply(MODEL_DEPLOYMENT, object),
            Step::Change(
                MODEL_CARD,
                STAGE,
                json!({ "spec": { "defaults": { "maxSequences": 8 } } }),
            ),
            change(&json!({ "limits": { "contextLength": 1024 } })),
        ],
    }
}

fn share_a_cache() -> Story {
    Story {
        name: "two share a cache, one leaves",
        steps: vec![
            apply("model"),
            apply("other"),
            Step::Delete(MODEL_DEPLOYMENT, "model"),
        ],
    }
}

fn named_cache() -> Story {
    let cache = json!({
        "metadata": { "name": "weights" },
        "spec": { "source": { "hub": { "id": REPOSITORY, "format": "ggufv2" } }, "storage": { "size": "1Gi" } },
    });
    let mut object = deployment("model");
    object["spec"]["weights"] = json!({ "cache": { "name": "weights" } });
    Story {
        name: "a cache that is made by hand, and goes",
        steps: vec![
            Step::Apply(MODEL_DEPLOYMENT, object),
            Step::Apply(MODEL_CACHE, cache),
            Step::Delete(MODEL_DEPLOYMENT, "model"),
            Step::Delete(MODEL_CACHE, "weights"),
        ],
    }
}
