//! The container of our own runtime: arguments, ports, probes. The only place that knows how `serve` is called. Pure.

use k8s_openapi::api::core::v1::{Container, KeyToPath, SecretVolumeSource, Volume, VolumeMount};

use super::container::{self, DRAIN_SECONDS, HTTP_PORT, HTTP_PORT_NAME, Health, model_path};
use crate::api::{ModelDeployment, SecretKey};
use crate::child::{self, MANAGEMENT_PORT, MANAGEMENT_PORT_NAME, port};
use crate::config::PodDefaults;
use crate::model_deployment::plan;
use crate::model_deployment::progress::Weights;
use crate::model_deployment::validate::Validated;

/// Folder of the API keys; the file is named `keys`. A folder, so that the kubelet can exchange its content.
const KEYS_FOLDER: &str = "/var/run/secrets/chandler/access";

/// Builds the serving container.
#[must_use]
pub fn build_container(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    defaults: &PodDefaults,
) -> (Container, Vec<Volume>, Vec<VolumeMount>) {
    let memory = plan::memory(validated, weights);
    let keys = object.spec.access.as_ref();
    let keys = keys.map(|access| &access.api_key_secret_ref);
    let image = image(validated, defaults);
    let mut built = container::build(object, validated, &memory, image, defaults);
    if let Some(template) = validated
        .chat
        .as_ref()
        .and_then(|chat| chat.template.as_ref())
    {
        built
            .env
            .get_or_insert_default()
            .push(container::env("CHANDLER_CHAT_TEMPLATE", template));
    }
    let built = Container {
        args: Some(arguments(object, validated, weights, keys.is_some())),
        ports: Some(vec![
            port(HTTP_PORT_NAME, HTTP_PORT),
            port(MANAGEMENT_PORT_NAME, MANAGEMENT_PORT),
        ]),
        ..built
    };
    // The process answers /healthz from its first moment, so a long load is never taken for a death.
    let health = Health {
        port: MANAGEMENT_PORT_NAME,
        alive: "/healthz",
        ready: "/readyz",
        startup: (60, 1),
    };
    let built = container::with_probes(built, health);
    match keys {
        Some(keys) => (
            built,
            vec![keys_volume(keys)],
            vec![child::mount("access", KEYS_FOLDER, true)],
        ),
        None => (built, Vec::new(), Vec::new()),
    }
}

/// The image with code for GPUs is the larger one by far, so only who asks for a GPU gets it.
fn image<'a>(validated: &Validated, defaults: &'a PodDefaults) -> &'a str {
    match container::device(validated) {
        "cpu" => &defaults.image,
        _ => &defaults.cuda_image,
    }
}

fn arguments(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    has_keys: bool,
) -> Vec<String> {
    let mut arguments = vec!["serve".to_owned()];
    // One argument each, so that no value can be taken for a flag.
    let mut flag = |name: &str, value: &str| arguments.push(format!("--{name}={value}"));
    flag("model", &model_path(&weights.path));
    for name in &validated.served_names {
        flag("served-name", name);
    }
    flag("device", container::device(validated));
    let limits = &validated.limits;
    if let Some(length) = limits.context_length {
        flag("context-length", &length.to_string());
    }
    if let Some(sequences) = limits.max_sequences {
        flag("max-sequences", &sequences.to_string());
    }
    if let Some(seconds) = limits.request_timeout_seconds {
        flag("request-timeout-seconds", &seconds.to_string());
    }
    if let Some(images) = limits.images_per_prompt {
        flag("images-per-prompt", &images.to_string());
    }
    let runtime = object.spec.runtime.clone().unwrap_or_default();
    let options = runtime.options.unwrap_or_default();
    for host in &options.image_hosts {
        flag("image-host", host);
    }
    if let Some(queue) = options.max_queue {
        flag("max-queue", &queue.to_string());
    }
    if let Some(chat) = &validated.chat {
        for text in &chat.stop {
            flag("stop", text);
        }
        for id in &chat.stop_token_ids {
            flag("stop-token-id", &id.to_string());
        }
    }
    if has_keys {
        flag("api-key-file", &format!("{KEYS_FOLDER}/keys"));
    }
    flag("drain-seconds", &DRAIN_SECONDS.to_string());
    arguments
}

/// The keys' file. Without the Secret the pods start and refuse every request.
fn keys_volume(keys: &SecretKey) -> Volume {
    Volume {
        name: "access".to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(keys.name.clone()),
            optional: Some(true),
            // Readable by any user, because none is fixed; the pod has one container.
            default_mode: Some(0o444),
            items: Some(vec![KeyToPath {
                key: keys.key.clone(),
                path: "keys".to_owned(),
                ..KeyToPath::default()
            }]),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}
