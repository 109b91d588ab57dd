//! Spec + facts → what is meant, or what is wrong. Pure.

use kube::ResourceExt;

use serde::{Deserialize, Serialize};

use super::observe::Observed;
use super::placement;
use super::revision::Record;
use super::variant::{self, Choice};
use crate::api::{
    Accelerator, Chat, ClaimSource, Limits, ModelCardSpec, ModelDeployment, ModelDeploymentSpec,
    Reason, SecretKey, Variant,
};
use crate::child::PodShape;
use crate::config::PodDefaults;
use crate::model_cache::validate::{Violation, no_endpoint};
use crate::weights_job::HubRequest;

/// A spec that can be worked on.
#[derive(Clone, Debug, PartialEq)]
pub struct Validated {
    /// The variant.
    pub choice: Choice,
    /// The part of the card that was used, where the spec names one.
    pub card: Option<ModelCardSpec>,
    /// Where the weights come from.
    pub origin: Origin,
    /// Names that the API offers; at least one.
    pub served_names: Vec<String>,
    /// Place of the accelerator in the spec's list.
    pub option: usize,
    /// What a replica computes on.
    pub accelerator: Accelerator,
    /// Whether the spec names its accelerators; else their number is chosen from the plan.
    pub accelerator_is_given: bool,
    /// Limits of a replica: the option's over the spec's over the card's.
    pub limits: Limits,
    /// Tokens of the longest context that is possible, for the memory.
    pub longest_context: i64,
    /// How a chat becomes a prompt, where card or spec say so.
    pub chat: Option<Chat>,
    /// Where and as whom serving pods run.
    pub shape: PodShape,
}

/// Where the weights come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// From a hub, into a cache that we make.
    Hub {
        /// What the hub is asked.
        request: HubRequest,
        /// Key of the Secret with the token.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<SecretKey>,
    },
    /// From a claim that holds them already, through a cache that we make.
    Claim(ClaimSource),
    /// From a cache that exists.
    Cache {
        /// Its name.
        name: String,
        /// Revision that the spec pins.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        revision: Option<String>,
    },
}

/// The accelerator where the spec names none: never silently the CPU.
fn default_accelerator() -> Accelerator {
    Accelerator {
        kind: "nvidia.com/gpu".to_owned(),
        count: 1,
        products: None,
        min_memory: None,
        wait_seconds: None,
        limits: None,
    }
}

/// Tokens of a context where neither card nor spec say.
const USUAL_CONTEXT: i64 = 8_192;

/// Reads a spec as what is meant, with the accelerator at `option`.
///
/// `pinned` is what pods were made from for this very spec: then its card and its origin count, whatever they are now.
///
/// # Errors
///
/// When card, variant or hub cannot be found, a limit is too high, or a child's name is taken.
pub fn validate(
    object: &ModelDeployment,
    observed: &Observed,
    defaults: &PodDefaults,
    pinned: Option<&Record>,
    option: usize,
) -> Result<Validated, Violation> {
    let strangers = &observed.strangers;
    if let Some(stranger) = strangers.iter().min_by_key(|other| other.is_left_over) {
        return Err(if stranger.is_left_over {
            left_over(&stranger.kind, &stranger.name)
        } else {
            name_conflict(&stranger.kind, &stranger.name)
        });
    }
    let spec = &object.spec;
    let model = match pinned.and_then(|record| record.card.as_ref()) {
        Some(card) => card,
        None => model(object, observed)?,
    };
    let choice = variant::pick(model, &spec.model)?;
    let listed = spec
        .accelerators
        .as_ref()
        .and_then(|list| list.get(option).or(list.first()).cloned());
    let accelerator_is_given = listed.is_some();
    let accelerator = listed.unwrap_or_else(default_accelerator);
    let limits = limits(spec, &accelerator, model)?;
    Ok(Validated {
        origin: match pinned {
            Some(record) => record.origin.clone(),
            None => origin(object, &choice, defaults)?,
        },
        served_names: spec
            .model
            .served_names
            .clone()
            .unwrap_or_else(|| vec![object.name_any()]),
        shape: placement::shape(object, &accelerator, &observed.runtime_classes)?,
        option,
        accelerator,
        accelerator_is_given,
        longest_context: limits
            .context_length
            .or(model.context_length)
            .unwrap_or(USUAL_CONTEXT),
        limits,
        chat: model.chat.clone(),
        card: spec.model.card.is_some().then(|| only(model, &choice)),
        choice,
    })
}

/// The part of a card that a choice uses.
fn only(model: &ModelCardSpec, choice: &Choice) -> ModelCardSpec {
    ModelCardSpec {
        description: None,
        languages: Vec::new(),
        abilities: Vec::new(),
        license: None,
        variants: vec![Variant {
            format: choice.format,
            size_in_billions: choice.size_in_billions.clone(),
            quantizations: vec![choice.quantization.clone()],
            sources: vec![choice.source.clone()],
        }],
        ..model.clone()
    }
}

fn limits(
    spec: &ModelDeploymentSpec,
    accelerator: &Accelerator,
    model: &ModelCardSpec,
) -> Result<Limits, Violation> {
    let general = spec.limits.clone().unwrap_or_default();
    let special = accelerator.limits.clone().unwrap_or_default();
    let defaults = model.defaults.clone();
    let limits = Limits {
        context_length: special.context_length.or(general.context_length),
        max_sequences: special
            .max_sequences
            .or(general.max_sequences)
            .or_else(|| defaults.as_ref()?.max_sequences),
        request_timeout_seconds: special
            .request_timeout_seconds
            .or(general.request_timeout_seconds),
        images_per_prompt: special
            .images_per_prompt
            .or(general.images_per_prompt)
            .or_else(|| defaults.as_ref()?.images_per_prompt),
    };
    if let (Some(limit), Some(most)) = (limits.context_length, model.context_length)
        && limit > most
    {
        return Err(Violation {
            reason: Reason::LimitExceedsModel,
            message: format!(
                "{} is {limit}, and the model was made for {most} tokens; lower it or leave it out",
                if special.context_length.is_some() {
                    "spec.accelerators[].limits.contextLength"
                } else {
                    "spec.limits.contextLength"
                }
            ),
        });
    }
    Ok(limits)
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

/// A child's name is taken for a moment more.
fn left_over(kind: &str, name: &str) -> Violation {
    Violation {
        reason: Reason::Waiting,
        message: format!(
            "{kind} {name} of a deleted ModelDeployment of the same name is still there; it goes by itself"
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

fn origin(
    object: &ModelDeployment,
    choice: &Choice,
    defaults: &PodDefaults,
) -> Result<Origin, Violation> {
    let spec = object.spec.weights.clone().unwrap_or_default();
    if let Some(claim) = spec.claim {
        return Ok(Origin::Claim(claim));
    }
    if let Some(cache) = spec.cache {
        return Ok(Origin::Cache {
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
    Ok(Origin::Hub {
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
