//! What a model of given sizes must at least read and compute, by its published layout.

use crate::checkpoint::{self, Sizes};

/// Bytes of a number of weights and of the cache.
const NUMBER: f64 = 2.0;
/// Patches of a tile, with the one for its class.
const TILE_KEYS: f64 = 1_601.0;
const TILES: f64 = 4.0;

/// A model's amounts.
pub(crate) struct Work {
    /// Numbers of the matrices that each token of text goes through, without the last one.
    text: f64,
    /// Of the matrices of layers that look at pictures, but for those that make keys and values of a picture.
    looking: f64,
    /// Of those, and of the tower and the projector.
    making: f64,
    tower: f64,
    /// Of the matrix that makes logits.
    head: f64,
    /// Layers in which text attends to text, and to pictures.
    layers: f64,
    cross: f64,
    /// Width of queries, and of keys.
    queries: f64,
    keys: f64,
    tower_width: f64,
    tower_layers: f64,
}

impl Work {
    pub(crate) fn new(sizes: &Sizes) -> Self {
        let tensors = checkpoint::tensors(sizes);
        let sum = |takes: &dyn Fn(&str) -> bool| -> f64 {
            let counted = tensors.iter().filter(|tensor| takes(&tensor.name));
            counted.map(|tensor| tensor.count() as f64).sum()
        };
        let is_cross = |name: &str| {
            let layer = name.split('.').skip_while(|part| *part != "layers").nth(1);
            layer
                .and_then(|layer| layer.parse().ok())
                .is_some_and(|layer: usize| sizes.cross_layers.contains(&layer))
        };
        let in_text = |name: &str| name.starts_with("language_model.model.layers");
        let makes =
            |name: &str| is_cross(name) && (name.contains("k_proj") || name.contains("v_proj"));
        let in_tower = |name: &str| {
            name.starts_with("multi_modal_projector")
                || name.starts_with("vision_model") && name.contains("transformer.layers")
        };
        let width = (sizes.hidden / sizes.heads) as f64;
        Self {
            text: sum(&|name| in_text(name) && !is_cross(name)),
            looking: sum(&|name| in_text(name) && is_cross(name) && !makes(name)),
            making: sum(&|name| in_text(name) && makes(name)),
            tower: sum(&in_tower),
            head: sum(&|name| name.starts_with("language_model.lm_head")),
            layers: (sizes.layers - sizes.cross_layers.len()) as f64,
            cross: sizes.cross_layers.len() as f64,
            queries: sizes.heads as f64 * width,
            keys: sizes.key_heads as f64 * width,
            tower_width: sizes.vision_hidden as f64,
            tower_layers: (sizes.vision_layers + sizes.global_layers) as f64,
        }
    }

    /// Bytes that one step of so many answers reads, each with so many tokens before and a picture of four tiles where they look at one.
    pub(crate) fn decode_bytes(&self, answers: f64, context: f64, looks: bool) -> f64 {
        let weights = self.text + self.head + if looks { self.looking } else { 0.0 };
        let pages = if looks {
            self.cross * TILES * TILE_KEYS
        } else {
            0.0
        };
        let cache = 2.0 * self.keys * (self.layers * context + pages);
        NUMBER * (weights + answers * cache)
    }

    /// Operations of a prompt of so many tokens, of which the last alone gets logits.
    pub(crate) fn prefill_operations(&self, tokens: f64) -> f64 {
        let products = 2.0 * (self.text * tokens + self.head);
        // Queries with keys and weights with values, for half of all pairs.
        products + 2.0 * self.queries * tokens * tokens * self.layers
    }

    /// Operations of a picture of four tiles, to the keys and values of all layers that look at it.
    pub(crate) fn picture_operations(&self) -> f64 {
        let rows = TILES * TILE_KEYS;
        let attention = 4.0 * self.tower_width * rows * rows * self.tower_layers;
        2.0 * (self.tower + self.making) * rows + attention
    }
}
