//! What a model takes in memory, worked out from its description alone: `serve` makes its arena by it, and `resolve` tells it
//! to whoever plans before there are weights.
//!
//! Each sum follows what [`super::decoder`] and [`super::vision`] allocate, field by field; a test lets them load the
//! published sizes on a device that only counts and compares.

use super::{picture_facts, vision};
use crate::answer::Memory;
use crate::compute::activation::Activation;
use crate::compute::matrix::{Float, Matrix};
use crate::step::BLOCK_TOKENS;
use crate::weights::Shape;
use crate::weights::sight::Sight;

/// Rows of one step: prompts are computed in pieces of this many tokens.
pub const STEP_ROWS: usize = 256;

/// Rows of one step whose logits can be wanted beyond one for each sequence: guessed tokens, and prompts whose log
/// probabilities are asked for, so many tokens at a time.
pub const EXTRA_LOGITS: usize = 16;

/// Bytes of a number in rows.
const FLOAT: usize = size_of::<f32>();

/// The parts of what a model takes whose weights have so many bytes.
#[must_use]
pub fn memory(shape: &Shape, sight: Option<&Sight>, weights_bytes: u64) -> Memory {
    let image_blocks = sight.map_or(0, |sight| {
        picture_facts(sight, shape).page_count(sight.tiles)
    });
    Memory {
        weights_bytes,
        block_tokens: BLOCK_TOKENS as u64,
        block_numbers: shape.block_numbers() as u64,
        image_blocks: image_blocks as u64,
        step_rows: STEP_ROWS as u64,
        row_bytes: row_bytes(shape) as u64,
        extra_logits_rows: EXTRA_LOGITS as u64,
        logits_row_bytes: logits_row_bytes(shape) as u64,
        image_bytes: sight.map_or(0, |sight| image_bytes(shape, sight)) as u64,
    }
}

/// Bytes of one row in the buffers of a step.
fn row_bytes(shape: &Shape) -> usize {
    let (queries, shared) = (shape.heads * shape.width, shape.key_heads * shape.width);
    let rows = 2 * shape.hidden + queries + 2 * shared + 2 * shape.inner;
    let inputs: usize = [shape.hidden, queries, shape.inner]
        .into_iter()
        .map(|columns| Activation::bytes(1, columns))
        .sum();
    let rotation = 2 * shape.frequencies.len();
    (rows + rotation) * FLOAT + inputs + size_of::<usize>()
}

/// Bytes of one row of logits, and of what it is made from.
fn logits_row_bytes(shape: &Shape) -> usize {
    shape.vocabulary * FLOAT + Activation::bytes(1, shape.hidden)
}

/// Bytes of the buffers of the picture under way.
fn image_bytes(shape: &Shape, sight: &Sight) -> usize {
    let Sight { hidden, inner, .. } = *sight;
    let shared = shape.key_heads * shape.width;
    let keys_and_values = 2 * sight.rows().next_multiple_of(BLOCK_TOKENS) * hidden;
    let saved = sight.saved.len() * sight.tiles * sight.tile_keys() * hidden;
    let whole = sight.rows() * hidden + saved + keys_and_values;
    let rows = 5 * hidden + inner + shape.hidden + 2 * shared;
    let inputs: usize = [
        sight.patch_numbers(),
        hidden,
        hidden,
        inner,
        sight.output(),
        shape.hidden,
    ]
    .into_iter()
    .map(|columns| Activation::bytes(1, columns))
    .sum();
    whole * FLOAT + vision::CHUNK * (rows * FLOAT + inputs)
}

/// Bytes of packed weights that are such floats, with the head `tied` to the embedding or not. Biases of the
/// text's layers and norms of single heads, which some families have, are not in it: they are some hundred kilobytes.
#[must_use]
pub fn float_weights(shape: &Shape, sight: Option<&Sight>, tied: bool, float: Float) -> u64 {
    let matrix = |rows: usize, columns: usize| Matrix::float_bytes(rows, columns, float) as u64;
    let vector = |length: usize| (length * FLOAT) as u64;
    let (hidden, inner) = (shape.hidden, shape.inner);
    let (queries, shared) = (shape.heads * shape.width, shape.key_heads * shape.width);
    let layer = matrix(queries, hidden)
        + 2 * matrix(shared, hidden)
        + matrix(hidden, queries)
        + 2 * matrix(inner, hidden)
        + matrix(hidden, inner)
        + 2 * vector(hidden);
    let cross_layers = sight.map_or(0, |sight| sight.cross_layers.len());
    let text = (shape.layers + cross_layers) as u64 * layer
        + cross_layers as u64 * 2 * vector(shape.width)
        + matrix(shape.inputs, hidden)
        + vector(hidden);
    let head = if tied {
        0
    } else {
        matrix(shape.vocabulary, hidden)
    };
    let tower = sight.map_or(0, |sight| {
        let (tables, layers) = tower(sight, float);
        tables + layers + matrix(hidden, sight.output()) + vector(hidden)
    });
    text + head + tower
}

/// Bytes of a vision tower's tables and of its layers.
fn tower(sight: &Sight, float: Float) -> (u64, u64) {
    let matrix = |rows: usize, columns: usize| Matrix::float_bytes(rows, columns, float) as u64;
    let vector = |length: usize| (length * FLOAT) as u64;
    let Sight {
        hidden,
        inner,
        tiles,
        ..
    } = *sight;
    let numbers = (sight.arrangements.len() + 1) * tiles;
    let tables = vector(sight.tile_keys() * hidden)
        + 2 * vector(numbers * hidden)
        + (numbers * sight.tile_keys() * hidden * float.bytes()) as u64
        + vector(hidden)
        + matrix(hidden, sight.patch_numbers())
        + 4 * vector(hidden);
    let layer = 4 * matrix(hidden, hidden)
        + matrix(inner, hidden)
        + matrix(hidden, inner)
        + 5 * vector(hidden)
        + vector(inner);
    let layers = (sight.layers + sight.global_layers) as u64 * layer;
    (tables, layers)
}
