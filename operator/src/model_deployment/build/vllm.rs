//! The container of vLLM: `vllm serve` with what the spec says. Pure.
//!
//! Options are vLLM's own (docs.vllm.ai/en/v0.10.2/cli/serve.html).

use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EnvVarSource, SecretKeySelector, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use super::container::{HTTP_PORT, model_path};
use super::python;
use crate::api::{ModelDeployment, SecretKey};
use crate::child;
use crate::config::PodDefaults;
use crate::model_deployment::progress::Weights;
use crate::model_deployment::validate::Validated;

/// Builds the serving container.
#[must_use]
pub fn build_container(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    defaults: &PodDefaults,
) -> (Container, Vec<Volume>, Vec<VolumeMount>) {
    let mut built = python::build(object, validated, weights, &defaults.vllm_image, defaults);
    built.command = Some(vec!["vllm".to_owned(), "serve".to_owned()]);
    built.args = Some(arguments(object, validated, weights));
    if let Some(access) = &object.spec.access {
        let key = secret("VLLM_API_KEY", &access.api_key_secret_ref);
        built.env.get_or_insert_default().push(key);
    }
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
