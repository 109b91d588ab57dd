//! What a model that looks at pictures asks of a device beyond [`Backend`]: norms with a mean, GELU, attention to ranges of
//! keys, and residuals of picked rows.
//!
//! Which keys a row sees is told by ranges: no mask is ever built. Equal keys are kept once with a count.

use std::ops::Range;

use super::backend::{Backend, Heads, Rotation};
use crate::step::{OpenRow, StepPlan};

mod cpu;
mod lanes;
mod look;
mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;

/// A layer norm's weight, bias and what is added to the variance.
pub type LayerNorm<'a, B> = (&'a <B as Backend>::Rows, &'a <B as Backend>::Rows, f32);

/// Keys that lie in blocks one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Blocks of an arena of one layer; key `k` lies in number `k / BLOCK_TOKENS` of them.
    pub blocks: Vec<u32>,
    /// The keys that are seen; not empty.
    pub keys: Range<usize>,
    /// How often each of them counts.
    pub repeats: u32,
}

/// Rows that see the same keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Rows of queries.
    pub rows: Range<usize>,
    /// What they see, at least one key.
    pub spans: Vec<Span>,
}

/// What the rows of a step, or of a part of a picture, are computed by.
pub struct Step<'a> {
    /// The plan that the functions of [`Backend`] get.
    pub plan: &'a StepPlan,
    /// The rotation that they get.
    pub rotation: &'a Rotation,
    /// The heads that they get, whatever layers there are.
    pub heads: Heads,
    /// Rows that see pictures: the first that norms pick.
    pub sighted: &'a [usize],
    /// Rows whose logits are wanted: the others that norms pick.
    pub wanted: &'a [usize],
    /// What rows see, each with the number by which [`Vision::look`] names it.
    pub looks: &'a [(usize, Vec<Look>)],
    /// Rows whose tokens the step before chose.
    pub open: &'a [OpenRow],
    /// Whether a whole step follows, nothing of which is read on its way: what is asked depends on the numbers of rows alone.
    pub whole: bool,
}

/// A device that can look at pictures.
pub trait Vision: Backend {
    /// Tells what the functions that follow are about, so that a device can take it all at once. True when it does the whole
    /// step by what it recorded of one before: then nothing follows but the reading of results.
    fn begin(&mut self, _step: &Step<'_>) -> bool {
        false
    }

    /// The step that was begun is asked for whole.
    fn end(&mut self) {}

    /// Copies host numbers to rows from `first` on.
    fn put(&mut self, values: &[f32], first: usize, out: &mut Self::Rows);

    /// Copies host numbers to the first rows of an input for a product with `feeds`.
    fn put_input(
        &mut self,
        values: &[f32],
        rows: usize,
        feeds: &Self::Matrix,
        out: &mut Self::Input,
    );

    /// The first `rows` rows for products with `feeds`.
    fn feed(&mut self, rows: usize, x: &Self::Rows, feeds: &[&Self::Matrix], out: &mut Self::Input);

    /// Copies `rows` rows from row `from` of `x` to row `to` of `out`.
    fn copy(&mut self, x: &Self::Rows, from: usize, rows: usize, to: usize, out: &mut Self::Rows);

    /// Layer norm of the rows from `first` on, for products with `feeds`.
    fn layer_norm(
        &mut self,
        x: &Self::Rows,
        first: usize,
        rows: usize,
        norm: LayerNorm<'_, Self>,
        feeds: &[&Self::Matrix],
        out: &mut Self::Input,
    );

    /// The same in place.
    fn layer_norm_in_place(
        &mut self,
        x: &mut Self::Rows,
        first: usize,
        rows: usize,
        norm: LayerNorm<'_, Self>,
    );

    /// Root mean square norm of each head of the first `rows` rows, in place.
    fn norm_heads(&mut self, rows: usize, x: &mut Self::Rows, norm: (&Self::Rows, f32));

    /// GELU with the exact error function, for a product with `feeds`.
    fn gelu(&mut self, rows: usize, x: &Self::Rows, feeds: &Self::Matrix, out: &mut Self::Input);

    /// Attention of the rows in `looks`, which together cover the first rows in order, for a product with `feeds`.
    /// `heads.layers` is 1. They were told under this number.
    #[expect(clippy::too_many_arguments, reason = "as for attention to text")]
    fn look(
        &mut self,
        heads: Heads,
        number: usize,
        looks: &[Look],
        query: &Self::Rows,
        arena: &Self::Arena,
        feeds: &Self::Matrix,
        out: &mut Self::Input,
    );

    /// `sum[picked[i]] += scale * x[i]`.
    fn add_scaled(&mut self, picked: &[usize], scale: f32, sum: &mut Self::Rows, x: &Self::Rows);

    /// Rows from `first` on: `last`, then the numbers of all `saved` channel by channel, for a product with `feeds`.
    fn interleave(
        &mut self,
        first: usize,
        rows: usize,
        last: &Self::Rows,
        saved: &[Self::Rows],
        feeds: &Self::Matrix,
        out: &mut Self::Input,
    );

    /// The first `rows` rows of an input, on the host.
    fn read_input<'a>(&'a mut self, rows: usize, x: &'a Self::Input) -> &'a [f32];
}
