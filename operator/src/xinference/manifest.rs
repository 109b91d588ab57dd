//! The options of a launch → the manifest of a ModelDeployment. Pure.
//!
//! Each section takes the options that it understands; what nobody took ends as a comment.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::card::card_name;
use super::launch::{Given, LaunchError, parse};
use super::no_counterpart::WITHOUT_COUNTERPART;
use super::values::{gpus_per_replica, images_per_prompt, number, object_name, share, switch};
use crate::api::Hub;
use crate::bounds;
use crate::digest;
use crate::model_deployment::variant;

const HEAD: &str = "# Made from a launch of Xinference. What has no counterpart here or means something else is said in these comments.\n";

/// Turns the words of a launch into a manifest with comments.
///
/// # Errors
///
/// When the launch is incomplete or a value cannot be used; the text says which option and what to do.
pub fn from_launch(arguments: &[String]) -> Result<String, LaunchError> {
    let mut launch = Launch {
        options: parse(arguments)?,
        schema: bounds::schema("ModelDeployment").unwrap_or_default(),
        manifest: json!({"apiVersion": "chandler.dev/v1alpha1", "kind": "ModelDeployment"}),
        comments: Vec::new(),
    };
    launch.model()?;
    let engine = launch.engine()?;
    launch.replicas_and_accelerators()?;
    launch.limits_and_engine_options(engine)?;
    launch.weights()?;
    launch.environment()?;
    launch.nodes()?;
    launch.say_what_is_left();
    let mut text = HEAD.to_owned();
    for comment in &launch.comments {
        text.push_str(&format!("# {comment}\n"));
    }
    text.push_str(&serde_saphyr::to_string(&digest::sorted(launch.manifest))?);
    Ok(text)
}

/// Who answers.
#[derive(Clone, Copy, PartialEq)]
enum Engine {
    Chandler,
    Vllm,
    Transformers,
}

struct Launch {
    /// What no section has taken yet.
    options: Vec<Given>,
    schema: Value,
    manifest: Value,
    comments: Vec<String>,
}

impl Launch {
    /// Takes the option with one of these names. Given more than once, the last counts, as in the launch.
    fn take(&mut self, names: &[&str]) -> Option<Given> {
        let (mut taken, left): (Vec<Given>, Vec<Given>) = std::mem::take(&mut self.options)
            .into_iter()
            .partition(|given| names.contains(&given.name.as_str()));
        self.options = left;
        let last = taken.pop()?;
        for other in taken.iter().filter(|other| other.values != last.values) {
            self.comment(other, "given again later; the last one counts");
        }
        Some(last)
    }

    fn take_all(&mut self, name: &str) -> Vec<Given> {
        let (taken, left) = std::mem::take(&mut self.options)
            .into_iter()
            .partition(|given| given.name == name);
        self.options = left;
        taken
    }

    /// Writes a field, after a look at its bounds in the CRD. That every path is one of the CRD's is for the tests to say.
    fn set(&mut self, option: &Given, path: &str, value: Value) -> Result<(), LaunchError> {
        if let Some(field) = bounds::field(&self.schema, path) {
            let violations = bounds::violations(field, path, &value);
            if !violations.is_empty() {
                return Err(option.refuse(violations.join("; ")));
            }
        }
        let mut at = &mut self.manifest;
        for name in path.split('.') {
            at = &mut at[name];
        }
        *at = value;
        Ok(())
    }

    fn comment(&mut self, option: &Given, text: &str) {
        self.comments.push(format!("{}: {text}", option.shown()));
    }

    fn model(&mut self) -> Result<(), LaunchError> {
        let name = self.take(&["model-name"]).ok_or(LaunchError::NoModel)?;
        let card = card_name(name.value())
            .ok_or_else(|| name.refuse("no name of a ModelCard can be made of it; give the model a name with letters or digits"))?;
        if card != name.value() {
            self.comment(&name, &format!("its card is called {card}"));
        }
        self.set(&name, "spec.model.card", card.into())?;
        if let Some(kind) = self.take(&["model-type"])
            && !kind.value().eq_ignore_ascii_case("llm")
        {
            return Err(kind.refuse("only LLMs can be deployed; leave this model where it is"));
        }

        // Clients ask for the model by its uid, and Xinference takes the model's name where no uid is given.
        let served = self.take(&["model-uid"]).unwrap_or(name);
        let object = object_name(served.value()).ok_or_else(|| {
            served.refuse("no name in Kubernetes can be made of it; add --model-uid with letters")
        })?;
        if object != served.value() {
            self.set(
                &served,
                "spec.model.servedNames",
                json!([served.value(), object]),
            )?;
            self.comment(&served, &format!("the object is called {object}, as Kubernetes wants names; clients may use both names"));
        }
        self.manifest["metadata"]["name"] = object.into();

        if let Some(size) = self.take(&["size-in-billions"]) {
            let text = variant::size(size.value());
            self.set(&size, "spec.model.sizeInBillions", text.into())?;
        }
        if let Some(format) = self.take(&["model-format"]) {
            let word = format.value().to_ascii_lowercase();
            self.set(&format, "spec.model.format", word.into())?;
        }
        if let Some(quantization) = self.take(&["quantization"]) {
            let word = quantization.value().to_owned();
            self.set(&quantization, "spec.model.quantization", word.into())?;
        }
        if let Some(revision) = self.take(&["model-revision", "revision"]) {
            let word = revision.value().to_owned();
            self.set(&revision, "spec.model.revision", word.into())?;
        }
        if let Some(hub) = self.take(&["download-hub"]) {
            let word = hub.value().to_ascii_lowercase();
            if ["", "auto", "none"].contains(&word.as_str()) {
                self.comment(&hub, "the card's first hub is taken");
            } else {
                self.set(&hub, "spec.model.hub", word.into())?;
            }
        }
        Ok(())
    }

    fn engine(&mut self) -> Result<Engine, LaunchError> {
        let Some(option) = self.take(&["model-engine"]) else {
            return Ok(Engine::Chandler);
        };
        let (engine, word) = match option.value().to_ascii_lowercase().as_str() {
            "vllm" => (Engine::Vllm, "VLLM"),
            "transformers" => (Engine::Transformers, "Transformers"),
            _ => {
                self.comment(&option, "there is no such engine here; ours is taken, and it says in ModelResolved when it does not run the model");
                (Engine::Chandler, "Chandler")
            }
        };
        self.set(&option, "spec.runtime.engine", word.into())?;
        Ok(engine)
    }

    fn replicas_and_accelerators(&mut self) -> Result<(), LaunchError> {
        let mut replicas = 1;
        if let Some(option) = self.take(&["replica"]) {
            replicas = number(&option)?;
            self.set(&option, "spec.replicas", replicas.into())?;
        }
        let ranks = self.take(&["tensor-parallel-size"]);
        let device = self.take(&["device"]);
        let given = match (self.take(&["gpu-idx"]), self.take(&["n-gpu"])) {
            (Some(indexes), count) => {
                if let Some(count) = count {
                    self.comment(&count, "--gpu-idx says how many GPUs there are");
                }
                self.comment(
                    &indexes,
                    "which devices a pod gets is for Kubernetes to say; only their number is kept",
                );
                Some((gpus_per_replica(&indexes, replicas)?, indexes))
            }
            (None, Some(option)) => Some((self.gpu_count(&option)?, option)),
            (None, None) => match (&ranks, &device) {
                (Some(ranks), _) => Some((number(ranks)?, ranks.clone())),
                (None, Some(device)) if device.value() == "cpu" => Some((0, device.clone())),
                (None, _) => None,
            },
        };
        let on_cpu = matches!(given, Some((0, _)));
        if let Some(device) = device.filter(|device| device.value() != "cpu" || !on_cpu) {
            self.comment(&device, "spec.accelerators says on what a replica computes");
        }
        let Some((count, option)) = given else {
            self.comments.push("without --n-gpu Xinference takes one GPU where there is one, else the CPU; here it is always one nvidia.com/gpu, and the CPU only where the manifest says `type: cpu`".to_owned());
            self.manifest["spec"]["accelerators"] = json!([{"type": "nvidia.com/gpu", "count": 1}]);
            return Ok(());
        };
        if let Some(ranks) = &ranks
            && number(ranks)? != count
        {
            return Err(ranks.refuse(format!(
                "{} means {count} for each replica; give one number only",
                option.shown()
            )));
        }
        let accelerators = match count {
            0 => json!([{"type": "cpu"}]),
            count => json!([{"type": "nvidia.com/gpu", "count": count}]),
        };
        self.set(&option, "spec.accelerators", accelerators)
    }

    fn gpu_count(&mut self, option: &Given) -> Result<u64, LaunchError> {
        match option.value().to_ascii_lowercase().as_str() {
            "none" => Ok(0),
            "auto" => {
                self.comment(option, "there it means one GPU where there is one, else the CPU; here it is one nvidia.com/gpu, and the CPU only where the manifest says `type: cpu`");
                Ok(1)
            }
            _ => number(option),
        }
    }

    fn limits_and_engine_options(&mut self, engine: Engine) -> Result<(), LaunchError> {
        if let Some(option) = self.take(&["max-model-len", "context-length"]) {
            self.set(
                &option,
                "spec.limits.contextLength",
                number(&option)?.into(),
            )?;
        }
        let mut sequences = None;
        if let Some(option) = self.take(&["max-num-seqs", "max-running-requests"]) {
            let count = number(&option)?;
            self.set(&option, "spec.limits.maxSequences", count.into())?;
            sequences = Some(count);
        }
        if let Some(option) = self.take(&["limit-mm-per-prompt"]) {
            match images_per_prompt(&option)? {
                Some(images) => self.set(&option, "spec.limits.imagesPerPrompt", images.into())?,
                None => self.comment(&option, "only images have a limit here, and it names none"),
            }
        }
        if let Some(option) = self.take(&["request-limits"]) {
            if engine == Engine::Chandler {
                let waiting = number(&option)?.saturating_sub(sequences.unwrap_or(0));
                self.comment(&option, "there it bounds running and waiting requests together; spec.runtime.options.maxQueue bounds those that wait, beside limits.maxSequences that run");
                self.set(&option, "spec.runtime.options.maxQueue", waiting.into())?;
            } else {
                self.comment(&option, "only the engine Chandler bounds its queue");
            }
        }
        if let Some(option) = self.take(&["enforce-eager"]) {
            let eager = switch(&option)?;
            match engine {
                Engine::Vllm => {
                    self.set(&option, "spec.runtime.options.enforceEager", eager.into())?;
                }
                _ => self.comment(
                    &option,
                    "only the engine VLLM compiles graphs; the others need no such switch",
                ),
            }
        }
        if let Some(option) = self.take(&["gpu-memory-utilization"]) {
            let share = share(&option)?;
            match engine {
                Engine::Vllm => self.set(
                    &option,
                    "spec.runtime.options.gpuMemoryUtilization",
                    share.into(),
                )?,
                _ => self.comment(
                    &option,
                    "only the engine VLLM sets a share of the GPU's memory aside",
                ),
            }
        }
        Ok(())
    }

    fn weights(&mut self) -> Result<(), LaunchError> {
        if let Some(option) = self.take(&["model-path"]) {
            let path = option
                .value()
                .strip_prefix("file://")
                .unwrap_or(option.value());
            let path = path.trim_matches('/');
            if path.is_empty() || path.split('/').any(|part| part == "..") {
                return Err(
                    option.refuse("the path must name a folder or file on a volume, without `..`")
                );
            }
            self.comment(&option, "a path on a worker is no place in a cluster; copy the files to a PersistentVolumeClaim and correct spec.weights.claim");
            self.set(
                &option,
                "spec.weights.claim",
                json!({"claimName": "weights", "path": path}),
            )?;
        }
        Ok(())
    }

    fn environment(&mut self) -> Result<(), LaunchError> {
        let mut variables: Vec<Value> = Vec::new();
        let mut last = None;
        for option in self.take_all("env") {
            let value = option.values.get(1).cloned().unwrap_or_default();
            let from_hub = self.manifest["spec"]["weights"]["claim"].is_null();
            match option.value() {
                "HF_TOKEN" | "HUGGING_FACE_HUB_TOKEN" | "MODELSCOPE_API_TOKEN" if from_hub => {
                    self.comment(&option, "a token belongs into a Secret: kubectl create secret generic hub-token --from-literal=token=…");
                    self.set(
                        &option,
                        "spec.weights.tokenSecretRef",
                        json!({"name": "hub-token", "key": "token"}),
                    )?;
                }
                "HF_ENDPOINT" if from_hub => {
                    self.set(&option, "spec.weights.endpoint", value.into())?;
                }
                "HF_TOKEN" | "HUGGING_FACE_HUB_TOKEN" | "MODELSCOPE_API_TOKEN" | "HF_ENDPOINT" => {
                    self.comment(&option, "weights on a claim need no hub");
                }
                "XINFERENCE_MODEL_SRC" if self.manifest["spec"]["model"]["hub"].is_null() => {
                    if !Hub::ALL.iter().any(|hub| hub.as_str() == value) {
                        return Err(option.refuse(format!(
                            "{value:?} is no hub; the hubs are {}",
                            Hub::ALL.map(Hub::as_str).join(", ")
                        )));
                    }
                    self.set(&option, "spec.model.hub", value.into())?;
                }
                "CUDA_VISIBLE_DEVICES" => {
                    self.comment(&option, "which devices a pod gets is for Kubernetes to say");
                }
                name if name.starts_with("XINFERENCE_") => {
                    self.comment(&option, "it is for Xinference itself");
                }
                name => {
                    let name = name.to_owned();
                    // As in the launch, the last value of a name counts.
                    variables.retain(|variable| variable["name"] != name.as_str());
                    variables.push(json!({"name": name, "value": value}));
                    last = Some(option);
                }
            }
        }
        match last {
            None => Ok(()),
            Some(option) => self.set(&option, "spec.runtime.env", variables.into()),
        }
    }

    fn nodes(&mut self) -> Result<(), LaunchError> {
        let Some(option) = self.take(&["worker-ip"]) else {
            return Ok(());
        };
        if option.value().parse::<IpAddr>().is_ok() {
            self.comment(&option, "nodes are chosen by label, not by address; to pin the pods, look the node up with `kubectl get nodes -o wide` and write spec.pod.nodeSelector: {kubernetes.io/hostname: NODE}");
            return Ok(());
        }
        self.comment(&option, "taken for the name of a node");
        self.set(
            &option,
            "spec.pod.nodeSelector",
            json!({"kubernetes.io/hostname": option.value()}),
        )
    }

    fn say_what_is_left(&mut self) {
        for option in std::mem::take(&mut self.options) {
            let known = WITHOUT_COUNTERPART
                .iter()
                .find(|(name, _)| *name == option.name);
            let harmless = option.name == "n-worker" && option.value() == "1";
            match known {
                Some(_) if harmless => {}
                Some((_, why)) => self.comment(&option, why),
                None => self.comment(
                    &option,
                    "not known here, so nothing in the manifest says it",
                ),
            }
        }
    }
}
