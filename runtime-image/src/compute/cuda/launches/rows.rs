//! Rows: tables, norms, and what is done number by number.

use super::{Factor, Kind, THREADS, Target, WARPS, arguments, by_part, by_row, launch, pitch};
use crate::compute::cuda::card::{Address, Argument, Launch};

/// Rows of a table of any kind.
#[must_use]
pub fn embed(
    (table, kind, columns): (Factor, Kind, usize),
    tokens: Address,
    rows: usize,
    (out, width): (Address, usize),
) -> Launch {
    let arguments = arguments![
        table.weights,
        table.scales,
        kind,
        tokens,
        out,
        width,
        columns
    ];
    by_row("embed", rows, 0, arguments)
}

/// By what rows are normed, and where to.
#[derive(Clone, Copy, Debug)]
pub enum Norm {
    /// By the root mean square of picked rows, to an input.
    Squares {
        /// Numbers of the rows.
        picked: Address,
        /// The input.
        out: Target,
    },
    /// By mean and deviation, to an input.
    Mean {
        /// Added at the end.
        bias: Address,
        /// The input.
        out: Target,
    },
    /// The same in place.
    MeanInPlace {
        /// Added at the end.
        bias: Address,
        /// Numbers of a row.
        width: usize,
    },
}

/// Norms of rows.
#[must_use]
pub fn norm(x: Address, rows: usize, (weight, epsilon): (Address, f32), norm: Norm) -> Launch {
    let to = |out: Target| arguments![out.at, out.kind, out.width];
    let (kernel, mut arguments, out) = match norm {
        Norm::Squares { picked, out } => ("rms_norm", arguments![x, picked, weight], to(out)),
        Norm::Mean { bias, out } => ("layer_norm", arguments![x, weight, bias], to(out)),
        Norm::MeanInPlace { bias, width } => {
            let arguments = arguments![x, weight, bias];
            ("layer_norm_in_place", arguments, arguments![width])
        }
    };
    arguments.extend(arguments![epsilon]);
    arguments.extend(out);
    by_row(kernel, rows, 32, arguments)
}

/// Adds `x` to `sum`, and norms the sums by their root mean square to an input.
#[must_use]
pub fn add_and_norm(
    sum: Address,
    x: Address,
    rows: usize,
    (weight, epsilon): (Address, f32),
    out: Target,
) -> Launch {
    let arguments = arguments![sum, x, weight, epsilon, out.at, out.kind, out.width];
    by_row("add_rms_norm", rows, 32, arguments)
}

/// Root mean square norms of heads in place.
#[must_use]
pub fn norm_heads(
    x: Address,
    rows: usize,
    (weight, epsilon): (Address, f32),
    (heads, width): (usize, usize),
) -> Launch {
    let arguments = arguments![x, weight, epsilon, heads, width];
    let grid = [rows, heads.div_ceil(WARPS), 1];
    launch("norm_heads", grid, THREADS, 0, arguments)
}

/// Rows to an input.
#[must_use]
pub fn feed(x: Address, rows: usize, out: Target) -> Launch {
    let arguments = arguments![x, out.at, out.kind, out.width];
    by_part("feed", pitch(out.width), rows, arguments)
}

/// `silu(gate) * up`.
#[must_use]
pub fn silu_times(gate: Address, up: Address, rows: usize, out: Target) -> Launch {
    let arguments = arguments![gate, up, out.at, out.kind, out.width];
    by_part("silu_times", pitch(out.width), rows, arguments)
}

/// GELU.
#[must_use]
pub fn gelu(x: Address, rows: usize, out: Target) -> Launch {
    let arguments = arguments![x, out.at, out.kind, out.width];
    by_part("gelu", pitch(out.width), rows, arguments)
}

/// `sum += x` for so many numbers.
#[must_use]
pub fn add(sum: Address, x: Address, numbers: usize) -> Launch {
    let arguments = arguments![sum, x, numbers as u64];
    by_part("add", numbers, 1, arguments)
}

/// Adds one row to each.
#[must_use]
pub fn add_to_each(sum: Address, x: Address, rows: usize, width: usize) -> Launch {
    by_part("add_to_each", width, rows, arguments![sum, x, width])
}

/// `sum[picked] += scale * x`.
#[must_use]
pub fn add_scaled(
    picked: Address,
    scale: f32,
    (sum, x): (Address, Address),
    rows: usize,
    width: usize,
) -> Launch {
    let arguments = arguments![picked, scale, sum, x, width];
    by_part("add_scaled", width, rows, arguments)
}

/// Most states that are interleaved.
pub const MOST_SAVED: usize = 8;

/// `last`, then all `saved`, at most [`MOST_SAVED`], channel by channel.
#[must_use]
pub fn interleave(
    last: Address,
    saved: &[Address],
    rows: usize,
    width: usize,
    out: Target,
) -> Launch {
    let mut arguments = arguments![last];
    let padded = saved.iter().copied().chain(std::iter::repeat(Address(0)));
    arguments.extend(padded.take(MOST_SAVED).map(Argument::from));
    arguments.extend(arguments![saved.len(), out.at, out.kind, width]);
    by_part("interleave", pitch(out.width), rows, arguments)
}
