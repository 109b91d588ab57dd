//! What the containers of engines in Python have in common: user, home, one port, slow starts. Pure.

use k8s_openapi::api::core::v1::{Container, EnvVar, SecurityContext};

use super::container::{self, HTTP_PORT, HTTP_PORT_NAME, Health, env};
use crate::api::ModelDeployment;
use crate::child::port;
use crate::config::PodDefaults;
use crate::model_deployment::plan;
use crate::model_deployment::progress::Weights;
use crate::model_deployment::validate::Validated;

/// The user of our own images too.
const NOBODY: i64 = 65_532;

/// A serving container without its engine's command. `image` counts where the spec names none.
#[must_use]
pub fn build(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    image: &str,
    defaults: &PodDefaults,
) -> Container {
    let memory = plan::memory_of_python(validated, weights);
    let mut built = container::build(object, validated, &memory, image, defaults);
    built.env.get_or_insert_default().extend(at_home());
    let built = Container {
        ports: Some(vec![port(HTTP_PORT_NAME, HTTP_PORT)]),
        security_context: as_user(object, defaults),
        ..built
    };
    // Nothing is answered while the engine loads and compiles; two hours are room for the largest models.
    let health = Health {
        port: HTTP_PORT_NAME,
        alive: "/health",
        ready: "/health",
        startup: (1_440, 5),
    };
    container::with_probes(built, health)
}

/// Nothing is fetched at run time, and whatever is written goes to the one writable folder.
fn at_home() -> Vec<EnvVar> {
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
fn as_user(object: &ModelDeployment, defaults: &PodDefaults) -> Option<SecurityContext> {
    let pod = object.spec.pod.as_ref();
    let chosen = pod
        .and_then(|pod| pod.security_context.as_ref())
        .is_some_and(|security| security.run_as_user.is_some());
    (!chosen && defaults.fs_group.is_some()).then(|| SecurityContext {
        run_as_user: Some(NOBODY),
        ..SecurityContext::default()
    })
}
