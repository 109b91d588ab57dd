//! What layers of every kind are made of.

use super::Buffers;
use crate::compute::backend::Backend;
use crate::model::linear::{Linear, Split, gated, multiply};
use crate::weights::{LoadError, Shape, Weights};

/// Norms and matrices of attention and feed-forward.
pub(in crate::model) struct Parts<B: Backend> {
    pub(super) attention_norm: B::Rows,
    pub(super) query: Linear<B>,
    pub(in crate::model) key: Linear<B>,
    pub(in crate::model) value: Linear<B>,
    pub(super) output: Linear<B>,
    pub(super) feed_forward_norm: B::Rows,
    pub(super) gate: Linear<B>,
    pub(super) up: Linear<B>,
    down: Linear<B>,
}

impl<B: Backend> Parts<B> {
    /// Those of attention have names that begin with `attention`.
    pub(super) fn load(
        weights: &mut dyn Weights,
        backend: &B,
        shape: &Shape,
        index: usize,
        attention: &str,
    ) -> Result<Self, LoadError> {
        let Shape {
            hidden,
            inner,
            heads,
            key_heads,
            width,
            ..
        } = *shape;
        let (queries, shared) = (heads * width, key_heads * width);
        let name = |part: &str| format!("blk.{index}.{part}");
        let attention = |part: &str| format!("{attention}_{part}");
        let mut linear = |part: &str, outputs, inputs, split| {
            Linear::load(weights, backend, &name(part), (outputs, inputs), split)
        };
        let query = linear(&attention("q"), queries, hidden, Split::Outputs)?;
        let key = linear(&attention("k"), shared, hidden, Split::Outputs)?;
        let value = linear(&attention("v"), shared, hidden, Split::Outputs)?;
        let output = linear(&attention("output"), hidden, queries, Split::Inputs)?;
        let gate = linear("ffn_gate", inner, hidden, Split::Outputs)?;
        let up = linear("ffn_up", inner, hidden, Split::Outputs)?;
        let down = linear("ffn_down", hidden, inner, Split::Inputs)?;
        let mut norm = |part: &str| {
            let values = weights.vector(&name(part), hidden)?;
            Ok(backend.vector(values))
        };
        Ok(Self {
            attention_norm: norm("attn_norm.weight")?,
            query,
            key,
            value,
            output,
            feed_forward_norm: norm("ffn_norm.weight")?,
            gate,
            up,
            down,
        })
    }

    pub(super) fn linears(&self) -> [&Linear<B>; 7] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }

    /// `delta = down(silu(gate(normed)) * up(normed))`, for the first `rows` rows.
    pub(super) fn feed_forward(&self, backend: &mut B, rows: usize, buffers: &mut Buffers<B>) {
        gated(
            backend,
            (&buffers.normed, rows),
            (&self.gate, &mut buffers.gate),
            (&self.up, &mut buffers.up),
            &self.down,
            &mut buffers.inner,
        );
        let down = vec![(&self.down, &mut buffers.delta)];
        multiply(backend, &buffers.inner, rows, down);
    }
}
