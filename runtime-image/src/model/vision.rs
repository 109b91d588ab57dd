//! The vision tower of Llama 3.2 Vision: a picture's tiles through two encoders and a projector to the keys and values of
//! the text's cross-attention layers. One picture at a time, some hundred rows of one layer at a time, so that others'
//! tokens need not wait for it.
//!
//! Rows that stand for nothing (tiles that a picture lacks, rows that fill a tile up) are part of what the models were
//! trained with: they attend to what is real, and are attended to by it. All of a kind are equal, so each is computed once
//! and counts as often as there are of it (docs/decisions/0111).

use std::ops::Range;
use std::sync::Arc;

use super::decoder::cross::{CrossLayer, Pages, slot_heads};
use super::linear::{Linear, multiply};
use super::{Station, Tracer};
use crate::compute::backend::{HeadNorms, Heads, Rotation};
use crate::compute::tensor::Tensor;
use crate::compute::vision::{Look, Step, Vision};
use crate::pictures::Picture;
use crate::step::{BLOCK_TOKENS, Encoding, Run, StepPlan};
use crate::weights::sight::Sight;
use layout::Layout;
use load::{Layer, Norm};

mod layout;
mod load;

/// Rows that are computed together.
pub(crate) const CHUNK: usize = 256;

/// The tower with the buffers of one picture.
pub(super) struct Tower<B: Vision> {
    sight: Sight,
    patches: Linear<B>,
    class: Vec<f32>,
    /// `[row of a tile][number]`, gated.
    positions: Vec<f32>,
    /// `[arrangement][tile][row of a tile][number]`, not gated: too large to be kept as floats.
    tile_positions: Tensor,
    tile_gate: f32,
    /// `[arrangement][tile][number]`, gated.
    before: Vec<f32>,
    /// The same, added between the encoders.
    between: Vec<f32>,
    first_norm: Norm<B>,
    last_norm: Norm<B>,
    layers: Vec<Layer<B>>,
    projector: Linear<B>,
    heads: Heads,
    /// For each arrangement, from number 1 on, whether all tiles that it lacks are equal.
    lacks_equal: Vec<bool>,
    buffers: Buffers<B>,
    progress: Option<Progress>,
}

struct Buffers<B: Vision> {
    hidden: B::Rows,
    saved: Vec<B::Rows>,
    /// Keys and values of one layer.
    arena: B::Arena,
    patches: B::Input,
    added: B::Rows,
    normed: B::Input,
    query: B::Rows,
    key: B::Rows,
    value: B::Rows,
    attended: B::Input,
    delta: B::Rows,
    inner: B::Rows,
    activated: B::Input,
    joined: B::Input,
    states: B::Rows,
    seen: B::Input,
    cross_key: B::Rows,
    cross_value: B::Rows,
    rotation: Rotation,
}

/// How far the present picture is.
struct Progress {
    work: Arc<Encoding>,
    rows: Layout,
    stage: Stage,
    /// Rows of this stage that are done.
    done: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Embed,
    /// Keys and values of a layer.
    Keys(usize),
    /// The rest of it.
    Layer(usize),
    /// Between the encoders.
    Between,
    Project,
}

impl<B: Vision> Tower<B> {
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear<B>> {
        let layers = self.layers.iter().flat_map(Layer::linears);
        layers.chain([&self.patches, &self.projector])
    }

    /// Bytes of the tables that are no linear layers.
    pub(super) fn table_bytes(&self) -> usize {
        let floats = self.positions.len() + self.before.len() + self.between.len();
        self.tile_positions.bytes().len() + 4 * floats
    }

    /// Goes on with a picture by one chunk of one stage; true when its pages are complete. Another picture's progress is
    /// lost, and so is that of the same one under another allocation: its pages may have been somebody else's meanwhile.
    pub(super) fn advance(
        &mut self,
        backend: &mut B,
        work: &Arc<Encoding>,
        target: &mut Target<'_, B>,
        tracer: &mut Option<Tracer>,
    ) -> bool {
        if self
            .progress
            .as_ref()
            .is_none_or(|progress| !Arc::ptr_eq(&progress.work, work))
        {
            let picture = &work.picture;
            self.progress = Some(Progress {
                rows: Layout::new(
                    &self.sight,
                    picture.tiles,
                    self.lacks_equal[picture.arrangement - 1],
                ),
                work: Arc::clone(work),
                stage: Stage::Embed,
                done: 0,
            });
        }
        let Some(mut progress) = self.progress.take() else {
            return true;
        };
        let total = match progress.stage {
            Stage::Project => progress.rows.real(),
            _ => progress.rows.all(),
        };
        let chunk = progress.done..(progress.done + CHUNK).min(total);
        match progress.stage {
            Stage::Embed => self.embed(backend, &progress, chunk.clone()),
            Stage::Keys(layer) => self.keys(backend, &progress.rows, layer, chunk.clone()),
            Stage::Layer(layer) => self.layer(backend, &progress.rows, layer, chunk.clone()),
            Stage::Between => self.between(backend, &progress, chunk.clone()),
            Stage::Project => self.project(backend, &progress, chunk.clone(), target, tracer),
        }
        progress.done = chunk.end;
        if chunk.end == total {
            progress.done = 0;
            let next = |layer: usize| {
                if layer < self.layers.len() {
                    Stage::Keys(layer)
                } else {
                    Stage::Project
                }
            };
            progress.stage = match progress.stage {
                Stage::Embed => Stage::Keys(0),
                Stage::Keys(layer) => Stage::Layer(layer),
                Stage::Layer(layer) if layer + 1 == self.sight.layers => Stage::Between,
                Stage::Layer(layer) => next(layer + 1),
                Stage::Between => next(self.sight.layers),
                Stage::Project => return true,
            };
        }
        self.progress = Some(progress);
        false
    }

    /// Patches, class and positions of tiles, normed; fillers are zeros.
    fn embed(&mut self, backend: &mut B, progress: &Progress, chunk: Range<usize>) {
        let Progress { work, rows, .. } = progress;
        let picture = &work.picture;
        let (hidden, width) = (self.sight.hidden, self.sight.patch_numbers());
        let of_tiles = rows.of_tiles().clamp(chunk.start, chunk.end);
        let count = of_tiles - chunk.start;
        if count > 0 {
            let mut pixels = vec![0.0; count * width];
            let mut added = vec![0.0; count * hidden];
            for (index, (pixels, added)) in pixels
                .chunks_exact_mut(width)
                .zip(added.chunks_exact_mut(hidden))
                .enumerate()
            {
                let row = chunk.start + index;
                let (tile, place) = (rows.tile(row), row % rows.tile_rows);
                self.add_positions(picture.arrangement, tile, place, added);
                if place > 0 && tile < picture.tiles {
                    self.read_patch(picture, tile, place - 1, pixels);
                }
            }
            let buffers = &mut self.buffers;
            let matrix = self.patches.matrix();
            backend.put_input(&pixels, count, matrix, &mut buffers.patches);
            let delta = vec![(&self.patches, &mut buffers.delta)];
            multiply(backend, &buffers.patches, count, delta);
            backend.put(&added, 0, &mut buffers.added);
            backend.add(count, &mut buffers.delta, &buffers.added);
            let norm = (
                &self.first_norm.weight,
                &self.first_norm.bias,
                self.sight.epsilon,
            );
            backend.layer_norm_in_place(&mut buffers.delta, 0, count, norm);
            backend.copy(&buffers.delta, 0, count, chunk.start, &mut buffers.hidden);
        }
        let fillers = vec![0.0; (chunk.end - of_tiles) * hidden];
        backend.put(&fillers, of_tiles, &mut self.buffers.hidden);
    }

    /// Adds what does not depend on the pixels: the class (in a tile's first row) or the tile's embedding, and positions.
    fn add_positions(&self, number: usize, tile: usize, place: usize, sum: &mut [f32]) {
        let Sight { hidden, tiles, .. } = self.sight;
        let tile = number * tiles + tile;
        let at = (tile * self.sight.tile_keys() + place) * hidden;
        let own = self.tile_positions.floats_in(at..at + hidden);
        let first = match place {
            0 => &self.class,
            _ => &self.before[tile * hidden..][..hidden],
        };
        let positions = &self.positions[place * hidden..][..hidden];
        for (((sum, first), position), own) in sum.iter_mut().zip(first).zip(positions).zip(own) {
            *sum = first + position + self.tile_gate * own;
        }
    }

    /// The numbers of one patch: `[channel][row][column]`.
    fn read_patch(&self, picture: &Picture, tile: usize, patch: usize, out: &mut [f32]) {
        let Sight {
            side, patch: size, ..
        } = self.sight;
        let across = side / size;
        let (top, left) = (patch / across * size, patch % across * size);
        for (line, out) in out.chunks_exact_mut(size).enumerate() {
            let (channel, y) = (line / size, line % size);
            let at = ((tile * 3 + channel) * side + top + y) * side + left;
            for (out, byte) in out.iter_mut().zip(&picture.pixels[at..]) {
                *out = picture.values[channel][usize::from(*byte)];
            }
        }
    }

    /// Keys and values of one layer, and its input where the result wants it.
    fn keys(&mut self, backend: &mut B, rows: &Layout, index: usize, chunk: Range<usize>) {
        let (layer, buffers, count) = (&self.layers[index], &mut self.buffers, chunk.len());
        if let Some(place) = self.sight.saved.iter().position(|saved| *saved == index) {
            let real = rows.real().clamp(chunk.start, chunk.end) - chunk.start;
            if real > 0 {
                let saved = &mut buffers.saved[place];
                backend.copy(&buffers.hidden, chunk.start, real, chunk.start, saved);
            }
        }
        let Norm { weight, bias } = &layer.attention_norm;
        let norm = (weight, bias, self.sight.epsilon);
        let feeds = [layer.key.matrix(), layer.value.matrix()];
        let hidden = &buffers.hidden;
        backend.layer_norm(
            hidden,
            chunk.start,
            count,
            norm,
            &feeds,
            &mut buffers.normed,
        );
        let layers = vec![
            (&layer.key, &mut buffers.key),
            (&layer.value, &mut buffers.value),
        ];
        multiply(backend, &buffers.normed, count, layers);
        let plan = writing(chunk, blocks(rows.all()));
        let heads = Heads {
            queries: 0,
            ..self.heads
        };
        tell(backend, &buffers.rotation, (&plan, heads, &[]));
        backend.store(
            &plan,
            heads,
            0,
            &HeadNorms {
                query: None,
                key: None,
                epsilon: 0.0,
            },
            &buffers.rotation,
            &mut buffers.query,
            &mut buffers.key,
            &buffers.value,
            &mut buffers.arena,
        );
    }

    /// Attention and feed-forward of one layer.
    fn layer(&mut self, backend: &mut B, rows: &Layout, index: usize, chunk: Range<usize>) {
        let (layer, buffers, count) = (&self.layers[index], &mut self.buffers, chunk.len());
        let picked: Vec<usize> = chunk.clone().collect();
        let looks = [(0, rows.looks(chunk.clone(), &blocks(rows.all())))];
        let told = (&StepPlan::default(), self.heads, &looks[..]);
        tell(backend, &buffers.rotation, told);
        let [(number, looks)] = &looks;
        let epsilon = self.sight.epsilon;
        let norm =
            |backend: &mut B, norm: &Norm<B>, feeds, hidden: &B::Rows, normed: &mut B::Input| {
                let settings = (&norm.weight, &norm.bias, epsilon);
                backend.layer_norm(hidden, chunk.start, count, settings, &[feeds], normed);
            };
        norm(
            backend,
            &layer.attention_norm,
            layer.query.matrix(),
            &buffers.hidden,
            &mut buffers.normed,
        );
        let query = vec![(&layer.query, &mut buffers.query)];
        multiply(backend, &buffers.normed, count, query);
        backend.look(
            self.heads,
            *number,
            looks,
            &buffers.query,
            &buffers.arena,
            layer.output.matrix(),
            &mut buffers.attended,
        );
        let output = vec![(&layer.output, &mut buffers.delta)];
        multiply(backend, &buffers.attended, count, output);
        let hidden = &mut buffers.hidden;
        backend.add_scaled(&picked, layer.attention_gate, hidden, &buffers.delta);

        norm(
            backend,
            &layer.feed_forward_norm,
            layer.up.matrix(),
            &buffers.hidden,
            &mut buffers.normed,
        );
        let up = vec![(&layer.up, &mut buffers.inner)];
        multiply(backend, &buffers.normed, count, up);
        let feeds = layer.down.matrix();
        backend.gelu(count, &buffers.inner, feeds, &mut buffers.activated);
        let down = vec![(&layer.down, &mut buffers.delta)];
        multiply(backend, &buffers.activated, count, down);
        let hidden = &mut buffers.hidden;
        backend.add_scaled(&picked, layer.feed_forward_gate, hidden, &buffers.delta);
    }

    /// The norm after the first encoder, and what tells tiles apart in the second; fillers get it too.
    fn between(&mut self, backend: &mut B, progress: &Progress, chunk: Range<usize>) {
        let Sight { hidden, tiles, .. } = self.sight;
        let number = progress.work.picture.arrangement;
        let added: Vec<f32> = chunk
            .clone()
            .flat_map(|row| {
                let at = (number * tiles + progress.rows.tile(row)) * hidden;
                &self.between[at..at + hidden]
            })
            .copied()
            .collect();
        let picked: Vec<usize> = chunk.clone().collect();
        let buffers = &mut self.buffers;
        let norm = (
            &self.last_norm.weight,
            &self.last_norm.bias,
            self.sight.epsilon,
        );
        backend.layer_norm_in_place(&mut buffers.hidden, chunk.start, chunk.len(), norm);
        backend.put(&added, 0, &mut buffers.added);
        backend.add_scaled(&picked, 1.0, &mut buffers.hidden, &buffers.added);
    }

    /// The projector, and keys and values of every cross-attention layer, for rows that show something.
    fn project(
        &mut self,
        backend: &mut B,
        progress: &Progress,
        chunk: Range<usize>,
        target: &mut Target<'_, B>,
        tracer: &mut Option<Tracer>,
    ) {
        let (buffers, count) = (&mut self.buffers, chunk.len());
        let Encoding { pages, .. } = &*progress.work;
        backend.interleave(
            chunk.start,
            count,
            &buffers.hidden,
            &buffers.saved,
            self.projector.matrix(),
            &mut buffers.joined,
        );
        let states = vec![(&self.projector, &mut buffers.states)];
        multiply(backend, &buffers.joined, count, states);
        if let Some(tracer) = tracer {
            let joined = backend.read_input(count, &buffers.joined);
            tracer(Station::Vision, chunk.start, joined);
            if let Ok(states) = backend.read(count, &buffers.states) {
                tracer(Station::Projected, chunk.start, states);
            }
        }
        let feeds: Vec<&B::Matrix> = target
            .layers
            .iter()
            .flat_map(|layer| [layer.parts.key.matrix(), layer.parts.value.matrix()])
            .collect();
        backend.feed(count, &buffers.states, &feeds, &mut buffers.seen);
        let heads = Heads {
            queries: 0,
            ..slot_heads(target.heads)
        };
        for (index, layer) in target.layers.iter().enumerate() {
            let layers = vec![
                (&layer.parts.key, &mut buffers.cross_key),
                (&layer.parts.value, &mut buffers.cross_value),
            ];
            multiply(backend, &buffers.seen, count, layers);
            let slots = target.pages.slots(pages, progress.rows.real(), index);
            let plan = writing(chunk.clone(), slots);
            tell(backend, &buffers.rotation, (&plan, heads, &[]));
            backend.store(
                &plan,
                heads,
                0,
                &HeadNorms {
                    query: None,
                    key: Some(&layer.key_norm),
                    epsilon: target.epsilon,
                },
                &buffers.rotation,
                &mut buffers.query,
                &mut buffers.cross_key,
                &buffers.cross_value,
                target.arena,
            );
        }
    }
}

/// Where a picture's keys and values go.
pub(super) struct Target<'a, B: Vision> {
    pub(super) layers: &'a [CrossLayer<B>],
    pub(super) pages: Pages,
    pub(super) heads: Heads,
    pub(super) epsilon: f32,
    pub(super) arena: &'a mut B::Arena,
}

/// Tells a device what a part of a picture is computed by.
fn tell<B: Vision>(
    backend: &mut B,
    rotation: &Rotation,
    (plan, heads, looks): (&StepPlan, Heads, &[(usize, Vec<Look>)]),
) {
    backend.begin(&Step {
        plan,
        rotation,
        heads,
        sighted: &[],
        wanted: &[],
        open: &[],
        looks,
        whole: false,
    });
}

/// The blocks of so many rows, one after the other.
fn blocks(rows: usize) -> Vec<u32> {
    (0..u32::try_from(rows.div_ceil(BLOCK_TOKENS)).unwrap_or(u32::MAX)).collect()
}

/// A plan that says no more than where rows are written.
fn writing(chunk: Range<usize>, blocks: Vec<u32>) -> StepPlan {
    let position = |row: usize| u32::try_from(row).unwrap_or(u32::MAX);
    StepPlan {
        tokens: vec![0; chunk.len()],
        positions: chunk.clone().map(position).collect(),
        runs: vec![Run {
            rows: 0..chunk.len(),
            blocks,
            ..Run::default()
        }],
        ..StepPlan::default()
    }
}
