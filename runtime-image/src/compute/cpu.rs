//! The backend of this processor: packed matrices, one pool of threads, kernels by instruction set.

use std::ops::Range;

use super::activation::{Activation, Form};
use super::attention::Cache;
use super::backend::{Backend, Fault, HeadNorms, Heads, Product, Rotation};
use super::matmul::{self, multiply};
use super::matrix::{Blocks, Float, Matrix};
use super::pages::Ahead;
use super::pool::{Pool, Shares};
use super::ranks::Seat;
use super::tensor::{Kind, Tensor};
use super::{Arithmetic, Instructions, attention, elementwise, pages};
use crate::step::{BLOCK_TOKENS, BlockCopy, Run, StepPlan};

/// Rows that one piece of work adds: enough to be worth claiming.
const ADDED: usize = 16;

/// This processor.
pub struct Cpu {
    pub(super) pool: Pool,
    pub(super) instructions: Instructions,
    /// Whether inputs of bfloat16 weights are rounded to it too.
    rounds: bool,
    seat: Seat,
}

/// Row-major floats.
pub struct Rows {
    pub(super) values: Vec<f32>,
    pub(super) width: usize,
}

impl Cpu {
    /// A rank that computes with so many threads.
    #[must_use]
    pub fn new(threads: usize, seat: Seat, dtype: Arithmetic) -> Self {
        let instructions = Instructions::detect();
        Self {
            pool: Pool::new(threads),
            instructions,
            rounds: dtype == Arithmetic::Auto && instructions.multiply_bf16(),
            seat,
        }
    }

    /// What products with these weights read.
    pub(super) fn form(&self, feeds: &[&Matrix]) -> Form {
        Form::of(feeds, self.rounds)
    }

    /// Prepares memory for so many bytes of weights, which makes packing them faster.
    pub fn expect(bytes: u64) {
        pages::expect(usize::try_from(bytes).unwrap_or(usize::MAX));
    }

    /// Gives back what was prepared for weights that did not come.
    pub fn expect_no_more() {
        pages::expect_no_more();
    }
}

impl Backend for Cpu {
    type Matrix = Matrix;
    type Rows = Rows;
    type Input = Activation;
    type Arena = Ahead;

    fn matrix(&self, tensor: &Tensor) -> Result<Matrix, String> {
        let (rows, columns) = (tensor.rows(), tensor.columns());
        let blocks = |kind| Matrix::from_blocks(rows, columns, tensor.bytes(), kind);
        let floats = |float| Matrix::from_floats(rows, columns, &tensor.floats(), float);
        Ok(match tensor.kind() {
            Kind::F32 => floats(Float::F32),
            Kind::F16 => floats(Float::F16),
            Kind::BF16 => floats(Float::Bf16),
            Kind::Q8_0 => blocks(Blocks::Q8_0),
            Kind::Q4_0 => blocks(Blocks::Q4_0),
            Kind::Q4_1 => blocks(Blocks::Q4_1),
            Kind::IQ4_NL => blocks(Blocks::Iq4Nl),
            // Rounded once more, to the format of eight bits that there are kernels for.
            Kind::Q5_0
            | Kind::Q5_1
            | Kind::Q2_K
            | Kind::Q3_K
            | Kind::Q4_K
            | Kind::Q5_K
            | Kind::Q6_K => Matrix::quantize(rows, columns, &tensor.floats()),
        })
    }

    fn bytes(&self, matrix: &Matrix) -> usize {
        matrix.bytes()
    }

    fn vector(&self, values: Vec<f32>) -> Rows {
        Rows {
            width: values.len(),
            values,
        }
    }

    fn rows(&self, rows: usize, width: usize) -> Rows {
        Rows {
            values: vec![0.0; rows * width],
            width,
        }
    }

    fn input(&self, rows: usize, width: usize) -> Activation {
        Activation::new(rows, width)
    }

    fn arena(&self, blocks: usize, heads: Heads) -> Ahead {
        Ahead::zeroed(blocks * heads.block())
    }

    fn copy_blocks(&mut self, arena: &mut Ahead, heads: Heads, copies: &[BlockCopy]) {
        let size = heads.block();
        for copy in copies {
            let from = copy.from as usize * size;
            arena.copy_within(from..from + size, copy.to as usize * size);
        }
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], out: &mut Rows) {
        for (token, out) in tokens.iter().zip(out.values.chunks_exact_mut(out.width)) {
            table.read_row(*token as usize, out);
        }
    }

    fn norm(
        &mut self,
        x: &Rows,
        picked: &[usize],
        (weight, epsilon): (&Rows, f32),
        feeds: &[&Matrix],
        out: &mut Activation,
    ) {
        let instructions = self.instructions;
        let form = self.form(feeds);
        out.fill(
            &mut self.pool,
            instructions,
            picked.len(),
            form,
            &|index, out| {
                let x = &x.values[picked[index] * x.width..][..x.width];
                elementwise::rms_norm(instructions, x, &weight.values, epsilon, out);
            },
        );
    }

    fn multiply(&mut self, input: &Activation, rows: usize, products: &mut [Product<'_, Self>]) {
        let mut products: Vec<matmul::Product<'_>> = products
            .iter_mut()
            .map(|product| matmul::Product {
                matrix: product.matrix,
                out: &mut product.out.values,
            })
            .collect();
        multiply(
            &mut self.pool,
            self.instructions,
            input,
            rows,
            &mut products,
        );
    }

    fn add_to_each(&mut self, rows: usize, sum: &mut Rows, x: &Rows) {
        for sum in sum.values.chunks_exact_mut(sum.width).take(rows) {
            elementwise::add(self.instructions, sum, &x.values);
        }
    }

    fn store(
        &mut self,
        plan: &StepPlan,
        heads: Heads,
        layer: usize,
        norms: &HeadNorms<'_, Self>,
        rotation: &Rotation,
        query: &mut Rows,
        key: &mut Rows,
        value: &Rows,
        arena: &mut Ahead,
    ) {
        let instructions = self.instructions;
        let width = heads.width;
        let (queries, keys) = (heads.queries * width, heads.keys * width);
        let (part, stride) = (heads.part(), heads.block());
        let pairs = rotation.pairs;
        let blocks = block_of_rows(plan);
        let rows = plan.tokens.len();
        let query = Shares::new(&mut query.values[..rows * queries]);
        let key = Shares::new(&mut key.values[..rows * keys]);
        let room = arena.len();
        arena.reach(
            blocks
                .iter()
                .max()
                .map_or(0, |block| (*block as usize + 1) * stride),
        );
        let arena = Shares::new(arena);
        self.pool.run(rows, &|row| {
            // SAFETY: each piece has a row of its own.
            let (query, key) = unsafe {
                (
                    query.part(row * queries, queries),
                    key.part(row * keys, keys),
                )
            };
            let mut normed = [0.0; 1 << 10];
            for (head_rows, norm) in [(&mut *query, norms.query), (&mut *key, norms.key)] {
                for head in head_rows.chunks_exact_mut(width) {
                    if let Some(norm) = norm {
                        let normed = &mut normed[..width];
                        elementwise::rms_norm(
                            instructions,
                            head,
                            &norm.values,
                            norms.epsilon,
                            normed,
                        );
                        head.copy_from_slice(normed);
                    }
                    elementwise::rotate(
                        &mut head[..2 * pairs],
                        &rotation.cosines[row * pairs..][..pairs],
                        &rotation.sines[row * pairs..][..pairs],
                        rotation.neighbours,
                    );
                }
            }
            let slot = plan.positions[row] as usize % BLOCK_TOKENS;
            let at = blocks[row] as usize * stride + layer * 2 * part;
            assert!(at + 2 * part <= room, "the arena has every block of a plan");
            for head in 0..heads.keys {
                let at = at + head * width * BLOCK_TOKENS;
                for (index, number) in key[head * width..][..width].iter().enumerate() {
                    // SAFETY: inside the block by the assertion above; each row of a plan has a slot of its own.
                    let slot = unsafe { arena.part(at + index * BLOCK_TOKENS + slot, 1) };
                    slot[0] = *number;
                }
                // SAFETY: as above.
                let slot = unsafe { arena.part(at + part + slot * width, width) };
                slot.copy_from_slice(&value.values[row * keys + head * width..][..width]);
            }
        });
    }

    fn attend(
        &mut self,
        plan: &StepPlan,
        heads: Heads,
        layer: usize,
        query: &Rows,
        arena: &Ahead,
        feeds: &Matrix,
        out: &mut Activation,
    ) {
        let instructions = self.instructions;
        let width = heads.width;
        let (rows, queries) = (plan.tokens.len(), heads.queries * width);
        let (part, stride) = (heads.part(), heads.block());
        let group = heads.queries / heads.keys * width;
        let shares = Shares::new(&mut out.values[..rows * queries]);
        let tiles: Vec<(&Run, Range<usize>)> = plan.runs.iter().flat_map(tiles).collect();
        // Later rows see more tokens, so they go first: the short ones fill the gaps at the end.
        self.pool.run(tiles.len() * heads.keys, &|piece| {
            let (run, rows) = &tiles[tiles.len() - 1 - piece / heads.keys];
            let head = piece % heads.keys;
            let keys = layer * 2 * part + head * width * BLOCK_TOKENS;
            let cache = Cache {
                keys: &arena[keys..],
                values: &arena[keys + part..],
                blocks: &run.blocks,
                stride,
                width,
            };
            let at = |row: usize| row * queries + head * group;
            let mut asked: [&[f32]; attention::ROWS] = Default::default();
            let mut out: [&mut [f32]; attention::ROWS] = Default::default();
            for ((asked, out), row) in asked.iter_mut().zip(&mut out).zip(rows.clone()) {
                *asked = &query.values[at(row)..][..group];
                // SAFETY: each piece has rows and a group of heads of its own.
                *out = unsafe { shares.part(at(row), group) };
            }
            let length = plan.positions[rows.start] as usize + 1;
            let (asked, out) = (&asked[..rows.len()], &mut out[..rows.len()]);
            attention::attend(instructions, asked, &cache, length, out);
        });
        let form = self.form(&[feeds]);
        out.fill(&mut self.pool, instructions, rows, form, &|_, _| {});
    }

    fn gate(&mut self, rows: usize, gate: &Rows, up: &Rows, feeds: &Matrix, out: &mut Activation) {
        let (instructions, width) = (self.instructions, gate.width);
        let form = self.form(&[feeds]);
        out.fill(&mut self.pool, instructions, rows, form, &|row, out| {
            elementwise::silu_times(
                instructions,
                &gate.values[row * width..][..width],
                &up.values[row * width..][..width],
                out,
            );
        });
    }

    fn add(&mut self, rows: usize, sum: &mut Rows, x: &Rows) {
        let (instructions, width) = (self.instructions, sum.width);
        let sums = Shares::new(&mut sum.values[..rows * width]);
        self.pool.run(rows.div_ceil(ADDED), &|piece| {
            let first = piece * ADDED * width;
            let count = (rows * width - first).min(ADDED * width);
            // SAFETY: each piece has rows of its own, and the slice above holds `rows` rows.
            let sums = unsafe { sums.part(first, count) };
            elementwise::add(instructions, sums, &x.values[first..][..count]);
        });
    }

    fn all_reduce(&mut self, rows: usize, x: &mut Rows) {
        let numbers = rows * x.width;
        self.seat.all_reduce(&mut x.values[..numbers]);
    }

    fn place(&self) -> (usize, usize) {
        self.seat.place()
    }

    fn read<'a>(&'a mut self, rows: usize, x: &'a Rows) -> Result<&'a [f32], Fault> {
        Ok(&x.values[..rows * x.width])
    }
}

/// A run's rows, as many at a time as attend together.
fn tiles(run: &Run) -> impl Iterator<Item = (&Run, Range<usize>)> {
    let rows = run.rows.clone();
    let firsts = rows.clone().step_by(attention::ROWS);
    firsts.map(move |first| (run, first..rows.end.min(first + attention::ROWS)))
}

/// The block into which each row's keys and values go.
fn block_of_rows(plan: &StepPlan) -> Vec<u32> {
    let of_run = |run: &Run| {
        run.rows
            .clone()
            .map(|row| run.blocks[plan.positions[row] as usize / BLOCK_TOKENS])
            .collect::<Vec<_>>()
    };
    plan.runs.iter().flat_map(of_run).collect()
}
