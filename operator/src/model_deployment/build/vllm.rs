//! The container of vLLM: `vllm serve` with what the spec says. Pure.
//!
//! Options are vLLM's own (docs.vllm.ai/en/v0.10.2/cli/serve.html).

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, Probe, SecretKeySelector,
    SecurityContext, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use super::container::{self, HTTP_PORT, HTTP_PORT_NAME, env, model_path, port, probe};
use crate::api::{ModelDeployment, SecretKey};
use crate::child;
use crate::config::PodDefaults;
use crate::model_deployment::plan;
use crate::model_deployment::progress::Weights;
use crate::model_deployment::validate::Validated;

/// The user of our own images too.
const NOBODY: i64 = 65_532;

/// Builds the serving container.
#[must_use]
pub fn build_container(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    defaults: &PodDefaults,
) -> (Container, Vec<Volume>, Vec<VolumeMount>) {
    let memory = plan::memory_of_python(validated, weights);
    let mut built = container::build(object, validated, &memory, &defaults.vllm_image, defaults);
    let variables = built.env.get_or_insert_default();
    variables.extend(at_home());
    if let Some(access) = &object.spec.access {
        variables.push(secret("VLLM_API_KEY", &access.api_key_secret_ref));
    }
    let built = Container {
        command: Some(vec!["vllm".to_owned(), "serve".to_owned()]),
        args: Some(arguments(object, validated, weights)),
        ports: Some(vec![port(HTTP_PORT_NAME, HTTP_PORT)]),
        security_context: as_user(object, defaults),
        // vLLM answers nothing while it loads and compiles; two hours are room for the largest models.
        startup_probe: Some(Probe {
            failure_threshold: Some(1_440),
            ..probe(HTTP_PORT_NAME, "/health", 5)
        }),
        liveness_probe: Some(Probe {
            failure_threshold: Some(3),
            timeout_seconds: Some(5),
            ..probe(HTTP_PORT_NAME, "/health", 10)
        }),
        readiness_probe: Some(Probe {
            failure_threshold: Some(3),
            timeout_seconds: Some(2),
            ..probe(HTTP_PORT_NAME, "/health", 1)
        }),
        ..built
    };
    // Ranks of one model speak through shared memory.
    let shared = Volume {
        name: "shm".to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: Some("Memory".to_owned()),
            size_limit: Some(Quantity("2Gi".to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    };
    let mount = child::mount("shm", "/dev/shm", false);
    (built, vec![shared], vec![mount])
}

/// Nothing is fetched at run time, and whatever is written goes to the one writable folder.
#[must_use]
pub fn at_home() -> Vec<EnvVar> {
    vec![
        env("HOME", "/tmp"),
        // PyTorch names a folder after the user, whom the image's /etc/passwd does not know.
        env("USER", "chandler"),
        env("HF_HUB_OFFLINE", "1"),
        env("TRANSFORMERS_OFFLINE", "1"),
        env("VLLM_NO_USAGE_STATS", "1"),
    ]
}

/// The engines' images run as root, which the pod forbids, so a user is named; not where the platform or the spec chooses one.
#[must_use]
pub fn as_user(object: &ModelDeployment, defaults: &PodDefaults) -> Option<SecurityContext> {
    let pod = object.spec.pod.as_ref();
    let chosen = pod
        .and_then(|pod| pod.security_context.as_ref())
        .is_some_and(|security| security.run_as_user.is_some());
    (!chosen && defaults.fs_group.is_some()).then(|| SecurityContext {
        run_as_user: Some(NOBODY),
        ..SecurityContext::default()
    })
}

fn secret(name: &str, key: &SecretKey) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: key.name.clone(),
                key: key.key.clone(),
                // Without the key nobody may ask: the pod waits for the Secret.
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    }
}

fn arguments(object: &ModelDeployment, validated: &Validated, weights: &Weights) -> Vec<String> {
    let mut arguments = vec![
        model_path(&weights.path),
        "--host=0.0.0.0".to_owned(),
        format!("--port={HTTP_PORT}"),
        "--served-model-name".to_owned(),
    ];
    arguments.extend(validated.served_names.iter().cloned());
    let mut flag = |name: &str, value: &str| arguments.push(format!("--{name}={value}"));
    let limits = &validated.limits;
    if let Some(length) = limits.context_length {
        flag("max-model-len", &length.to_string());
    }
    if let Some(sequences) = limits.max_sequences {
        flag("max-num-seqs", &sequences.to_string());
    }
    if let Some(images) = limits.images_per_prompt {
        flag(
            "limit-mm-per-prompt",
            &json!({ "image": images }).to_string(),
        );
    }
    if validated.accelerator.kind != "cpu" && validated.accelerator.count > 1 {
        let count = validated.accelerator.count.to_string();
        flag("tensor-parallel-size", &count);
    }
    let runtime = object.spec.runtime.clone().unwrap_or_default();
    let options = runtime.options.unwrap_or_default();
    if let Some(share) = &options.gpu_memory_utilization {
        flag("gpu-memory-utilization", share);
    }
    if options.enforce_eager == Some(true) {
        arguments.push("--enforce-eager".to_owned());
    }
    arguments
}
