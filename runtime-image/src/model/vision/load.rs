//! The tower's weights, and the buffers of one picture.

use super::{Buffers, CHUNK, Tower};
use crate::compute::backend::{Heads, Rotation};
use crate::compute::vision::Vision;
use crate::model::linear::{Linear, Split};
use crate::step::BLOCK_TOKENS;
use crate::weights::sight::Sight;
use crate::weights::{LoadError, Shape, Weights};

/// Weight and bias of a layer norm.
pub(super) struct Norm<B: Vision> {
    pub(super) weight: B::Rows,
    pub(super) bias: B::Rows,
}

impl<B: Vision> Norm<B> {
    pub(super) fn load(
        weights: &mut dyn Weights,
        backend: &B,
        name: &str,
        width: usize,
    ) -> Result<Self, LoadError> {
        let mut vector = |part: &str| weights.vector(&format!("{name}.{part}"), width);
        Ok(Self {
            weight: backend.vector(vector("weight")?),
            bias: backend.vector(vector("bias")?),
        })
    }
}

pub(super) struct Layer<B: Vision> {
    pub(super) attention_norm: Norm<B>,
    pub(super) query: Linear<B>,
    pub(super) key: Linear<B>,
    pub(super) value: Linear<B>,
    pub(super) output: Linear<B>,
    /// 1 in the first encoder.
    pub(super) attention_gate: f32,
    pub(super) feed_forward_norm: Norm<B>,
    pub(super) up: Linear<B>,
    pub(super) down: Linear<B>,
    pub(super) feed_forward_gate: f32,
}

impl<B: Vision> Layer<B> {
    pub(super) fn load(
        weights: &mut dyn Weights,
        backend: &B,
        sight: &Sight,
        name: &str,
        gated: bool,
    ) -> Result<Self, LoadError> {
        let Sight { hidden, inner, .. } = *sight;
        let name = |part: &str| format!("{name}.{part}");
        let mut linear = |part: &str, outputs, inputs| {
            let size = (outputs, inputs);
            Linear::load(weights, backend, &name(part), size, Split::Whole)
        };
        let query = linear("self_attn.q_proj", hidden, hidden)?;
        let key = linear("self_attn.k_proj", hidden, hidden)?;
        let value = linear("self_attn.v_proj", hidden, hidden)?;
        let output = linear("self_attn.o_proj", hidden, hidden)?;
        let up = linear("mlp.fc1", inner, hidden)?;
        let down = linear("mlp.fc2", hidden, inner)?;
        let mut norm = |part: &str| Norm::load(weights, backend, &name(part), hidden);
        let attention_norm = norm("input_layernorm")?;
        let feed_forward_norm = norm("post_attention_layernorm")?;
        let mut gate = |part: &str| -> Result<f32, LoadError> {
            if gated {
                Ok(weights.vector(&name(part), 1)?[0].tanh())
            } else {
                Ok(1.0)
            }
        };
        Ok(Self {
            attention_norm,
            query,
            key,
            value,
            output,
            attention_gate: gate("gate_attn")?,
            feed_forward_norm,
            up,
            down,
            feed_forward_gate: gate("gate_ffn")?,
        })
    }

    pub(super) fn linears(&self) -> [&Linear<B>; 6] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.up,
            &self.down,
        ]
    }
}

impl<B: Vision> Tower<B> {
    pub(in crate::model) fn load(
        weights: &mut dyn Weights,
        backend: &B,
        sight: Sight,
        shape: &Shape,
        cross_heads: Heads,
    ) -> Result<Self, LoadError> {
        const NAME: &str = "vision_model";
        let Sight {
            hidden,
            inner,
            tiles,
            ..
        } = sight;
        let (tile_rows, numbers) = (sight.tile_keys(), sight.arrangements.len() + 1);
        let name = |part: &str| format!("{NAME}.{part}");
        let size = (hidden, sight.patch_numbers());
        let patches = Linear::load(
            weights,
            backend,
            &name("patch_embedding"),
            size,
            Split::Whole,
        )?;
        let class = weights.vector(&name("class_embedding"), hidden)?;
        let mut gate = |part: &str| -> Result<f32, LoadError> {
            Ok(weights.vector(&name(part), 1)?[0].tanh())
        };
        let tile_gate = gate("gated_positional_embedding.gate")?;
        let before_gate = gate("pre_tile_positional_embedding.gate")?;
        let between_gate = gate("post_tile_positional_embedding.gate")?;
        let table = |weights: &mut dyn Weights, part: &str, rows, columns, scale: f32| {
            let tensor = weights.tensor(&name(part), rows, columns)?;
            let scaled = tensor.floats().into_iter().map(|number| number * scale);
            Ok::<Vec<f32>, LoadError>(scaled.collect())
        };
        let part = "gated_positional_embedding.embedding";
        let positions = table(weights, part, tile_rows, hidden, 1.0 - tile_gate)?;
        let part = "pre_tile_positional_embedding.embedding.weight";
        let before = table(weights, part, numbers, tiles * hidden, before_gate)?;
        let part = "post_tile_positional_embedding.embedding.weight";
        let between = table(weights, part, numbers, tiles * hidden, between_gate)?;
        let part = "gated_positional_embedding.tile_embedding.weight";
        let tile_positions = weights.tensor(&name(part), numbers, tiles * tile_rows * hidden)?;
        let encoders = [
            ("transformer", sight.layers, false),
            ("global_transformer", sight.global_layers, true),
        ];
        let mut layers = Vec::new();
        for (encoder, count, gated) in encoders {
            for index in 0..count {
                let name = name(&format!("{encoder}.layers.{index}"));
                layers.push(Layer::load(weights, backend, &sight, &name, gated)?);
            }
        }
        let size = (shape.hidden, sight.output());
        let projector = Linear::load(
            weights,
            backend,
            "multi_modal_projector",
            size,
            Split::Whole,
        )?;
        let heads = Heads {
            queries: sight.heads,
            keys: sight.heads,
            width: hidden / sight.heads,
            layers: 1,
        };
        let shared = cross_heads.keys * cross_heads.width;
        let buffers = Buffers {
            hidden: backend.rows(sight.rows(), hidden),
            saved: (0..sight.saved.len())
                .map(|_| backend.rows(tiles * tile_rows, hidden))
                .collect(),
            arena: backend.arena(sight.rows().div_ceil(BLOCK_TOKENS), heads),
            patches: backend.input(CHUNK, sight.patch_numbers()),
            added: backend.rows(CHUNK, hidden),
            normed: backend.input(CHUNK, hidden),
            query: backend.rows(CHUNK, hidden),
            key: backend.rows(CHUNK, hidden),
            value: backend.rows(CHUNK, hidden),
            attended: backend.input(CHUNK, hidden),
            delta: backend.rows(CHUNK, hidden),
            inner: backend.rows(CHUNK, inner),
            activated: backend.input(CHUNK, inner),
            joined: backend.input(CHUNK, sight.output()),
            states: backend.rows(CHUNK, shape.hidden),
            seen: backend.input(CHUNK, shape.hidden),
            cross_key: backend.rows(CHUNK, shared),
            cross_value: backend.rows(CHUNK, shared),
            rotation: Rotation {
                cosines: Vec::new(),
                sines: Vec::new(),
                pairs: 0,
                neighbours: false,
            },
        };
        let mut tower = Self {
            first_norm: Norm::load(weights, backend, &name("layernorm_pre"), hidden)?,
            last_norm: Norm::load(weights, backend, &name("layernorm_post"), hidden)?,
            patches,
            class,
            positions,
            tile_positions,
            tile_gate,
            before,
            between,
            layers,
            projector,
            heads,
            lacks_equal: Vec::new(),
            buffers,
            progress: None,
            sight,
        };
        tower.lacks_equal = (1..numbers)
            .map(|number| tower.lacks_nothing(number))
            .collect();
        Ok(tower)
    }

    /// Whether the tables say nothing of tiles that an arrangement lacks, as in the published weights.
    fn lacks_nothing(&self, number: usize) -> bool {
        let (rows, columns) = self.sight.arrangements[number - 1];
        let hidden = self.sight.hidden;
        let lacking = (number * self.sight.tiles + rows * columns)..(number + 1) * self.sight.tiles;
        let zero = |table: &[f32]| table.iter().all(|number| *number == 0.0);
        let tile = hidden * self.sight.tile_keys();
        zero(&self.before[lacking.start * hidden..lacking.end * hidden])
            && zero(&self.between[lacking.start * hidden..lacking.end * hidden])
            && lacking
                .clone()
                .all(|at| zero(&self.tile_positions.floats_in(at * tile..(at + 1) * tile)))
    }
}
