//! What `serve` can run, in one place: `resolve` tells it before a volume or a GPU is asked for.

use crate::hub::Format;
use crate::model::{GGUF_ARCHITECTURES, HUB_ARCHITECTURES};
use crate::tokenizer::reads_gguf;
use crate::weights::gguf::GGUF_SCALINGS;
use crate::weights::hub_files::{HUB_FLOATS, HUB_SCALINGS};

/// Whether `serve` runs weights of this format and architecture; `None` where the architecture would decide and is not known.
pub fn supports(format: Format, architecture: Option<&str>) -> Option<bool> {
    let architectures = match format {
        Format::Ggufv2 => GGUF_ARCHITECTURES.as_slice(),
        Format::Pytorch => HUB_ARCHITECTURES.as_slice(),
        Format::Gptq | Format::Awq | Format::Fp8 | Format::Fp4 | Format::Bnb | Format::Mlx => {
            [].as_slice()
        }
    };
    match architecture {
        _ if architectures.is_empty() => Some(false),
        Some(architecture) => Some(architectures.contains(&architecture)),
        None => None,
    }
}

/// Whether `serve` reads the tokenizer of a GGUF file with these words in its keys; what is not known counts as readable.
pub fn reads_gguf_tokenizer(model: Option<&str>, cut: Option<&str>) -> bool {
    model.is_none_or(|model| reads_gguf(model, cut))
}

/// Whether `serve` knows the rotary scaling that a GGUF file names; none is none.
pub fn rotates_gguf(scaling: Option<&str>) -> bool {
    scaling.is_none_or(|scaling| GGUF_SCALINGS.contains(&scaling))
}

/// Whether `serve` knows the rotary scaling that a `config.json` names; none is none.
pub fn rotates_hub_files(scaling: Option<&str>) -> bool {
    scaling.is_none_or(|scaling| HUB_SCALINGS.contains(&scaling))
}

/// Whether `serve` reads safetensors of the type that a `config.json` names; what is not known counts as readable.
pub fn reads_floats(kind: Option<&str>) -> bool {
    kind.is_none_or(|kind| HUB_FLOATS.contains(&kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_unsupported_from_unknown() {
        assert_eq!(supports(Format::Ggufv2, Some("llama")), Some(true));
        assert_eq!(supports(Format::Ggufv2, Some("gemma3")), Some(false));
        assert_eq!(supports(Format::Ggufv2, None), None);
        assert_eq!(supports(Format::Bnb, None), Some(false));
        assert_eq!(supports(Format::Pytorch, None), None);
        assert_eq!(
            supports(Format::Pytorch, Some("Gemma3ForCausalLM")),
            Some(false)
        );
    }
}
