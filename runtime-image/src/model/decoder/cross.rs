//! Layers in which text looks at pictures: keys and values come from the pictures alone and lie in the arena's pages.
//!
//! Only rows that see a picture are computed. A row that sees none keeps its state, through attention and feed-forward
//! alike, so that what stands before the first picture is the same with and without it.

use super::super::linear::multiply;
use super::parts::Parts;
use super::{Decoder, Sighted};
use crate::compute::backend::Heads;
use crate::compute::vision::{Look, Span, Vision};
use crate::step::{BLOCK_TOKENS, StepPlan};
use crate::weights::{LoadError, Shape, Weights};

/// One such layer.
pub(in crate::model) struct CrossLayer<B: Vision> {
    pub(in crate::model) parts: Parts<B>,
    query_norm: B::Rows,
    pub(in crate::model) key_norm: B::Rows,
    /// The hyperbolic tangent of the weights' number, as is the other gate.
    attention_gate: f32,
    feed_forward_gate: f32,
}

impl<B: Vision> CrossLayer<B> {
    pub(super) fn load(
        weights: &mut dyn Weights,
        backend: &B,
        shape: &Shape,
        index: usize,
    ) -> Result<Self, LoadError> {
        let parts = Parts::load(weights, backend, shape, index, "cross_attn")?;
        let mut vector = |part: &str, length| {
            let name = format!("blk.{index}.{part}");
            weights.vector(&name, length)
        };
        Ok(Self {
            parts,
            query_norm: backend.vector(vector("cross_attn_q_norm.weight", shape.width)?),
            key_norm: backend.vector(vector("cross_attn_k_norm.weight", shape.width)?),
            attention_gate: vector("cross_attn_attn_gate", 1)?[0].tanh(),
            feed_forward_gate: vector("cross_attn_mlp_gate", 1)?[0].tanh(),
        })
    }
}

/// How the pages of pictures are divided: a block has a slot for each of `layers` layers of text; the slots of a picture's
/// pages, one page after the other, hold its first keys in each of the `cross_layers` layers, then the next keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// Layers in which text attends to text.
    pub layers: usize,
    /// Layers in which text attends to pictures.
    pub cross_layers: usize,
}

impl Pages {
    /// Pages that so many keys take.
    #[must_use]
    pub fn count(&self, keys: usize) -> usize {
        (keys.div_ceil(BLOCK_TOKENS) * self.cross_layers).div_ceil(self.layers)
    }

    /// The slots of so many keys in one cross-attention layer, counted through the whole arena.
    pub(in crate::model) fn slots(&self, pages: &[u32], keys: usize, layer: usize) -> Vec<u32> {
        let slots = u32::try_from(self.layers).unwrap_or(u32::MAX);
        (0..keys.div_ceil(BLOCK_TOKENS))
            .map(|block| {
                let slot = block * self.cross_layers + layer;
                let within = u32::try_from(slot % self.layers).unwrap_or(u32::MAX);
                pages[slot / self.layers] * slots + within
            })
            .collect()
    }
}

/// The heads of a layer as if its slots were blocks of an arena of one layer.
pub(in crate::model) fn slot_heads(heads: Heads) -> Heads {
    Heads { layers: 1, ..heads }
}

/// The rows of a step that see pictures.
pub(super) fn sighted_rows(plan: &StepPlan) -> Vec<usize> {
    let runs = plan.runs.iter().flat_map(|run| &run.cross);
    runs.flat_map(|cross| cross.rows.clone()).collect()
}

/// What they see in one layer; rows counted among those that see anything.
fn looks(plan: &StepPlan, pages: Pages, layer: usize) -> Vec<Look> {
    let mut next = 0;
    let runs = plan.runs.iter().flat_map(|run| &run.cross);
    runs.map(|cross| {
        let first = next;
        next += cross.rows.len();
        let spans = cross.pictures.iter().map(|picture| Span {
            blocks: pages.slots(&picture.pages, picture.length, layer),
            keys: 0..picture.length,
            repeats: 1,
        });
        Look {
            rows: first..next,
            spans: spans.collect(),
        }
    })
    .collect()
}

impl<B: Vision> Sighted<B> {
    /// What the rows of a step see, in each layer, by its number from 1 on.
    pub(super) fn looks(&self, plan: &StepPlan) -> Vec<(usize, Vec<Look>)> {
        (0..self.layers.len())
            .map(|layer| (layer + 1, looks(plan, self.facts.pages, layer)))
            .collect()
    }
}

impl<B: Vision> Decoder<B> {
    /// Adds to the `picked` rows what they see in pictures, and the feed-forward layer after it.
    pub(super) fn look(
        &mut self,
        picked: &[usize],
        index: usize,
        (number, looks): &(usize, Vec<Look>),
    ) {
        let Self {
            shape,
            backend,
            heads,
            sighted: Some(sighted),
            arena,
            buffers,
            ..
        } = self
        else {
            return;
        };
        let (rows, layer) = (picked.len(), &sighted.layers[index]);
        let Parts {
            attention_norm,
            query,
            output,
            feed_forward_norm,
            gate,
            up,
            ..
        } = &layer.parts;
        backend.norm(
            &buffers.hidden,
            picked,
            (attention_norm, shape.epsilon),
            &[query.matrix()],
            &mut buffers.normed,
        );
        let query = vec![(query, &mut buffers.query)];
        multiply(backend, &buffers.normed, rows, query);
        let norm = (&layer.query_norm, shape.epsilon);
        backend.norm_heads(rows, &mut buffers.query, norm);
        backend.look(
            slot_heads(*heads),
            *number,
            looks,
            &buffers.query,
            arena,
            output.matrix(),
            &mut buffers.attended,
        );
        let output = vec![(output, &mut buffers.delta)];
        multiply(backend, &buffers.attended, rows, output);
        let (hidden, delta) = (&mut buffers.hidden, &buffers.delta);
        backend.add_scaled(picked, layer.attention_gate, hidden, delta);

        backend.norm(
            &buffers.hidden,
            picked,
            (feed_forward_norm, shape.epsilon),
            &[gate.matrix(), up.matrix()],
            &mut buffers.normed,
        );
        layer.parts.feed_forward(backend, rows, buffers);
        let (hidden, delta) = (&mut buffers.hidden, &buffers.delta);
        backend.add_scaled(picked, layer.feed_forward_gate, hidden, delta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_slots_of_a_picture_are_the_same_and_all_lie_in_its_pages() {
        for (layers, cross_layers) in [(32, 8), (4, 2), (3, 2), (2, 3), (1, 1)] {
            let pages = Pages {
                layers,
                cross_layers,
            };
            for keys in [1, 32, 33, 1_601, 6_404] {
                let count = pages.count(keys);
                let held: Vec<u32> = (0..count as u32).map(|page| page * 3 + 1).collect();
                let mut slots: Vec<u32> = (0..cross_layers)
                    .flat_map(|layer| pages.slots(&held, keys, layer))
                    .collect();
                let all = slots.len();
                assert!(
                    slots
                        .iter()
                        .all(|slot| held.contains(&(slot / layers as u32)))
                );
                slots.sort_unstable();
                slots.dedup();
                assert_eq!(slots.len(), all);
                // The last page is used.
                assert!(slots.last().unwrap() / layers as u32 == held[count - 1]);
            }
        }
    }
}
