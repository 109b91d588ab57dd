//! What a model asks of a device. [`super::cpu`] is one; others have kernels and memory of their own.
//!
//! Rows are those of a step. A backend keeps the reduction order of every row fixed, so that a row's numbers depend on its
//! sequence alone. Its buffers are made once, for the largest step; nothing is allocated in a step.

use super::tensor::{Source, Tensor};
use crate::step::{BLOCK_TOKENS, BlockCopy, Choice, StepPlan};

/// One product: a matrix, and the rows that it gives.
pub struct Product<'a, B: Backend> {
    /// The weights.
    pub matrix: &'a B::Matrix,
    /// As wide as the matrix has rows.
    pub out: &'a mut B::Rows,
}

/// The heads of one rank, and how they lie in the arena: of each block, a slot for each layer, keys then values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Heads of queries; a multiple of `keys`.
    pub queries: usize,
    /// Heads of keys and values.
    pub keys: usize,
    /// Numbers in a head.
    pub width: usize,
    /// Layers with keys and values of their own.
    pub layers: usize,
}

impl Heads {
    /// Numbers of the keys (or the values) of one block in one layer.
    #[must_use]
    pub fn part(&self) -> usize {
        self.keys * self.width * BLOCK_TOKENS
    }

    /// Numbers of one block of the arena.
    #[must_use]
    pub fn block(&self) -> usize {
        self.layers * 2 * self.part()
    }
}

/// Why a device did not compute what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its memory is full; it goes on.
    #[error("{0}")]
    Memory(String),
    /// It lost what was under way, and can be asked for it again.
    #[error("{0}")]
    Again(String),
    /// It does not go on.
    #[error("{0}")]
    Lost(String),
}

/// Seconds that the parts of one step took on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Products with weights.
    pub products: f64,
    /// Attention to text and pictures.
    pub attention: f64,
    /// Choosing tokens.
    pub choosing: f64,
    /// Norms, rotations, sums.
    pub other: f64,
}

/// The rotation of each row of a step.
pub struct Rotation {
    /// `[row][pair]`.
    pub cosines: Vec<f32>,
    /// `[row][pair]`.
    pub sines: Vec<f32>,
    /// Pairs of one row; the rest of a head is not rotated.
    pub pairs: usize,
    /// Whether a pair is two neighbours or half the rotated numbers apart.
    pub neighbours: bool,
}

/// Norms of single heads (Qwen3).
pub struct HeadNorms<'a, B: Backend> {
    /// Of queries.
    pub query: Option<&'a B::Rows>,
    /// Of keys.
    pub key: Option<&'a B::Rows>,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// A device with its memory, its kernels and its place among the ranks.
pub trait Backend: Send + Sized {
    /// Packed weights.
    type Matrix: Send;
    /// Rows of floats.
    type Rows: Send;
    /// Rows as products take them, rounded where the weights are.
    type Input: Send;
    /// Keys and values.
    type Arena: Send;

    /// Packs weights in the order that the kernels read.
    ///
    /// # Errors
    /// When this device cannot hold them.
    fn matrix(&self, tensor: &Tensor) -> Result<Self::Matrix, String>;

    /// Bytes that packed weights take.
    fn bytes(&self, matrix: &Self::Matrix) -> usize;

    /// One row with these numbers.
    fn vector(&self, values: Vec<f32>) -> Self::Rows;

    /// Rows for results.
    fn rows(&self, rows: usize, width: usize) -> Self::Rows;

    /// Rows for products.
    fn input(&self, rows: usize, width: usize) -> Self::Input;

    /// Blocks of keys and values for these heads.
    fn arena(&self, blocks: usize, heads: Heads) -> Self::Arena;

    /// Copies blocks whole.
    fn copy_blocks(&mut self, arena: &mut Self::Arena, heads: Heads, copies: &[BlockCopy]);

    /// Writes the table's rows of these tokens.
    fn embed(&mut self, table: &Self::Matrix, tokens: &[u32], out: &mut Self::Rows);

    /// Root mean square norm of the picked rows of `x`, for products with `feeds`.
    fn norm(
        &mut self,
        x: &Self::Rows,
        picked: &[usize],
        norm: (&Self::Rows, f32),
        feeds: &[&Self::Matrix],
        out: &mut Self::Input,
    );

    /// Multiplies the first `rows` rows with each matrix.
    fn multiply(&mut self, input: &Self::Input, rows: usize, products: &mut [Product<'_, Self>]);

    /// Adds one row to each of the first `rows` rows.
    fn add_to_each(&mut self, rows: usize, sum: &mut Self::Rows, x: &Self::Rows);

    /// Norms and rotates queries and keys, and puts keys and values into the arena.
    #[expect(
        clippy::too_many_arguments,
        reason = "what one layer of one step is made of"
    )]
    fn store(
        &mut self,
        plan: &StepPlan,
        heads: Heads,
        layer: usize,
        norms: &HeadNorms<'_, Self>,
        rotation: &Rotation,
        query: &mut Self::Rows,
        key: &mut Self::Rows,
        value: &Self::Rows,
        arena: &mut Self::Arena,
    );

    /// Lets each row attend to its sequence up to itself, for a product with `feeds`.
    #[expect(
        clippy::too_many_arguments,
        reason = "what one layer of one step is made of"
    )]
    fn attend(
        &mut self,
        plan: &StepPlan,
        heads: Heads,
        layer: usize,
        query: &Self::Rows,
        arena: &Self::Arena,
        feeds: &Self::Matrix,
        out: &mut Self::Input,
    );

    /// `silu(gate) * up`, for a product with `feeds`.
    fn gate(
        &mut self,
        rows: usize,
        gate: &Self::Rows,
        up: &Self::Rows,
        feeds: &Self::Matrix,
        out: &mut Self::Input,
    );

    /// Products with two matrices and [`Self::gate`] of them at once, where this device can; false where it cannot.
    fn gated(
        &mut self,
        _input: &Self::Input,
        _rows: usize,
        _matrices: [&Self::Matrix; 2],
        _out: &mut Self::Input,
    ) -> bool {
        false
    }

    /// Adds the first `rows` rows.
    fn add(&mut self, rows: usize, sum: &mut Self::Rows, x: &Self::Rows);

    /// [`Self::add`], and [`Self::norm`] of the sums, which are the `all` first rows.
    fn add_and_norm(
        &mut self,
        all: &[usize],
        (sum, x): (&mut Self::Rows, &Self::Rows),
        norm: (&Self::Rows, f32),
        feeds: &[&Self::Matrix],
        out: &mut Self::Input,
    ) {
        self.add(all.len(), sum, x);
        self.norm(sum, all, norm, feeds, out);
    }

    /// Replaces the first `rows` rows by their sums over all ranks; the same bits for each.
    fn all_reduce(&mut self, rows: usize, x: &mut Self::Rows);

    /// Waits until everything that was asked for is done and all weights have come.
    ///
    /// # Errors
    /// When the device failed, or a file could not be read.
    fn settle(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Packs weights that lie in a file, where this device reads them by itself; they are there when it has settled.
    ///
    /// # Errors
    /// When this device cannot hold them.
    fn stream(&self, _source: &Source) -> Result<Option<Self::Matrix>, String> {
        Ok(None)
    }

    /// This rank, and how many there are.
    fn place(&self) -> (usize, usize);

    /// The first `rows` rows, on the host.
    ///
    /// # Errors
    /// What went wrong since this or [`Backend::fault`] was asked last; results since then mean nothing.
    fn read<'a>(&'a mut self, rows: usize, x: &'a Self::Rows) -> Result<&'a [f32], Fault>;

    /// Whether this device chooses tokens.
    fn chooses(&self) -> bool {
        false
    }

    /// Chooses tokens by rows of logits, which may be lost; they stay on the device for the rows of the next step.
    fn choose(&mut self, _logits: &mut Self::Rows, _choices: &[Choice]) {}

    /// The tokens of the oldest [`Backend::choose`] that was not asked for yet; waits for them. The largest number stands
    /// where no logit was a number.
    ///
    /// # Errors
    /// As [`Backend::read`].
    fn chosen(&mut self) -> Result<Vec<u32>, Fault> {
        Ok(Vec::new())
    }

    /// What a step took, where one was measured since this was asked last.
    fn spent(&mut self) -> Option<Spent> {
        None
    }

    /// Memory of the device's own: bytes that are free, and all.
    fn memory(&self) -> Option<(u64, u64)> {
        None
    }

    /// What went wrong since it was asked last.
    fn fault(&mut self) -> Option<Fault> {
        None
    }
}
