//! Which variant of a model a selection means. Pure.

use crate::api::{ModelCardSpec, ModelFormat, ModelSelection, Reason, Source, Variant};
use crate::model_cache::validate::Violation;

/// A variant, picked.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// How the weights are stored.
    pub format: ModelFormat,
    /// Billions of parameters as text with a point.
    pub size_in_billions: String,
    /// Quantization as the card writes it.
    pub quantization: String,
    /// Where the weights are; no placeholder is left in it.
    pub source: Source,
}

/// Picks the one variant, quantization and hub that the selection means.
///
/// # Errors
///
/// When nothing or more than one variant is left; the message lists what there is.
pub fn pick(model: &ModelCardSpec, selection: &ModelSelection) -> Result<Choice, Violation> {
    let wanted_size = selection.size_in_billions.as_deref().map(size);
    let left: Vec<&Variant> = model
        .variants
        .iter()
        .filter(|variant| {
            selection
                .format
                .is_none_or(|format| variant.format == format)
        })
        .filter(|variant| {
            wanted_size
                .as_ref()
                .is_none_or(|wanted| size(&variant.size_in_billions) == *wanted)
        })
        .collect();
    if left.is_empty() {
        return Err(not_found(model, "no variant has this size and format"));
    }
    let with_quantization: Vec<(&Variant, &String)> = left
        .iter()
        .filter_map(|variant| Some((*variant, quantization(variant, selection)?)))
        .collect();
    let Some((first, _)) = with_quantization.first() else {
        let wanted = selection.quantization.as_deref().unwrap_or_default();
        return Err(not_found(
            model,
            &format!("quantization {wanted:?} is not offered"),
        ));
    };
    let form = |variant: &Variant| (variant.format, size(&variant.size_in_billions));
    // Variants of one format and size differ in quantizations, files or hubs only, and their order says which is preferred.
    if with_quantization
        .iter()
        .any(|(variant, _)| form(variant) != form(first))
    {
        return Err(Violation {
            reason: Reason::VariantAmbiguous,
            message: format!(
                "spec.model leaves {} variants; say which with sizeInBillions, format or quantization. There are: {}",
                with_quantization.len(),
                offered(model)
            ),
        });
    }
    let found = with_quantization
        .iter()
        .find_map(|(variant, quantization)| {
            let source = match selection.hub {
                None => variant.sources.first(),
                Some(hub) => variant.sources.iter().find(|source| source.hub == hub),
            };
            Some((*variant, *quantization, source?))
        });
    let Some((variant, quantization, source)) = found else {
        let mut hubs: Vec<_> = with_quantization
            .iter()
            .flat_map(|(variant, _)| &variant.sources)
            .map(|source| source.hub)
            .collect();
        hubs.sort_unstable();
        hubs.dedup();
        let hubs: Vec<_> = hubs.into_iter().map(crate::api::Hub::as_str).collect();
        return Err(Violation {
            reason: Reason::HubNotOffered,
            message: format!(
                "spec.model.hub is {}, and this variant is on: {}; name one of these or leave spec.model.hub out",
                selection.hub.map_or("", crate::api::Hub::as_str),
                hubs.join(", ")
            ),
        });
    };
    Ok(Choice {
        format: variant.format,
        size_in_billions: size(&variant.size_in_billions),
        quantization: quantization.clone(),
        source: filled(source, quantization),
    })
}

fn quantization<'a>(variant: &'a Variant, selection: &ModelSelection) -> Option<&'a String> {
    match &selection.quantization {
        None => variant.quantizations.first(),
        Some(wanted) => variant
            .quantizations
            .iter()
            .find(|name| name.eq_ignore_ascii_case(wanted)),
    }
}

/// A size with a point and without zeros that say nothing: `1_50` is `1.5`.
pub(crate) fn size(text: &str) -> String {
    let text = text.replace('_', ".");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let whole = whole.trim_start_matches('0');
    let part = part.trim_end_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    if part.is_empty() {
        whole.to_owned()
    } else {
        format!("{whole}.{part}")
    }
}

fn filled(source: &Source, quantization: &str) -> Source {
    let fill = |text: &String| text.replace("{quantization}", quantization);
    Source {
        hub: source.hub,
        id: fill(&source.id),
        aliases: source.aliases.iter().map(fill).collect(),
        revision: source.revision.clone(),
        files: source
            .files
            .as_ref()
            .map(|files| files.iter().map(fill).collect()),
    }
}

fn not_found(model: &ModelCardSpec, why: &str) -> Violation {
    Violation {
        reason: Reason::VariantNotFound,
        message: format!("spec.model: {why}. There are: {}", offered(model)),
    }
}

fn offered(model: &ModelCardSpec) -> String {
    let list: Vec<String> = model
        .variants
        .iter()
        .map(|variant| {
            format!(
                "sizeInBillions \"{}\" format {} quantization {}",
                size(&variant.size_in_billions),
                variant.format.as_str(),
                variant.quantizations.join("|")
            )
        })
        .collect();
    list.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn card() -> ModelCardSpec {
        let source = |id: &str| json!([{"hub": "huggingface", "id": id, "files": ["x.{quantization}.gguf"]}]);
        serde_json::from_value(json!({"variants": [
            {"format": "ggufv2", "sizeInBillions": "1_5", "quantizations": ["Q4_1", "Q8_0"], "sources": source("a/small")},
            {"format": "ggufv2", "sizeInBillions": "11", "quantizations": ["Q4_1"], "sources": source("a/large-{quantization}")},
            {"format": "pytorch", "sizeInBillions": "11", "sources": source("a/large")},
        ]}))
        .unwrap()
    }

    fn check(selection: Value) -> Result<Choice, Violation> {
        pick(&card(), &serde_json::from_value(selection).unwrap())
    }

    #[test]
    fn sizes_are_numbers_and_quantizations_have_no_case() {
        let choice = check(json!({"sizeInBillions": "1.50", "quantization": "q8_0"})).unwrap();
        assert_eq!(
            (
                choice.size_in_billions.as_str(),
                choice.quantization.as_str()
            ),
            ("1.5", "Q8_0")
        );
        assert_eq!(choice.source.files.unwrap(), ["x.Q8_0.gguf"]);
        let choice = check(json!({"sizeInBillions": "11", "format": "ggufv2"})).unwrap();
        assert_eq!(choice.source.id, "a/large-Q4_1");
        assert_eq!(
            check(json!({"quantization": "none"})).unwrap().source.id,
            "a/large"
        );
    }

    #[test]
    fn variants_of_one_size_and_format_are_preferred_in_their_order() {
        let model: ModelCardSpec = serde_json::from_value(json!({"variants": [
            {"format": "ggufv2", "sizeInBillions": "7", "quantizations": ["Q4_1"], "sources": [{"hub": "huggingface", "id": "a/whole"}]},
            {"format": "ggufv2", "sizeInBillions": "7.0", "quantizations": ["Q8_0"], "sources": [{"hub": "huggingface", "id": "a/parts"}]},
            {"format": "ggufv2", "sizeInBillions": "7", "quantizations": ["q4_1"], "sources": [{"hub": "modelscope", "id": "b/whole"}]},
        ]}))
        .unwrap();
        for (selection, id) in [
            (json!({}), "a/whole"),
            (json!({"quantization": "q8_0"}), "a/parts"),
            (json!({"quantization": "Q4_1"}), "a/whole"),
            (json!({"hub": "modelscope"}), "b/whole"),
        ] {
            let selection = serde_json::from_value(selection).unwrap();
            assert_eq!(pick(&model, &selection).unwrap().source.id, id);
        }
    }

    #[test]
    fn refusals_list_what_there_is() {
        for (selection, reason) in [
            (json!({}), Reason::VariantAmbiguous),
            (json!({"sizeInBillions": "11"}), Reason::VariantAmbiguous),
            (json!({"sizeInBillions": "7"}), Reason::VariantNotFound),
            (json!({"quantization": "Q2_K"}), Reason::VariantNotFound),
        ] {
            let violation = check(selection).unwrap_err();
            assert_eq!(violation.reason, reason);
            assert!(
                violation
                    .message
                    .contains("sizeInBillions \"1.5\" format ggufv2 quantization Q4_1|Q8_0"),
                "{}",
                violation.message
            );
        }
        let violation = check(json!({"quantization": "none", "hub": "modelscope"})).unwrap_err();
        assert_eq!(violation.reason, Reason::HubNotOffered);
        assert!(violation.message.contains("huggingface"));
    }
}
