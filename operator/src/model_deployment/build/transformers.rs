//! The container of Hugging Face Transformers: `transformers serve` with what the spec says. Pure.
//!
//! Version 5 loads the model that stands first among its arguments before it answers, and answers for no other name than that path.
//! Version 4 loaded on the first request and always streamed. Neither takes limits or an API key.

use k8s_openapi::api::core::v1::{Container, Probe, Volume, VolumeMount};

use super::container::{self, HTTP_PORT, HTTP_PORT_NAME, model_path, port, probe};
use super::vllm::{as_user, at_home};
use crate::api::ModelDeployment;
use crate::config::PodDefaults;
use crate::model_deployment::plan;
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
    let memory = plan::memory_of_python(validated, weights);
    let image = &defaults.transformers_image;
    let mut built = container::build(object, validated, &memory, image, defaults);
    built.env.get_or_insert_default().extend(at_home());
    let device = if validated.accelerator.kind == "cpu" {
        "cpu"
    } else {
        "cuda"
    };
    let built = Container {
        command: Some(vec!["transformers".to_owned(), "serve".to_owned()]),
        args: Some(vec![
            model_path(&weights.path),
            "--host=0.0.0.0".to_owned(),
            format!("--port={HTTP_PORT}"),
            format!("--device={device}"),
        ]),
        ports: Some(vec![port(HTTP_PORT_NAME, HTTP_PORT)]),
        security_context: as_user(object, defaults),
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
    (built, Vec::new(), Vec::new())
}
