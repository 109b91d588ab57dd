//! What the serving containers of all engines have in common: image, environment, ports, probes, resources. Pure.

use k8s_openapi::api::core::v1::{
    Container, EnvVar, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::ModelDeployment;
use crate::child;
use crate::config::PodDefaults;
use crate::model_deployment::plan::Memory;
use crate::model_deployment::validate::Validated;
use crate::quantity;

/// Name of the port with the OpenAI API.
pub const HTTP_PORT_NAME: &str = "http";

/// Port of the OpenAI API.
pub const HTTP_PORT: i32 = 8080;

/// Folder of the weights.
pub const WEIGHTS_FOLDER: &str = "/weights";

/// Seconds between the pod's leaving the Service and SIGTERM: proxies need them to hear of it.
const PRE_STOP_SECONDS: i64 = 5;

/// Seconds that running answers get to finish after SIGTERM.
pub const DRAIN_SECONDS: i64 = 30;

/// Seconds until a leaving pod is killed: the pause, two seconds of late requests, the drain, and room to end.
pub const GRACE_SECONDS: i64 = PRE_STOP_SECONDS + 2 + DRAIN_SECONDS + 8;

/// A serving container without what only its engine knows. `image` counts where the spec names none.
#[must_use]
pub fn build(
    object: &ModelDeployment,
    validated: &Validated,
    memory: &Memory,
    image: &str,
    defaults: &PodDefaults,
) -> Container {
    let runtime = object.spec.runtime.clone().unwrap_or_default();
    let env: Vec<EnvVar> = runtime
        .env
        .iter()
        .map(|entry| env(&entry.name, &entry.value))
        .collect();
    let mut requests = vec![
        ("cpu", "250m".to_owned()),
        ("memory", quantity::mebibytes(memory.needed)),
    ];
    let mut limits = vec![
        ("cpu", "8".to_owned()),
        ("memory", quantity::mebibytes(memory.most)),
    ];
    let accelerator = &validated.accelerator;
    if accelerator.kind != "cpu" {
        requests.push((&accelerator.kind, accelerator.count.to_string()));
        limits.push((&accelerator.kind, accelerator.count.to_string()));
    }
    Container {
        name: "serve".to_owned(),
        image: Some(runtime.image.unwrap_or_else(|| image.to_owned())),
        image_pull_policy: Some(
            runtime
                .image_pull_policy
                .unwrap_or(defaults.pull_policy)
                .as_str()
                .to_owned(),
        ),
        env: (!env.is_empty()).then_some(env),
        resources: Some(child::resources(
            runtime.resources.as_ref(),
            &requests,
            &limits,
        )),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: PRE_STOP_SECONDS,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        ..Container::default()
    }
}

/// Path of the weights in the container.
#[must_use]
pub fn model_path(path: &str) -> String {
    if path.is_empty() {
        WEIGHTS_FOLDER.to_owned()
    } else {
        format!("{WEIGHTS_FOLDER}/{path}")
    }
}

/// A variable with a plain value.
#[must_use]
pub fn env(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    }
}

/// How an engine is asked whether it lives and whether it answers.
#[derive(Clone, Copy, Debug)]
pub struct Health<'a> {
    /// Name of the port.
    pub port: &'a str,
    /// Path that answers while the process lives.
    pub alive: &'a str,
    /// Path that answers while requests are taken.
    pub ready: &'a str,
    /// How often, and how many seconds apart, it is asked at its start before it counts as dead.
    pub startup: (i32, i32),
}

/// The container, asked so.
#[must_use]
pub fn with_probes(container: Container, health: Health<'_>) -> Container {
    let (tries, seconds) = health.startup;
    Container {
        startup_probe: Some(Probe {
            failure_threshold: Some(tries),
            ..probe(health.port, health.alive, seconds)
        }),
        liveness_probe: Some(Probe {
            failure_threshold: Some(3),
            timeout_seconds: Some(5),
            ..probe(health.port, health.alive, 10)
        }),
        readiness_probe: Some(Probe {
            failure_threshold: Some(3),
            timeout_seconds: Some(2),
            ..probe(health.port, health.ready, 1)
        }),
        ..container
    }
}

/// What our runtime and Transformers call the place where they compute.
#[must_use]
pub fn device(validated: &Validated) -> &'static str {
    if validated.accelerator.kind == "cpu" {
        "cpu"
    } else {
        "cuda"
    }
}

fn probe(port: &str, path: &str, period_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(port.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        ..Probe::default()
    }
}
