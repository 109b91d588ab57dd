//! Spec + facts → what is meant, or what is wrong. Pure.

use kube::ResourceExt;

use super::observe::Observed;
use super::variant::{self, Choice};
use crate::api::{Accelerator, ModelCardSpec, ModelDeployment, Reason, SecretKey};
use crate::child::{self, PodShape};
use crate::config::PodDefaults;
use crate::hub_job::HubRequest;
use crate::model_cache::validate::{Violation, no_endpoint, parse_affinity};

/// A spec that can be worked on.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// The variant.
    pub choice: Choice,
    /// Where the weights come from.
    pub weights: WeightsFrom,
    /// Names that the API offers; at least one.
    pub served_names: Vec<String>,
    /// What a replica computes on.
    pub accelerator: Accelerator,
    /// Tokens of a context, where the spec says so.
    pub context_length: Option<i64>,
    /// Tokens of the longest context that is possible, for the memory.
    pub longest_context: i64,
    /// Sequences at a time, where spec or card say so.
    pub max_sequences: Option<i32>,
    /// Seconds of a request, where the spec says so.
    pub request_timeout_seconds: Option<i32>,
    /// Where and as whom serving pods run.
    pub shape: PodShape,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq)]
pub enum WeightsFrom {
    /// From a hub, into a cache that we make.
    Hub {
        /// What the hub is asked.
        request: HubRequest,
        /// Key of the Secret with the token.
        token: Option<SecretKey>,
    },
    /// From a cache that exists.
    Cache {
        /// Its name.
        name: String,
        /// Revision that the spec pins.
        revision: Option<String>,
    },
}

/// The accelerator where the spec names none: never silently the CPU.
fn default_accelerator() -> Accelerator {
    Accelerator {
        kind: "nvidia.com/gpu".to_owned(),
        count: 1,
    }
}

/// Tokens of a context where neither card nor spec say.
const USUAL_CONTEXT: i64 = 8_192;

/// Reads a spec as what is meant.
///
/// # Errors
///
/// When card, variant or hub cannot be found, a limit is too high, or a child's name is taken.
pub fn validate(
    object: &ModelDeployment,
    observed: &Observed,
    defaults: &PodDefaults,
) -> Result<Validated, Violation> {
    if let Some(stranger) = observed.strangers.first() {
        return Err(name_conflict(&stranger.kind, &stranger.name));
    }
    let spec = &object.spec;
    let model = model(object, observed)?;
    let choice = variant::pick(model, &spec.model)?;
    let limits = spec.limits.clone().unwrap_or_default();
    if let (Some(limit), Some(most)) = (limits.context_length, model.context_length)
        && limit > most
    {
        return Err(Violation {
            reason: Reason::LimitExceedsModel,
            message: format!(
                "spec.limits.contextLength is {limit}, and the model was made for {most} tokens; lower it or leave it out"
            ),
        });
    }
    let accelerator = spec
        .accelerators
        .as_ref()
        .and_then(|list| list.first().cloned())
        .unwrap_or_else(default_accelerator);
    Ok(Validated {
        weights: weights(object, &choice, defaults)?,
        served_names: spec
            .model
            .served_names
            .clone()
            .unwrap_or_else(|| vec![object.name_any()]),
        shape: shape(object, &accelerator)?,
        accelerator,
        context_length: limits.context_length,
        longest_context: limits
            .context_length
            .or(model.context_length)
            .unwrap_or(USUAL_CONTEXT),
        max_sequences: limits.max_sequences.or_else(|| {
            model
                .defaults
                .as_ref()
                .and_then(|defaults| defaults.max_sequences)
        }),
        request_timeout_seconds: limits.request_timeout_seconds,
        choice,
    })
}

/// A child's name is taken.
#[must_use]
pub fn name_conflict(kind: &str, name: &str) -> Violation {
    Violation {
        reason: Reason::NameConflict,
        message: format!(
            "{kind} {name} exists in this namespace and does not belong to this ModelDeployment; it stays untouched. Delete or rename it, or give this ModelDeployment another name"
        ),
    }
}

fn model<'a>(
    object: &'a ModelDeployment,
    observed: &'a Observed,
) -> Result<&'a ModelCardSpec, Violation> {
    let selection = &object.spec.model;
    if let Some(inline) = &selection.inline {
        return Ok(inline);
    }
    if let Some(card) = &observed.card {
        return Ok(&card.spec);
    }
    let wanted = selection.card.as_deref().unwrap_or_default();
    let there_are = if observed.cards.is_empty() {
        "there are none".to_owned()
    } else {
        format!("there are: {}", observed.cards.join(", "))
    };
    Err(Violation {
        reason: Reason::CardNotFound,
        message: format!(
            "ModelCard {wanted} (spec.model.card) does not exist; {there_are}. Correct the name, apply that card, or describe the model in spec.model.inline"
        ),
    })
}

fn weights(
    object: &ModelDeployment,
    choice: &Choice,
    defaults: &PodDefaults,
) -> Result<WeightsFrom, Violation> {
    let spec = object.spec.weights.clone().unwrap_or_default();
    if let Some(cache) = spec.cache {
        return Ok(WeightsFrom::Cache {
            name: cache.name,
            revision: object.spec.model.revision.clone(),
        });
    }
    let source = &choice.source;
    let endpoint = match spec.endpoint {
        Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
        None => defaults
            .endpoints
            .get(&source.hub)
            .cloned()
            .ok_or_else(|| no_endpoint(source.hub))?,
    };
    let revision = object
        .spec
        .model
        .revision
        .clone()
        .or_else(|| source.revision.clone());
    Ok(WeightsFrom::Hub {
        request: HubRequest {
            hub: source.hub,
            endpoint,
            id: source.id.clone(),
            aliases: source.aliases.clone(),
            revision: revision.unwrap_or_else(|| "main".to_owned()),
            format: choice.format,
            files: source.files.clone().unwrap_or_default(),
        },
        token: spec.token_secret_ref,
    })
}

fn shape(object: &ModelDeployment, accelerator: &Accelerator) -> Result<PodShape, Violation> {
    let pod = object.spec.pod.clone().unwrap_or_default();
    let mut tolerations = child::tolerations(&pod.tolerations);
    if accelerator.kind != "cpu" {
        tolerations.push(k8s_openapi::api::core::v1::Toleration {
            key: Some(accelerator.kind.clone()),
            operator: Some("Exists".to_owned()),
            ..Default::default()
        });
    }
    let mut topology_spread = Vec::new();
    for (index, entry) in pod.topology_spread_constraints.iter().enumerate() {
        let value = serde_json::Value::Object(entry.clone().into_iter().collect());
        let read = serde_json::from_value(value).map_err(|error| Violation {
            reason: Reason::InvalidSpec,
            message: format!(
                "spec.pod.topologySpreadConstraints[{index}] is not one of Kubernetes: {error}"
            ),
        })?;
        topology_spread.push(read);
    }
    let runtime = object.spec.runtime.clone().unwrap_or_default();
    Ok(PodShape {
        node_selector: pod.node_selector,
        tolerations,
        affinity: pod.affinity.as_ref().map(parse_affinity).transpose()?,
        topology_spread,
        service_account: pod.service_account_name,
        priority_class: pod.priority_class_name,
        runtime_class: pod.runtime_class_name,
        scheduler: pod.scheduler_name,
        security: pod.security_context,
        pull_secrets: runtime
            .image_pull_secrets
            .into_iter()
            .map(|secret| secret.name)
            .collect(),
    })
}
