//! Which engine runs which weights, and how each is started. The table is ours; what it leaves out is RuntimeUnsupported. Pure.

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec, Volume, VolumeMount};

use super::{runtime, transformers, vllm};
use crate::api::{Accelerator, Engine, ModelDeployment, ModelFormat};
use crate::child::MANAGEMENT_PORT_NAME;
use crate::config::PodDefaults;
use crate::model_deployment::progress::{Found, Weights};
use crate::model_deployment::validate::Validated;

/// Every engine, in the order in which they are offered.
const ALL: [Engine; 3] = [Engine::Chandler, Engine::Vllm, Engine::Transformers];

/// Architectures that vLLM 0.10.2 serves, as in its registry: the last version that has Mllama.
const VLLM: [&str; 12] = [
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "MllamaForConditionalGeneration",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2_5_VLForConditionalGeneration",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
];

/// Architectures that `transformers serve` chats with.
/// Mllama is not among them: every version 5 up to 5.24.0 takes the vision tower's intermediate states one layer too late, so it answers wrongly.
const TRANSFORMERS: [&str; 8] = [
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
];

/// The engine that the spec names.
#[must_use]
pub fn of(object: &ModelDeployment) -> Engine {
    let runtime = object.spec.runtime.as_ref();
    runtime.map(|runtime| runtime.engine).unwrap_or_default()
}

/// Whether an engine runs what the hub has. What is not known is tried.
#[must_use]
pub fn runs(engine: Engine, format: ModelFormat, found: &Found) -> bool {
    match engine {
        // Our runtime speaks for itself.
        Engine::Chandler => found.supported != Some(false),
        other => listed(other, format, found.architecture.as_deref()),
    }
}

fn listed(engine: Engine, format: ModelFormat, architecture: Option<&str>) -> bool {
    let (formats, architectures): (&[ModelFormat], &[&str]) = match engine {
        Engine::Chandler => (&[], &[]),
        Engine::Vllm => (
            &[
                ModelFormat::Pytorch,
                ModelFormat::Gptq,
                ModelFormat::Awq,
                ModelFormat::Fp8,
                ModelFormat::Bnb,
            ],
            &VLLM,
        ),
        Engine::Transformers => (&[ModelFormat::Pytorch], &TRANSFORMERS),
    };
    formats.contains(&format)
        && architecture.is_none_or(|architecture| architectures.contains(&architecture))
}

/// Whether an engine spreads one model over so many accelerators of a pod.
#[must_use]
pub fn spreads(engine: Engine, accelerator: &Accelerator) -> bool {
    match engine {
        // A process of ours computes on one device.
        Engine::Chandler => accelerator.kind == "cpu" || accelerator.count <= 1,
        Engine::Vllm | Engine::Transformers => true,
    }
}

/// Which other engine would run it, for a message.
#[must_use]
pub fn alternatives(
    engine: Engine,
    format: ModelFormat,
    found: &Found,
    accelerator: &Accelerator,
) -> String {
    let others: Vec<&str> = ALL
        .into_iter()
        .filter(|other| *other != engine && runs(*other, format, found))
        .filter(|other| spreads(*other, accelerator))
        .map(Engine::as_str)
        .collect();
    if others.is_empty() {
        String::new()
    } else {
        format!(", or set spec.runtime.engine to {}", others.join(" or "))
    }
}

/// The serving container of the engine that the spec names, and the volumes that it brings.
#[must_use]
pub fn build_container(
    object: &ModelDeployment,
    validated: &Validated,
    weights: &Weights,
    defaults: &PodDefaults,
) -> (Container, Vec<Volume>, Vec<VolumeMount>) {
    match of(object) {
        Engine::Chandler => runtime::build_container(object, validated, weights, defaults),
        Engine::Vllm => vllm::build_container(object, validated, weights, defaults),
        Engine::Transformers => transformers::build_container(object, validated, weights, defaults),
    }
}

/// Whether the pods of a template answer `/status` on the management port.
#[must_use]
pub fn tells_status(template: &PodTemplateSpec) -> bool {
    template.spec.as_ref().is_some_and(|spec| {
        spec.containers.iter().any(|container| {
            container
                .ports
                .iter()
                .flatten()
                .any(|port| port.name.as_deref() == Some(MANAGEMENT_PORT_NAME))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(architecture: &str, supported: bool) -> Found {
        Found {
            id: "a/b".to_owned(),
            commit: String::new(),
            bytes: 1,
            architecture: Some(architecture.to_owned()),
            supported: Some(supported),
            dimensions: None,
            request: String::new(),
        }
    }

    #[test]
    fn each_engine_has_its_own_table() {
        let mllama = found("MllamaForConditionalGeneration", false);
        let llama = found("LlamaForCausalLM", true);
        assert!(!runs(Engine::Chandler, ModelFormat::Pytorch, &mllama));
        assert!(runs(Engine::Vllm, ModelFormat::Pytorch, &mllama));
        assert!(!runs(Engine::Vllm, ModelFormat::Mlx, &mllama));
        assert!(!runs(Engine::Transformers, ModelFormat::Pytorch, &mllama));
        assert!(!runs(Engine::Transformers, ModelFormat::Awq, &llama));
        let others = |engine, format, found: &Found, count| {
            alternatives(engine, format, found, &gpus(count))
        };
        assert_eq!(
            others(Engine::Transformers, ModelFormat::Pytorch, &mllama, 1),
            ", or set spec.runtime.engine to VLLM"
        );
        let unknown = found("Unheard", true);
        assert!(runs(Engine::Chandler, ModelFormat::Ggufv2, &unknown));
        assert!(!runs(Engine::Vllm, ModelFormat::Pytorch, &unknown));
        let llama = found("LlamaForCausalLM", false);
        assert_eq!(
            others(Engine::Chandler, ModelFormat::Pytorch, &llama, 1),
            ", or set spec.runtime.engine to VLLM or Transformers"
        );
        assert_eq!(
            others(Engine::Vllm, ModelFormat::Ggufv2, &unknown, 1),
            ", or set spec.runtime.engine to Chandler"
        );
        assert_eq!(others(Engine::Vllm, ModelFormat::Ggufv2, &unknown, 2), "");
    }

    fn gpus(count: i32) -> Accelerator {
        Accelerator {
            kind: "nvidia.com/gpu".to_owned(),
            count,
            products: None,
            min_memory: None,
            wait_seconds: None,
            limits: None,
        }
    }

    #[test]
    fn a_process_of_ours_computes_on_one_device() {
        let cpu = Accelerator {
            kind: "cpu".to_owned(),
            ..gpus(4)
        };
        assert!(spreads(Engine::Chandler, &gpus(1)) && spreads(Engine::Chandler, &cpu));
        assert!(!spreads(Engine::Chandler, &gpus(2)));
        assert!(spreads(Engine::Vllm, &gpus(8)) && spreads(Engine::Transformers, &gpus(8)));
    }
}
