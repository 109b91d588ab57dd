//! Keys and values on their way to an arena, and attention to those that are there.

use super::{Kind, THREADS, Target, WARPS, arguments, launch};
use crate::compute::backend::Heads;
use crate::compute::cuda::card::{Address, Argument, Launch};

/// Widest head that kernels keep.
const MOST_WIDTH: usize = 512;
/// Most heads of queries of a group that a split takes together.
const SPLIT_GROUP: usize = 16;
/// Pages of one split.
const SPLIT_PAGES: usize = 8;
/// Widths that have kernels on tensor cores.
const WIDTHS: [usize; 4] = [16, 64, 80, 128];

/// Whether there are kernels for such heads.
///
/// # Errors
/// What stands against it, for a person.
pub fn check_heads(heads: Heads) -> Result<(), String> {
    let Heads {
        queries,
        keys,
        width,
        ..
    } = heads;
    if !width.is_multiple_of(2) || !(1..=MOST_WIDTH).contains(&width) {
        return Err(format!(
            "heads of {width} numbers are not computed on a GPU; those of an even number up to {MOST_WIDTH} are"
        ));
    }
    if keys == 0 || !queries.is_multiple_of(keys) {
        return Err(format!(
            "{queries} heads of queries cannot share {keys} heads of keys"
        ));
    }
    Ok(())
}

/// Queries, keys and values of a layer, as they go into an arena.
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    /// Rows of queries; may be none.
    pub query: Address,
    /// Rows of keys.
    pub key: Address,
    /// Rows of values.
    pub value: Address,
    /// Weights of the heads' norms, queries' and keys', where there are any, and what is added to the mean square.
    pub norms: (Address, Address, f32),
    /// Cosines, sines, pairs, and whether neighbours make a pair.
    pub rotation: (Address, Address, usize, bool),
    /// The place of each row.
    pub places: Address,
    /// The arena, and what its numbers are.
    pub arena: (Address, Kind),
}

/// Norms, rotates and stores.
#[must_use]
pub fn store(stored: &Stored, rows: usize, heads: Heads, layer: usize) -> Launch {
    let Heads {
        queries,
        keys,
        width,
        ..
    } = heads;
    let (query_norm, key_norm, epsilon) = stored.norms;
    let (cosines, sines, pairs, neighbours) = stored.rotation;
    let mut arguments = arguments![stored.query, stored.key, stored.value];
    arguments.extend(arguments![query_norm, key_norm, epsilon]);
    arguments.extend(arguments![cosines, sines, pairs, neighbours, stored.places]);
    arguments.extend(arguments![stored.arena.0, stored.arena.1]);
    arguments.extend(arguments![queries, keys, width]);
    arguments.extend(of_layer(heads, layer));
    let grid = [rows, (queries + 2 * keys).div_ceil(WARPS), 1];
    launch("store", grid, THREADS, WARPS * width * 4, arguments)
}

/// Numbers of a block, and where a layer's begin in it.
fn of_layer(heads: Heads, layer: usize) -> [Argument; 2] {
    let numbers = heads.block() as u64;
    [
        Argument::Long(numbers),
        Argument::Long((layer * 2 * heads.part()) as u64),
    ]
}

/// Where attention finds what rows see.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Entries of `seen`, or of `tiles`.
    pub entries: Address,
    /// How many.
    pub count: usize,
    /// Spans of keys.
    pub spans: Address,
    /// Blocks of the spans.
    pub blocks: Address,
}

/// Queries, arena and result of one attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Rows of queries.
    pub query: Address,
    /// Keys and values, and what their numbers are.
    pub arena: (Address, Kind),
    /// Heads.
    pub heads: Heads,
    /// Which of the arena's layers.
    pub layer: usize,
    /// The result, as wide as all heads of queries.
    pub out: Target,
}

/// Attention of single rows in plain floats, for widths and arenas that have no other kernels.
#[must_use]
pub fn attend_any(attention: &Attention, seen: Seen) -> Launch {
    let Heads {
        queries,
        keys,
        width,
        ..
    } = attention.heads;
    let kernel = if attention.arena.1 == Kind::F32 {
        "attend_any_f32"
    } else {
        "attend_any_bf16"
    };
    let mut arguments = arguments![attention.query, attention.arena.0, seen.entries];
    arguments.extend(arguments![seen.spans, seen.blocks, queries, keys, width]);
    arguments.extend(of_layer(attention.heads, attention.layer));
    arguments.extend(arguments![attention.out.at, attention.out.kind]);
    let shared = ((WARPS + 1) * width + WARPS * 34) * 4;
    launch(kernel, [queries, seen.count, 1], THREADS, shared, arguments)
}

/// Whether heads of this width have kernels on tensor cores.
#[must_use]
pub fn has_width(width: usize) -> bool {
    WIDTHS.contains(&width)
}

/// Splits of so many pages.
#[must_use]
pub fn splits(pages: usize) -> usize {
    pages.div_ceil(SPLIT_PAGES)
}

/// Bytes that the parts of one row take: results, and sums beside them.
#[must_use]
pub fn partial_bytes(heads: Heads, splits: usize) -> (usize, usize) {
    let parts = heads.queries * splits * 4;
    (parts * heads.width, parts * 2)
}

/// Attention of few rows, split over their keys, and the sum of the splits. None where the width has no kernels.
#[must_use]
pub fn attend_split(
    attention: &Attention,
    seen: Seen,
    splits: usize,
    (partial, sums): (Address, Address),
) -> Option<[Launch; 2]> {
    let Heads {
        queries,
        keys,
        width,
        ..
    } = attention.heads;
    let kernel = match width {
        16 => "attend_split_bf16_16",
        64 => "attend_split_bf16_64",
        80 => "attend_split_bf16_80",
        128 => "attend_split_bf16_128",
        _ => return None,
    };
    let group = queries / keys;
    let mut arguments = arguments![attention.query, attention.arena.0, seen.entries];
    arguments.extend(arguments![seen.spans, seen.blocks, queries, keys]);
    arguments.extend(of_layer(attention.heads, attention.layer));
    arguments.extend(arguments![partial, sums]);
    let grid = [splits, keys * group.div_ceil(SPLIT_GROUP), seen.count];
    let shared = 8 * 16 * 8 + 8 * group.min(SPLIT_GROUP) * width * 4;
    let parts = launch(kernel, grid, THREADS, shared, arguments);
    let mut arguments = arguments![seen.entries, partial, sums, splits, queries, width];
    arguments.extend(arguments![attention.out.at, attention.out.kind]);
    let grid = [queries, seen.count, 1];
    let whole = launch("attend_combine", grid, 128, splits * 4 + 32, arguments);
    Some([parts, whole])
}

/// Rows of one tile; none where a group is wider than a tile.
#[must_use]
pub fn tile_rows(heads: Heads) -> usize {
    // Where registers hold as much, a warp takes 32 queries in place of 16.
    let queries = if matches!(heads.width, 64 | 80) {
        128
    } else {
        64
    };
    queries / (heads.queries / heads.keys).max(1)
}

/// Attention of many rows. None where the width has no kernels.
#[must_use]
pub fn attend_tile(attention: &Attention, tiles: Seen) -> Option<Launch> {
    let Heads { queries, keys, .. } = attention.heads;
    let (kernel, shared) = match attention.heads.width {
        16 => ("attend_tile_bf16_16", 14_336),
        64 => ("attend_tile_bf16_64", 43_008),
        80 => ("attend_tile_bf16_80", 47_104),
        128 => ("attend_tile_bf16_128", 75_776),
        _ => return None,
    };
    let mut arguments = arguments![attention.query, attention.arena.0, tiles.entries];
    arguments.extend(arguments![tiles.spans, tiles.blocks, queries, keys]);
    arguments.extend(of_layer(attention.heads, attention.layer));
    arguments.extend(arguments![attention.out.at, attention.out.kind]);
    Some(launch(
        kernel,
        [tiles.count, keys, 1],
        128,
        shared,
        arguments,
    ))
}
