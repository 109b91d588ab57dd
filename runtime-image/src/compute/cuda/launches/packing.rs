//! Matrices from what stands in files.

use super::{Factor, Kind, THREADS, arguments, by_row, launch};
use crate::compute::cuda::card::{Address, Launch};

/// Bytes that a block of threads takes, two a thread.
const BYTES: usize = 2 * THREADS as usize;

/// Bytes of a block of GGUF of which such a matrix is made, and how many of them are scales; none where it is not made of any.
#[must_use]
pub fn block_bytes(kind: Kind) -> Option<(usize, usize)> {
    match kind {
        Kind::Q8 => Some((34, 2)),
        Kind::Q4 => Some((20, 4)),
        Kind::Q4K => Some((144, 16)),
        _ => None,
    }
}

/// Numbers and scales of so many blocks of GGUF apart. None where such a matrix is not made of blocks.
#[must_use]
pub fn pack_blocks(from: Address, kind: Kind, to: Factor, blocks: usize) -> Option<Launch> {
    let (bytes, _) = block_bytes(kind)?;
    let arguments = arguments![from, kind, to.weights, to.scales, blocks as u64];
    let grid = [(blocks * bytes).div_ceil(BYTES), 1, 1];
    Some(launch("pack_blocks", grid, THREADS, 0, arguments))
}

/// Rows of floats of a kind as E4M3 with a scale for each.
#[must_use]
pub fn pack_fp8((from, kind): (Address, Kind), to: Factor, rows: usize, columns: usize) -> Launch {
    let arguments = arguments![from, kind, to.weights, to.scales, columns];
    by_row("pack_fp8", rows, 32, arguments)
}
