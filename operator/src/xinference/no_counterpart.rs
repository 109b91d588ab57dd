//! Options of a launch that are known and that no field stands for.

/// Their long names, each with the reason.
pub(super) const WITHOUT_COUNTERPART: [(&str, &str); 34] = [
    (
        "endpoint",
        "the address of a Xinference server; kubectl's context says which cluster is meant",
    ),
    (
        "api-key",
        "the login to a Xinference server; kubectl brings its own",
    ),
    ("n-worker", "one replica runs on one node here"),
    (
        "pipeline-parallel-size",
        "one replica runs on one node here",
    ),
    (
        "replica-config",
        "replicas are placed by the scheduler; see spec.pod",
    ),
    ("lora-modules", "adapters cannot be served yet"),
    ("peft-model-config", "adapters cannot be served yet"),
    ("image-lora-load-kwargs", "for image models only"),
    ("image-lora-fuse-kwargs", "for image models only"),
    (
        "quantization-config",
        "weights are served as they are stored; choose a quantized variant of the card",
    ),
    ("trust-remote-code", "code of a repository never runs here"),
    (
        "enable-thinking",
        "the chat template decides; nothing sets it for all requests",
    ),
    (
        "reasoning-content",
        "answers are not split into thinking and answer",
    ),
    (
        "enable-virtual-env",
        "an image holds everything that runs; see spec.runtime.image",
    ),
    (
        "disable-virtual-env",
        "an image holds everything that runs; see spec.runtime.image",
    ),
    (
        "virtual-env-package",
        "an image holds everything that runs; see spec.runtime.image",
    ),
    (
        "virtual-env-find-link",
        "an image holds everything that runs; see spec.runtime.image",
    ),
    (
        "model-version",
        "spec.model.revision pins the commit of a repository",
    ),
    ("block-size", "the engine chooses the blocks of its cache"),
    (
        "swap-space",
        "sequences are not swapped to the host's memory",
    ),
    (
        "scheduling-policy",
        "requests are served in the order in which they come",
    ),
    (
        "min-pixels",
        "images are prepared as the model's own configuration says",
    ),
    (
        "max-pixels",
        "images are prepared as the model's own configuration says",
    ),
    (
        "mm-processor-kwargs",
        "images are prepared as the model's own configuration says",
    ),
    (
        "rope-scaling",
        "positions are scaled as the model's own configuration says",
    ),
    (
        "speculative-config",
        "answers are not drafted by a second model",
    ),
    (
        "draft-model-path",
        "answers are not drafted by a second model",
    ),
    (
        "enable-expert-parallel",
        "experts are not spread over devices",
    ),
    (
        "enable-tensorizer",
        "weights are mapped from their files, so no other form is needed",
    ),
    ("enable-xavier", "replicas share no cache"),
    ("multimodal-projector", "the card's files name it"),
    ("tokenizer-mode", "there is one tokenizer"),
    (
        "dtype",
        "weights are computed as they are stored, or as the engine decides",
    ),
    (
        "wait-ready",
        "kubectl wait --for=condition=Ready waits for the model",
    ),
];
