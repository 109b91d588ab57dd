//! The container of Hugging Face Transformers: `transformers serve` with what the spec says. Pure.
//!
//! Version 5 loads the model that stands first among its arguments before it answers, and answers for no other name than that path.
//! Version 4 loaded on the first request and always streamed. Neither takes limits or an API key.

use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};

use super::container::{HTTP_PORT, device, model_path};
use super::python;
use crate::api::ModelDeployment;
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
    let image = &defaults.transformers_image;
    let mut built = python::build(object, validated, weights, image, defaults);
    built.command = Some(vec!["transformers".to_owned(), "serve".to_owned()]);
    built.args = Some(vec![
        model_path(&weights.path),
        "--host=0.0.0.0".to_owned(),
        format!("--port={HTTP_PORT}"),
        format!("--device={}", device(validated)),
    ]);
    (built, Vec::new(), Vec::new())
}
