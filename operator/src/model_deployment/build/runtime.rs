//! The serving container: arguments, ports, probes, mounts, memory. The only place that knows how `serve` is called. Pure.

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EnvVar, HTTPGetAction, Lifecycle, LifecycleHandler, Probe,
    SleepAction, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::api::ModelDeployment;
use crate::child;
use crate::config::PodDefaults;
use crate::model_deployment::progress::Weights;
use crate::model_deployment::validate::Validated;
use crate::quantity;

/// Name of the port with the OpenAI API.
pub const HTTP_PORT_NAME: &str = "http";

/// Name of the port with health, metrics and status.
const MANAGEMENT_PORT_NAME: &str = "management";

/// Folder of the weights.
const WEIGHTS_FOLDER: &str = "/weights";

/// Seconds between the pod's leaving the Service and SIGTERM: proxies need them to hear of it.
const PRE_STOP_SECONDS: i64 = 5;

/// Seconds that running answers get to finish after SIGTERM.
const DRAIN_SECONDS: i64 = 30;

/// Seconds until a leaving pod is killed: the pause, two seconds of late requests, the drain, and room to end.
pub const GRACE_SECONDS: i64 = PRE_STOP_SECONDS + 2 + DRAIN_SECONDS + 8;

/// Builds the serving container.
#[must_use]
pub fn build_container(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    defaults: &PodDefaults,
    temporary: VolumeMount,
) -> Container {
    let runtime = object.spec.runtime.clone().unwrap_or_default();
    let env: Vec<EnvVar> = runtime
        .env
        .iter()
        .map(|entry| EnvVar {
            name: entry.name.clone(),
            value: Some(entry.value.clone()),
            value_from: None,
        })
        .collect();
    let memory = memory(validated, weights);
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
        image: Some(runtime.image.unwrap_or_else(|| defaults.image.clone())),
        image_pull_policy: Some(
            runtime
                .image_pull_policy
                .unwrap_or(defaults.pull_policy)
                .as_str()
                .to_owned(),
        ),
        args: Some(arguments(validated, weights)),
        env: (!env.is_empty()).then_some(env),
        ports: Some(vec![
            port(HTTP_PORT_NAME, 8080),
            port(MANAGEMENT_PORT_NAME, 8081),
        ]),
        volume_mounts: Some(vec![
            child::mount("weights", WEIGHTS_FOLDER, true),
            temporary,
        ]),
        resources: Some(child::resources(
            runtime.resources.as_ref(),
            &requests,
            &limits,
        )),
        // The process answers /healthz from its first moment, so a long load is never taken for a death.
        startup_probe: Some(Probe {
            failure_threshold: Some(60),
            ..probe("/healthz", 1)
        }),
        liveness_probe: Some(Probe {
            failure_threshold: Some(3),
            timeout_seconds: Some(5),
            ..probe("/healthz", 10)
        }),
        readiness_probe: Some(Probe {
            failure_threshold: Some(3),
            timeout_seconds: Some(2),
            ..probe("/readyz", 1)
        }),
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

fn arguments(validated: &Validated, weights: &Weights) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned()];
    // One argument each, so that no value can be taken for a flag.
    let mut flag = |name: &str, value: &str| arguments.push(format!("--{name}={value}"));
    let model = if weights.path.is_empty() {
        WEIGHTS_FOLDER.to_owned()
    } else {
        format!("{WEIGHTS_FOLDER}/{}", weights.path)
    };
    flag("model", &model);
    for name in &validated.served_names {
        flag("served-name", name);
    }
    flag(
        "device",
        if validated.accelerator.kind == "cpu" {
            "cpu"
        } else {
            "cuda"
        },
    );
    if let Some(length) = validated.context_length {
        flag("context-length", &length.to_string());
    }
    if let Some(sequences) = validated.max_sequences {
        flag("max-sequences", &sequences.to_string());
    }
    if let Some(seconds) = validated.request_timeout_seconds {
        flag("request-timeout-seconds", &seconds.to_string());
    }
    flag("drain-seconds", &DRAIN_SECONDS.to_string());
    arguments
}

fn port(name: &str, number: i32) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    }
}

fn probe(path: &str, period_seconds: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(MANAGEMENT_PORT_NAME.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period_seconds),
        ..Probe::default()
    }
}

struct Memory {
    needed: i64,
    most: i64,
}

/// Bytes of main memory of one replica: weights and one full context at least, all contexts at most.
///
/// Weights count 1.6 times, because Q4_1 is kept as Q8_0 beside the mapped file.
/// The KV cache of one token is taken as 46 KiB times the root of the billions of parameters, four bytes a value:
/// twice what the Llama family needs with two bytes a value.
fn memory(validated: &Validated, weights: &Weights) -> Memory {
    const MEBIBYTE: f64 = 1024.0 * 1024.0;
    let billions: f64 = validated.choice.size_in_billions.parse().unwrap_or(1.0);
    let bytes = weights.bytes.map_or(billions * 2e9, |bytes| bytes as f64);
    let context = 2.0 * 46.0 * 1024.0 * billions.sqrt() * validated.longest_context as f64;
    let sequences = f64::from(validated.max_sequences.unwrap_or(16));
    let needed = bytes * 1.6 + context + 256.0 * MEBIBYTE;
    Memory {
        needed: needed as i64,
        most: (needed + context * (sequences - 1.0)) as i64,
    }
}
