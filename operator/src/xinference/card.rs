//! One entry of the registry → one ModelCard, or the reason why not. Pure.
//!
//! A spec, source or quantization that cannot be used is left out with a note; an entry of which nothing is left is refused.

use std::collections::BTreeMap;

use serde_json::Value;

use super::files;
use super::registry::{Family, Source, Spec, read};
use crate::api::{self, Chat, Hub, ModelCard, ModelCardSpec, ModelFormat, Variant};
use crate::bounds;
use crate::model_deployment::variant;

/// Longest name of an object in Kubernetes.
const MAX_CARD_NAME: usize = 253;

/// A card, and what of the entry it cannot say.
pub(super) struct Converted {
    pub(super) card: ModelCard,
    pub(super) notes: Vec<String>,
}

/// Turns entries into cards that the CRDs allow.
pub(super) struct Converter {
    card_spec: Value,
    repository: Value,
}

/// One quantization and everywhere it is published.
struct Offer {
    format: ModelFormat,
    size: String,
    quantization: String,
    sources: Vec<api::Source>,
}

impl Converter {
    pub(super) fn new() -> Self {
        let field = |kind, path| {
            let schema = bounds::schema(kind).unwrap_or_default();
            bounds::field(&schema, path).cloned().unwrap_or_default()
        };
        Self {
            card_spec: field("ModelCard", "spec"),
            // A card may have placeholders in its ids; what they become must be an id for the cache.
            repository: field("ModelCache", "spec.source.hub.id"),
        }
    }

    pub(super) fn convert(&self, entry: &Value) -> Result<Converted, String> {
        let (family, unheard) = read::<Family>(entry)?;
        let name = card_name(&family.model_name).ok_or("model_name has no letter or digit of which a name in Kubernetes could be made; rename the model")?;
        let mut notes: Vec<String> = unheard.iter().map(unheard_note).collect();
        let variants = variants(self.offers(&family, &mut notes));
        if variants.is_empty() {
            return Err(format!("no spec can be used: {}", notes.join("; ")));
        }
        let spec = ModelCardSpec {
            description: description(&family, &name),
            context_length: family.context_length,
            languages: family.model_lang.clone(),
            abilities: family.model_ability.clone(),
            architectures: family.architectures.clone().unwrap_or_default(),
            license: None,
            chat: chat(&family, &mut notes),
            defaults: None,
            variants,
        };
        let value = serde_json::to_value(&spec).map_err(|error| error.to_string())?;
        let violations = bounds::violations(&self.card_spec, "spec", &value);
        if !violations.is_empty() {
            return Err(violations.join("; "));
        }
        Ok(Converted {
            card: ModelCard::new(&name, spec),
            notes,
        })
    }

    /// Every quantization that can be used, in the order of the specs.
    fn offers(&self, family: &Family, notes: &mut Vec<String>) -> Vec<Offer> {
        let mut offers = Vec::new();
        for (at, value) in family.model_specs.iter().enumerate() {
            let place = format!("model_specs[{at}]");
            match read::<Spec>(value) {
                Err(why) => notes.push(format!("{place}: {why}")),
                Ok((spec, unheard)) => {
                    let unheard = unheard.iter().map(unheard_note);
                    notes.extend(unheard.map(|note| format!("{place}: {note}")));
                    for (hub, source) in hubs(&spec, value) {
                        let place = format!("{place} on {hub}");
                        self.offer(&mut offers, &spec, hub, source, &place, notes);
                    }
                }
            }
        }
        offers
    }

    fn offer(
        &self,
        offers: &mut Vec<Offer>,
        spec: &Spec,
        hub: &str,
        source: &Value,
        place: &str,
        notes: &mut Vec<String>,
    ) {
        let Some(hub) = Hub::ALL.into_iter().find(|known| known.as_str() == hub) else {
            let known = Hub::ALL.map(Hub::as_str).join(", ");
            notes.push(format!("{place}: the hubs are {known}"));
            return;
        };
        let source = match read::<Source>(source) {
            Err(_) if spec.model_uri.is_some() => {
                notes.push(format!("{place}: model_uri is a path on a worker, and cards name hubs; put the weights on a volume and name it in spec.weights.claim"));
                return;
            }
            Err(why) => {
                notes.push(format!("{place}: {why}"));
                return;
            }
            Ok((source, unheard)) => {
                let unheard = unheard.iter().map(unheard_note);
                notes.extend(unheard.map(|note| format!("{place}: {note}")));
                source
            }
        };
        let size = size(&spec.model_size_in_billions);
        let mut unusable: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for quantization in quantizations(&source) {
            let published = match self.published(hub, &source, &quantization) {
                Ok(published) => published,
                Err(why) => {
                    unusable.entry(why).or_default().push(quantization);
                    continue;
                }
            };
            let same = offers.iter_mut().find(|offer| {
                (offer.format, &offer.size, &offer.quantization)
                    == (spec.model_format, &size, &quantization)
            });
            match same {
                None => offers.push(Offer {
                    format: spec.model_format,
                    size: size.clone(),
                    quantization,
                    sources: vec![published],
                }),
                Some(offer) if offer.sources.iter().all(|other| other.hub != hub) => {
                    offer.sources.push(published);
                }
                // Xinference never takes it either: the first that fits wins there, too.
                Some(offer) if !offer.sources.contains(&published) => notes.push(format!(
                    "{place}: {}: an earlier spec has this format, size and quantization on this hub",
                    source.model_id
                )),
                Some(_) => {}
            }
        }
        for (why, names) in unusable {
            let names = names.join(", ");
            notes.push(format!("{place}: quantization {names}: {why}"));
        }
    }

    fn published(
        &self,
        hub: Hub,
        source: &Source,
        quantization: &str,
    ) -> Result<api::Source, String> {
        let id = source.model_id.replace("{quantization}", quantization);
        if !bounds::violations(&self.repository, "model_id", &id.into()).is_empty() {
            return Err(format!(
                "model_id {} is not of the form ORG/NAME",
                source.model_id
            ));
        }
        let revision = source
            .model_revision
            .clone()
            .filter(|text| !text.is_empty());
        Ok(api::Source {
            hub,
            id: source.model_id.clone(),
            aliases: Vec::new(),
            revision: match hub {
                // ModelScope's repositories begin on a branch of this name, and a card's default is `main`.
                Hub::Modelscope => revision.or_else(|| Some("master".to_owned())),
                Hub::Huggingface | Hub::OpenmindHub | Hub::Csghub => revision,
            },
            files: files::patterns(source, quantization)?,
        })
    }
}

/// The hubs of a spec. A custom model's one source stands in the spec itself.
fn hubs<'a>(spec: &'a Spec, value: &'a Value) -> Vec<(&'a str, &'a Value)> {
    match &spec.model_src {
        Some(sources) => sources
            .iter()
            .map(|(hub, source)| (hub.as_str(), source))
            .collect(),
        None => vec![(
            spec.model_hub
                .as_deref()
                .unwrap_or(Hub::Huggingface.as_str()),
            value,
        )],
    }
}

/// The quantizations of a source, the default first.
///
/// Files in parts tell theirs by themselves, and the list then often lacks them or says `none`, of which no file exists.
fn quantizations(source: &Source) -> Vec<String> {
    let mut names = match (&source.quantizations, &source.quantization) {
        (Some(names), _) => names.clone(),
        (None, Some(name)) => vec![name.clone()],
        (None, None) => vec!["none".to_owned()],
    };
    let Some(parts) = source
        .quantization_parts
        .as_ref()
        .filter(|parts| !parts.is_empty())
    else {
        return names;
    };
    names.retain(|name| name != "none" || parts.contains_key(name));
    if names.is_empty() {
        // The registry names no default here, and the alphabet's would be the largest.
        names.extend(parts.keys().find(|name| *name == "Q4_K_M").cloned());
    }
    for name in parts.keys() {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Quantizations with equal sources become one variant; the order stays, because the first is the default.
fn variants(offers: Vec<Offer>) -> Vec<Variant> {
    let mut variants: Vec<Variant> = Vec::new();
    for mut offer in offers {
        offer.sources.sort_by_key(|source| source.hub);
        let same = variants.iter_mut().find(|variant| {
            (variant.format, &variant.size_in_billions, &variant.sources)
                == (offer.format, &offer.size, &offer.sources)
        });
        match same {
            Some(variant) => variant.quantizations.push(offer.quantization),
            None => variants.push(Variant {
                format: offer.format,
                size_in_billions: offer.size,
                quantizations: vec![offer.quantization],
                sources: offer.sources,
            }),
        }
    }
    variants
}

/// A number as text, or text with `_` for the point; the CRD's pattern refuses everything else later.
fn size(value: &Value) -> String {
    match value {
        Value::String(text) => variant::size(text),
        other => variant::size(&other.to_string()),
    }
}

fn description(family: &Family, name: &str) -> Option<String> {
    let mut text = family.model_description.clone().unwrap_or_default();
    text.truncate(text.trim_end().len());
    if name != family.model_name {
        if text.ends_with(|letter: char| letter.is_alphanumeric()) {
            text.push('.');
        }
        text.push_str(&format!(" Xinference calls it {}.", family.model_name));
    }
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

fn chat(family: &Family, notes: &mut Vec<String>) -> Option<Chat> {
    let template = family
        .chat_template
        .clone()
        .filter(|template| !template.trim().is_empty());
    let template = match template {
        // Custom models may name a family of the registry whose template is meant.
        Some(name) if !name.contains('{') => {
            notes.push(format!("chat_template {name:?} is no template but the name of a family; the template that the weights bring is used"));
            None
        }
        template => template,
    };
    let chat = Chat {
        template,
        stop: family.stop.clone().unwrap_or_default(),
        stop_token_ids: family.stop_token_ids.clone().unwrap_or_default(),
    };
    let says_something =
        chat.template.is_some() || !chat.stop.is_empty() || !chat.stop_token_ids.is_empty();
    says_something.then_some(chat)
}

fn unheard_note(field: &String) -> String {
    format!("field {field} is not known here")
}

/// The name of the card of a model: in lower case, other letters as `-`; nothing when no letter is left.
pub(super) fn card_name(model_name: &str) -> Option<String> {
    let letters: String = model_name
        .chars()
        .map(|letter| letter.to_ascii_lowercase())
        .map(|letter| match letter {
            'a'..='z' | '0'..='9' | '.' => letter,
            _ => '-',
        })
        .collect();
    let labels: Vec<&str> = letters
        .split('.')
        .map(|label| label.trim_matches('-'))
        .filter(|label| !label.is_empty())
        .collect();
    let name = labels.join(".");
    (1..=MAX_CARD_NAME).contains(&name.len()).then_some(name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(entry: Value) -> Result<Converted, String> {
        Converter::new().convert(&entry)
    }

    fn family(specs: Value) -> Value {
        json!({"version": 2, "model_name": "My_Model-V1.5", "model_lang": ["en"], "model_ability": ["chat"], "model_specs": specs})
    }

    #[test]
    fn one_spec_with_two_hubs_becomes_one_variant() {
        let converted = check(family(json!([{
            "model_format": "gptq", "model_size_in_billions": "1_5",
            "model_src": {
                "modelscope": {"quantizations": ["Int4", "Int8"], "model_id": "b/m-{quantization}"},
                "huggingface": {"quantizations": ["Int4", "Int8"], "model_id": "a/m-{quantization}", "model_revision": "abc"},
            },
        }])))
        .unwrap();
        assert!(converted.notes.is_empty(), "{:?}", converted.notes);
        assert_eq!(
            serde_json::to_value(&converted.card).unwrap(),
            json!({
                "apiVersion": "chandler.dev/v1alpha1", "kind": "ModelCard",
                "metadata": {"name": "my-model-v1.5"},
                "spec": {
                    "description": "Xinference calls it My_Model-V1.5.",
                    "languages": ["en"], "abilities": ["chat"],
                    "variants": [{
                        "format": "gptq", "sizeInBillions": "1.5", "quantizations": ["Int4", "Int8"],
                        "sources": [
                            {"hub": "huggingface", "id": "a/m-{quantization}", "revision": "abc"},
                            {"hub": "modelscope", "id": "b/m-{quantization}", "revision": "master"},
                        ],
                    }],
                },
            })
        );
    }

    #[test]
    fn quantizations_are_split_by_hubs_and_files_and_the_first_stays_first() {
        let gguf = |hub: &str, quantizations: Value| {
            json!({hub: {"quantizations": quantizations, "model_id": "a/m",
                "model_file_name_template": "m-{quantization}.gguf",
                "model_file_name_split_template": "m-{quantization}-{part}.gguf",
                "quantization_parts": {"Q8_0": ["00001-of-00002", "00002-of-00002"]}}})
        };
        let mut sources = gguf("huggingface", json!(["Q4_0", "Q5_0"]));
        sources["openmind_hub"] = gguf("openmind_hub", json!(["Q5_0"]))["openmind_hub"].take();
        let converted = check(family(json!([
            {"model_format": "ggufv2", "model_size_in_billions": 7, "model_src": sources},
            {"model_format": "ggufv2", "model_size_in_billions": 7, "model_src": {"huggingface": {"quantizations": ["Q4_0"], "model_id": "a/other"}}},
        ])))
        .unwrap();
        let found: Vec<(String, usize)> = converted
            .card
            .spec
            .variants
            .iter()
            .map(|variant| (variant.quantizations.join(","), variant.sources.len()))
            .collect();
        let wanted = [("Q4_0", 1), ("Q5_0", 2), ("Q8_0", 2)];
        assert_eq!(found, wanted.map(|(names, hubs)| (names.to_owned(), hubs)));
        assert_eq!(
            converted.notes,
            [
                "model_specs[1] on huggingface: a/other: an earlier spec has this format, size and quantization on this hub"
            ]
        );
    }

    #[test]
    fn custom_models_have_their_source_in_the_spec() {
        let converted = check(family(json!([
            {"model_format": "pytorch", "model_size_in_billions": 7, "quantization": "none", "model_id": "me/mine", "model_hub": "modelscope"},
            {"model_format": "pytorch", "model_size_in_billions": 8, "quantization": "none", "model_uri": "file:///models/mine"},
        ])))
        .unwrap();
        let variants = &converted.card.spec.variants;
        assert_eq!(variants.len(), 1);
        assert_eq!(variants[0].sources[0].hub, Hub::Modelscope);
        assert!(
            converted.notes[0].contains("spec.weights.claim"),
            "{:?}",
            converted.notes
        );
    }

    #[test]
    fn what_cannot_be_said_is_noted_and_what_breaks_a_bound_is_refused() {
        let source = json!({"huggingface": {"quantizations": ["none"], "model_id": "a/m"}});
        let fine =
            json!({"model_format": "pytorch", "model_size_in_billions": 7, "model_src": source});
        let mut specs = json!([fine, null]);
        for (spec, words) in [
            (
                json!({"model_format": "onnx", "model_size_in_billions": 7}),
                "model_specs[1]: model_format: unknown variant",
            ),
            (
                json!({"model_format": "pytorch", "model_size_in_billions": 7, "model_src": {"elsewhere": {}}}),
                "the hubs are huggingface",
            ),
            (
                json!({"model_format": "pytorch", "model_size_in_billions": 7, "model_src": {"csghub": {"model_id": "a//m"}}}),
                "quantization none: model_id a//m is not of the form ORG/NAME",
            ),
            (
                json!({"model_format": "mlx", "model_size_in_billions": 7, "model_src": source, "colour": 1}),
                "field colour is not known",
            ),
        ] {
            specs[1] = spec;
            let notes = check(family(specs.clone())).unwrap().notes;
            assert!(notes.len() == 1 && notes[0].contains(words), "{notes:?}");
        }
        for (field, value, words) in [
            ("model_ability", json!(["fly"]), "unknown variant `fly`"),
            ("model_name", json!("模型"), "rename the model"),
            ("context_length", json!(0), "spec.contextLength is 0"),
            ("stop", json!(vec!["x"; 65]), "at most 64 fit"),
            ("model_specs", json!([]), "no spec can be used"),
            (
                "model_specs",
                json!([{"model_format": "pytorch", "model_size_in_billions": "big", "model_src": source}]),
                "sizeInBillions is \"big\"",
            ),
        ] {
            let mut entry = family(json!([fine]));
            entry[field] = value;
            let reason = check(entry).err().unwrap();
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn names_are_made_for_kubernetes() {
        for (model, card) in [
            ("seallm_v2.5", Some("seallm-v2.5")),
            ("QwQ-32B", Some("qwq-32b")),
            ("_a._.b-", Some("a.b")),
            ("模型", None),
            ("", None),
        ] {
            assert_eq!(card_name(model).as_deref(), card, "{model}");
        }
    }
}
