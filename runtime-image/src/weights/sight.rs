//! The sizes of a model's vision tower, and how its text layers look at what the tower gives.

use std::path::Path;

use serde::Deserialize;

use super::LoadError;

/// Rows of a tile are filled up to a multiple of this; the models were trained with what that adds.
const ROW_MULTIPLE: usize = 8;

/// A vision tower of two encoders over the tiles of a picture, and the text layers that attend to it (Llama 3.2 Vision).
#[derive(Clone, Debug, PartialEq)]
pub struct Sight {
    /// Numbers of the cross-attention layers among all text layers, ascending.
    pub cross_layers: Vec<usize>,
    /// The token that stands for a picture.
    pub token: u32,
    /// Width of the state between the tower's layers.
    pub hidden: usize,
    /// Width inside its feed-forward layers.
    pub inner: usize,
    /// Its heads.
    pub heads: usize,
    /// Layers of the first encoder.
    pub layers: usize,
    /// Layers of the second encoder, whose branches are gated.
    pub global_layers: usize,
    /// Layers of the first encoder whose inputs are kept for the result, ascending.
    pub saved: Vec<usize>,
    /// Width and height of a tile in pixels.
    pub side: usize,
    /// Width and height of a patch in pixels.
    pub patch: usize,
    /// Tiles of a picture at most.
    pub tiles: usize,
    /// Arrangements of tiles (rows, columns) in the order of their numbers, the first of which is 1.
    pub arrangements: Vec<(usize, usize)>,
    /// Added to the variance in norms.
    pub epsilon: f32,
}

/// The part of `vision_config` that matters here.
#[derive(Deserialize)]
pub(super) struct VisionConfig {
    hidden_size: usize,
    intermediate_size: usize,
    #[serde(alias = "num_attention_heads")]
    attention_heads: usize,
    num_hidden_layers: usize,
    num_global_layers: usize,
    intermediate_layers_indices: Vec<usize>,
    vision_output_dim: usize,
    image_size: usize,
    patch_size: usize,
    num_channels: usize,
    max_num_tiles: usize,
    supported_aspect_ratios: Vec<(usize, usize)>,
    hidden_act: String,
    norm_eps: f32,
}

impl Sight {
    /// Checks a description before anything is allocated by it.
    pub(super) fn new(
        path: &Path,
        config: &VisionConfig,
        token: u32,
        cross_layers: Vec<usize>,
    ) -> Result<Self, LoadError> {
        let fail = |detail: String| {
            Err(LoadError::Description {
                path: path.to_owned(),
                detail,
            })
        };
        for (name, value, most) in [
            ("hidden_size", config.hidden_size, 1 << 16),
            ("intermediate_size", config.intermediate_size, 1 << 18),
            ("attention_heads", config.attention_heads, 1 << 10),
            ("num_hidden_layers", config.num_hidden_layers, 1 << 10),
            ("num_global_layers", config.num_global_layers, 1 << 10),
            ("image_size", config.image_size, 1 << 12),
            ("patch_size", config.patch_size, 1 << 12),
            ("max_num_tiles", config.max_num_tiles, 16),
            (
                "number of supported_aspect_ratios",
                config.supported_aspect_ratios.len(),
                1 << 10,
            ),
        ] {
            if value == 0 || value > most {
                return fail(format!(
                    "{name} of the vision tower is {value}, expected 1 to {most}"
                ));
            }
        }
        let width = config.hidden_size / config.attention_heads;
        if width * config.attention_heads != config.hidden_size || width > 1 << 10 {
            return fail(format!(
                "a vision tower of width {} cannot have {} heads",
                config.hidden_size, config.attention_heads
            ));
        }
        if config.num_channels != 3 || config.hidden_act != "gelu" {
            return fail(format!(
                "a vision tower of {} channels with {} is not supported; supported are 3 channels with gelu",
                config.num_channels, config.hidden_act
            ));
        }
        if !config.image_size.is_multiple_of(config.patch_size) {
            return fail(format!(
                "image_size {} is no multiple of patch_size {}",
                config.image_size, config.patch_size
            ));
        }
        let saved = &config.intermediate_layers_indices;
        if saved.is_empty()
            || saved.windows(2).any(|pair| pair[0] >= pair[1])
            || saved.iter().any(|layer| *layer >= config.num_hidden_layers)
            || config.vision_output_dim != config.hidden_size * (saved.len() + 1)
        {
            return fail(format!(
                "intermediate_layers_indices {saved:?} do not fit {} layers and an output of {}",
                config.num_hidden_layers, config.vision_output_dim
            ));
        }
        let tiles = config.max_num_tiles;
        let fits = |(rows, columns): &(usize, usize)| {
            *rows > 0 && *columns > 0 && *rows <= tiles && *columns <= tiles / rows
        };
        if !config.supported_aspect_ratios.iter().all(fits) {
            return fail(format!(
                "supported_aspect_ratios {:?} do not all have 1 to {tiles} tiles",
                config.supported_aspect_ratios
            ));
        }
        Ok(Self {
            cross_layers,
            token,
            hidden: config.hidden_size,
            inner: config.intermediate_size,
            heads: config.attention_heads,
            layers: config.num_hidden_layers,
            global_layers: config.num_global_layers,
            saved: saved.clone(),
            side: config.image_size,
            patch: config.patch_size,
            tiles,
            arrangements: config.supported_aspect_ratios.clone(),
            epsilon: config.norm_eps,
        })
    }

    /// Keys that one tile gives: its patches and one for the whole.
    #[must_use]
    pub fn tile_keys(&self) -> usize {
        let patches = self.side / self.patch;
        patches * patches + 1
    }

    /// Rows that fill a tile up.
    #[must_use]
    pub fn fillers(&self) -> usize {
        self.tile_keys().next_multiple_of(ROW_MULTIPLE) - self.tile_keys()
    }

    /// Rows of a picture in the tower at most: its tiles' and one filler each.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tiles * (self.tile_keys() + usize::from(self.fillers() > 0))
    }

    /// Numbers that the tower gives for each key.
    #[must_use]
    pub fn output(&self) -> usize {
        self.hidden * (self.saved.len() + 1)
    }

    /// Numbers in a patch.
    #[must_use]
    pub fn patch_numbers(&self) -> usize {
        3 * self.patch * self.patch
    }
}
