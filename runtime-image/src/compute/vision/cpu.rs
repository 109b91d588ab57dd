//! Looking at pictures on this processor.

use super::look::{Cache, MOST, look};
#[cfg(target_arch = "x86_64")]
use super::tiles;
use super::{LayerNorm, Look, Span, Vision, rows};
use crate::compute::activation::{Activation, Form};
use crate::compute::backend::Heads;
use crate::compute::cpu::{Cpu, Rows};
use crate::compute::elementwise;
use crate::compute::matrix::Matrix;
use crate::compute::pages::Ahead;
use crate::compute::pool::Shares;
use crate::compute::{Bf16, Instructions};

/// Numbers of the queries that one piece of work keeps beside it.
const SCRATCH: usize = 32_768;

/// Queries that one piece takes at most where they are rounded to bfloat16: so many that rounding their keys is worth it.
const MANY: usize = 256;

/// Whether attention for a product that reads its input in a form is in bfloat16 too.
fn by_tiles(instructions: Instructions, form: Form) -> bool {
    form == Form::Rounded && instructions.bf16() == Bf16::Tiles
}

/// Attends for a product that reads its input in a form.
fn attend(
    instructions: Instructions,
    form: Form,
    queries: &[f32],
    spans: &[Span],
    cache: Cache<'_>,
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    if by_tiles(instructions, form) {
        // SAFETY: the units are there.
        unsafe { tiles::look(queries, spans, cache, out) };
        return;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = form;
    look(instructions, queries, spans, cache, out);
}

impl Vision for Cpu {
    fn put(&mut self, values: &[f32], first: usize, out: &mut Rows) {
        out.values[first * out.width..][..values.len()].copy_from_slice(values);
    }

    fn put_input(&mut self, values: &[f32], rows: usize, feeds: &Matrix, out: &mut Activation) {
        let width = out.columns();
        let fill = |row: usize, out: &mut [f32]| {
            out.copy_from_slice(&values[row * width..][..width]);
        };
        let form = self.form(&[feeds]);
        out.fill(&mut self.pool, self.instructions, rows, form, &fill);
    }

    fn feed(&mut self, rows: usize, x: &Rows, feeds: &[&Matrix], out: &mut Activation) {
        let fill = |row: usize, out: &mut [f32]| {
            out.copy_from_slice(&x.values[row * x.width..][..x.width]);
        };
        let form = self.form(feeds);
        out.fill(&mut self.pool, self.instructions, rows, form, &fill);
    }

    fn copy(&mut self, x: &Rows, from: usize, rows: usize, to: usize, out: &mut Rows) {
        let width = x.width;
        out.values[to * width..][..rows * width]
            .copy_from_slice(&x.values[from * width..][..rows * width]);
    }

    fn layer_norm(
        &mut self,
        x: &Rows,
        first: usize,
        count: usize,
        (weight, bias, epsilon): LayerNorm<'_, Self>,
        feeds: &[&Matrix],
        out: &mut Activation,
    ) {
        let instructions = self.instructions;
        let fill = |row: usize, out: &mut [f32]| {
            let x = &x.values[(first + row) * x.width..][..x.width];
            rows::layer_norm(instructions, x, &weight.values, &bias.values, epsilon, out);
        };
        let form = self.form(feeds);
        out.fill(&mut self.pool, instructions, count, form, &fill);
    }

    fn layer_norm_in_place(
        &mut self,
        x: &mut Rows,
        first: usize,
        count: usize,
        (weight, bias, epsilon): LayerNorm<'_, Self>,
    ) {
        let width = x.width;
        let mut from = vec![0.0; width];
        for row in x.values[first * width..]
            .chunks_exact_mut(width)
            .take(count)
        {
            from.copy_from_slice(row);
            rows::layer_norm(
                self.instructions,
                &from,
                &weight.values,
                &bias.values,
                epsilon,
                row,
            );
        }
    }

    fn norm_heads(&mut self, count: usize, x: &mut Rows, (weight, epsilon): (&Rows, f32)) {
        let instructions = self.instructions;
        let (width, head) = (x.width, weight.width);
        let shares = Shares::new(&mut x.values[..count * width]);
        self.pool.run(count, &|row| {
            // SAFETY: each piece has a row of its own.
            let row = unsafe { shares.part(row * width, width) };
            let mut from = vec![0.0; head];
            for head in row.chunks_exact_mut(head) {
                from.copy_from_slice(head);
                elementwise::rms_norm(instructions, &from, &weight.values, epsilon, head);
            }
        });
    }

    fn gelu(&mut self, count: usize, x: &Rows, feeds: &Matrix, out: &mut Activation) {
        let instructions = self.instructions;
        let fill = |row: usize, out: &mut [f32]| {
            rows::gelu(instructions, &x.values[row * x.width..][..x.width], out);
        };
        let form = self.form(&[feeds]);
        out.fill(&mut self.pool, instructions, count, form, &fill);
    }

    fn look(
        &mut self,
        heads: Heads,
        _: usize,
        looks: &[Look],
        query: &Rows,
        arena: &Ahead,
        feeds: &Matrix,
        out: &mut Activation,
    ) {
        let instructions = self.instructions;
        let (width, part, stride) = (heads.width, heads.part(), heads.block());
        let group = heads.queries / heads.keys;
        let all = heads.queries * width;
        // A piece is some rows of one look and one head of keys; queries that share keys read them once.
        let form = self.form(&[feeds]);
        let most = if by_tiles(instructions, form) {
            MANY
        } else {
            MOST
        };
        let most = most.min(SCRATCH / width);
        let together = (most / group).max(1);
        let pieces: Vec<(&Look, std::ops::Range<usize>)> = looks
            .iter()
            .flat_map(|look| {
                let rows = look.rows.clone();
                rows.clone()
                    .step_by(together)
                    .map(move |first| (look, first..(first + together).min(rows.end)))
            })
            .collect();
        let count = looks.last().map_or(0, |look| look.rows.end);
        let shares = Shares::new(&mut out.values[..count * all]);
        let factor = 1.0 / (width as f32).sqrt();
        self.pool.run(pieces.len() * heads.keys, &|piece| {
            let (look_of, rows) = &pieces[piece / heads.keys];
            let head = piece % heads.keys;
            let at = head * part / heads.keys;
            // Groups wider than the scratch are cut too.
            let cut = group.min(most);
            let room = rows.len() * cut * width;
            let (mut queries, mut results) = (vec![0_f32; room], vec![0_f32; room]);
            for first in (0..group).step_by(cut) {
                let cut = cut.min(group - first);
                let place = |row: usize| row * all + (head * group + first) * width;
                let used = rows.len() * cut * width;
                for (row, queries) in rows.clone().zip(queries.chunks_exact_mut(cut * width)) {
                    let from = &query.values[place(row)..][..cut * width];
                    for (to, from) in queries.iter_mut().zip(from) {
                        *to = from * factor;
                    }
                }
                let cache = Cache {
                    keys: &arena[at..],
                    values: &arena[at + part..],
                    stride,
                    width,
                };
                let (queries, results) = (&queries[..used], &mut results[..used]);
                attend(instructions, form, queries, &look_of.spans, cache, results);
                for (row, results) in rows.clone().zip(results.chunks_exact(cut * width)) {
                    // SAFETY: each piece has rows and a group of heads of its own, inside the slice.
                    let to = unsafe { shares.part(place(row), cut * width) };
                    to.copy_from_slice(results);
                }
            }
        });
        out.fill(&mut self.pool, instructions, count, form, &|_, _| {});
    }

    fn add_scaled(&mut self, picked: &[usize], scale: f32, sum: &mut Rows, x: &Rows) {
        let width = sum.width;
        for (row, x) in picked.iter().zip(x.values.chunks_exact(width)) {
            let sum = &mut sum.values[row * width..][..width];
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum += scale * x;
            }
        }
    }

    fn interleave(
        &mut self,
        first: usize,
        count: usize,
        last: &Rows,
        saved: &[Rows],
        feeds: &Matrix,
        out: &mut Activation,
    ) {
        let width = last.width;
        let fill = |row: usize, out: &mut [f32]| {
            let at = (first + row) * width;
            let (own, others) = out.split_at_mut(width);
            own.copy_from_slice(&last.values[at..at + width]);
            for (index, state) in saved.iter().enumerate() {
                let state = &state.values[at..at + width];
                for (out, value) in others.chunks_exact_mut(saved.len()).zip(state) {
                    out[index] = *value;
                }
            }
        };
        let form = self.form(&[feeds]);
        out.fill(&mut self.pool, self.instructions, count, form, &fill);
    }

    fn read_input<'a>(&'a mut self, count: usize, x: &'a Activation) -> &'a [f32] {
        &x.values[..count * x.columns()]
    }
}
