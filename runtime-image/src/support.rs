//! What `serve` can run, in one place: `resolve` tells it before a volume or a GPU is asked for.

use crate::hub::Format;

/// Whether `serve` runs weights of this format and architecture; `None` where the architecture would decide and is not known.
pub fn supports(format: Format, architecture: Option<&str>) -> Option<bool> {
    let architectures = match format {
        Format::Ggufv2 => ["llama"].as_slice(),
        Format::Pytorch
        | Format::Gptq
        | Format::Awq
        | Format::Fp8
        | Format::Fp4
        | Format::Bnb
        | Format::Mlx => [].as_slice(),
    };
    match architecture {
        _ if architectures.is_empty() => Some(false),
        Some(architecture) => Some(architectures.contains(&architecture)),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_unsupported_from_unknown() {
        assert_eq!(supports(Format::Ggufv2, Some("llama")), Some(true));
        assert_eq!(supports(Format::Ggufv2, Some("qwen2")), Some(false));
        assert_eq!(supports(Format::Ggufv2, None), None);
        assert_eq!(supports(Format::Bnb, None), Some(false));
    }
}
