//! The launches of all kernels: names, grids, shared memory and arguments as the table in `kernels/README.md` has them.
//! Plain numbers, so that they are tested without a card.

use super::card::{Address, Argument, CardError, Launch};

mod attention;
mod choosing;
mod packing;
mod products;
mod rows;
#[cfg(test)]
mod tests;

pub use attention::*;
pub use choosing::*;
pub use packing::*;
pub use products::*;
pub use rows::*;

/// How numbers lie on the card; the number that kernels know each by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the names say all; layouts stand in the kernels' README"
)]
pub enum Kind {
    F32,
    Bf16,
    F16,
    Q8,
    Q4,
    Q4K,
    Fp8,
}

impl Kind {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::F32,
        Self::Bf16,
        Self::F16,
        Self::Q8,
        Self::Q4,
        Self::Q4K,
        Self::Fp8,
    ];

    fn argument(self) -> Argument {
        Argument::Int(self as i32)
    }

    /// What the input of a product with such a matrix is.
    #[must_use]
    pub fn input(self) -> Self {
        match self {
            Self::F32 | Self::F16 => self,
            _ => Self::Bf16,
        }
    }

    /// Bytes of a number of an input or an arena.
    #[must_use]
    pub fn bytes(self) -> usize {
        if self == Self::F32 { 4 } else { 2 }
    }

    /// Rows of such a matrix have a multiple of so many numbers, before they are filled up.
    #[must_use]
    pub fn multiple(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => 1,
            Self::Q8 | Self::Q4 => 32,
            Self::Q4K => 256,
            Self::Fp8 => 16,
        }
    }
}

/// Numbers from one row of an input, or of a float matrix, to the next.
#[must_use]
pub fn pitch(width: usize) -> usize {
    width.next_multiple_of(8)
}

/// Where an input is written, and its kind.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The first row.
    pub at: Address,
    /// What it holds.
    pub kind: Kind,
    /// Numbers of a row.
    pub width: usize,
}

/// A matrix of a product.
#[derive(Clone, Copy, Debug, Default)]
pub struct Factor {
    /// Its numbers.
    pub weights: Address,
    /// Their scales.
    pub scales: Address,
    /// The product.
    pub out: Address,
    /// Outputs; 0 for no matrix.
    pub outputs: usize,
}

/// Most threads of a block on any card.
const MOST_THREADS: u32 = 1024;
/// Most blocks in y and in z on any card; in x there may be as many as any launch here has.
pub const MOST_BLOCKS: usize = 65_535;
/// Most bytes of shared memory of a block on all cards that there is machine code for.
const MOST_SHARED: u32 = 99 << 10;

/// Threads of most kernels' blocks.
const THREADS: u32 = 256;
/// Numbers that such a block goes through in one go.
const ELEMENTS: usize = 4 * THREADS as usize;
/// Heads that it takes, one a warp.
const WARPS: usize = THREADS as usize / 32;

/// Whether a card can take a launch at all; the driver's own word for one that it cannot names no reason.
///
/// # Errors
/// When blocks, threads or shared memory are more than cards have.
pub fn check(launch: &Launch) -> Result<(), CardError> {
    let [_, y, z] = launch.grid;
    let threads = launch.block.iter().copied().map(u64::from).product::<u64>();
    let fits = [y, z].iter().all(|blocks| *blocks as usize <= MOST_BLOCKS)
        && threads <= u64::from(MOST_THREADS)
        && launch.shared <= MOST_SHARED;
    if fits {
        return Ok(());
    }
    let Launch {
        kernel,
        grid,
        block,
        shared,
        ..
    } = launch;
    Err(CardError::Failed(format!(
        "no card takes {kernel} with {grid:?} blocks of {block:?} threads and {shared} bytes of shared memory"
    )))
}

fn clip(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn launch(
    kernel: &'static str,
    grid: [usize; 3],
    threads: u32,
    shared: usize,
    arguments: Vec<Argument>,
) -> Launch {
    Launch {
        kernel,
        grid: grid.map(clip),
        block: [threads, 1, 1],
        shared: clip(shared),
        arguments,
    }
}

/// One block of threads a row.
fn by_row(kernel: &'static str, rows: usize, shared: usize, arguments: Vec<Argument>) -> Launch {
    launch(kernel, [rows, 1, 1], THREADS, shared, arguments)
}

/// Blocks of threads for parts of each row.
fn by_part(kernel: &'static str, width: usize, rows: usize, arguments: Vec<Argument>) -> Launch {
    let grid = [width.div_ceil(ELEMENTS), rows, 1];
    launch(kernel, grid, THREADS, 0, arguments)
}

/// A thread for each of so many numbers.
fn by_number(
    kernel: &'static str,
    numbers: usize,
    rows: usize,
    arguments: Vec<Argument>,
) -> Launch {
    let grid = [numbers.div_ceil(THREADS as usize), rows, 1];
    launch(kernel, grid, THREADS, 0, arguments)
}

macro_rules! arguments {
    ($($argument:expr),* $(,)?) => {
        vec![$(crate::compute::cuda::card::Argument::from($argument)),*]
    };
}
use arguments;

impl From<Kind> for Argument {
    fn from(kind: Kind) -> Self {
        kind.argument()
    }
}

impl From<u64> for Argument {
    fn from(number: u64) -> Self {
        Self::Long(number)
    }
}
