use std::collections::HashSet;

use super::*;
use crate::compute::backend::Heads;

mod cover;
mod table;

const SOMEWHERE: Address = Address(1 << 20);

fn target(width: usize) -> Target {
    Target {
        at: SOMEWHERE,
        kind: Kind::Bf16,
        width,
    }
}

fn seen(count: usize) -> Seen {
    Seen {
        entries: SOMEWHERE,
        count,
        spans: SOMEWHERE,
        blocks: SOMEWHERE,
    }
}

fn heads(queries: usize, keys: usize, width: usize) -> Heads {
    Heads {
        queries,
        keys,
        width,
        layers: 3,
    }
}

fn attention(heads: Heads, kind: Kind) -> Attention {
    Attention {
        query: SOMEWHERE,
        arena: (SOMEWHERE, kind),
        heads,
        layer: 1,
        out: target(heads.queries * heads.width),
    }
}

fn stored(heads: Heads, rows: usize) -> Launch {
    let stored = Stored {
        query: SOMEWHERE,
        key: SOMEWHERE,
        value: SOMEWHERE,
        norms: (SOMEWHERE, SOMEWHERE, 1e-5),
        rotation: (SOMEWHERE, SOMEWHERE, heads.width / 2, true),
        places: SOMEWHERE,
        arena: (SOMEWHERE, Kind::Bf16),
    };
    store(&stored, rows, heads, 1)
}

fn factor(outputs: usize) -> Factor {
    Factor {
        weights: SOMEWHERE,
        scales: SOMEWHERE,
        out: SOMEWHERE,
        outputs,
    }
}

/// Of every kernel that works on rows one launch.
fn of_rows(rows: usize, width: usize) -> Vec<Launch> {
    let (x, out, by) = (SOMEWHERE, target(width), (SOMEWHERE, 1e-5));
    let (picked, bias) = (x, x);
    vec![
        embed((factor(9), Kind::Q4, width), x, rows, (x, width)),
        norm(x, rows, by, Norm::Squares { picked, out }),
        norm(x, rows, by, Norm::Mean { bias, out }),
        norm(x, rows, by, Norm::MeanInPlace { bias, width }),
        add_and_norm(x, x, rows, by, out),
        norm_heads(x, rows, by, (5, width)),
        feed(x, rows, out),
        silu_times(x, x, rows, out),
        gelu(x, rows, out),
        add(x, x, rows * width),
        add_to_each(x, x, rows, width),
        add_scaled(x, 0.5, (x, x), rows, width),
        interleave(x, &[x, x], rows, width, target(3 * width)),
    ]
}

/// Of every kernel of products one launch, with matrices of so many inputs and outputs.
fn of_products(rows: usize, columns: usize, outputs: usize) -> Vec<Launch> {
    let factors = [factor(outputs), factor(outputs), factor(1)];
    let thin = Kind::ALL
        .into_iter()
        .flat_map(|kind| [1, rows].map(|rows| thin(kind, &factors, SOMEWHERE, columns, rows)));
    let (pair, input) = ([factors[0]; 2], (SOMEWHERE, columns));
    let gated = Kind::ALL.into_iter().flat_map(|kind| {
        let gated = [1, rows].map(|rows| gated(kind, pair, input, rows, target(outputs)));
        gated.into_iter().flatten()
    });
    let same =
        [Kind::Bf16, Kind::F16].map(|kind| same_bits(kind, factors[0], SOMEWHERE, columns, rows));
    let part = (factors[0], Kind::Q8, columns);
    let dequantised = dequantise(part, 0, outputs.min(MOST_BLOCKS), SOMEWHERE);
    let launches = thin.chain(gated).chain(same);
    launches.chain([dequantised]).collect()
}

/// Of every kernel that packs matrices one launch, for so many rows.
fn of_packing(rows: usize, columns: usize) -> Vec<Launch> {
    let (from, to) = ((SOMEWHERE, Kind::F16), factor(rows));
    let blocks = pack_blocks(SOMEWHERE, Kind::Q4K, to, rows * columns / 256);
    let rounded = pack_fp8(from, to, rows, columns);
    blocks.into_iter().chain([rounded]).collect()
}

/// Of every kernel of attention that such heads have one launch, for rows that see so many pages.
fn of_attention(rows: usize, heads: Heads, pages: usize) -> Vec<Launch> {
    let plain = [Kind::F32, Kind::Bf16].map(|kind| attend_any(&attention(heads, kind), seen(rows)));
    let halves = attention(heads, Kind::Bf16);
    let parts = (SOMEWHERE, SOMEWHERE);
    let split = attend_split(&halves, seen(rows), splits(pages), parts);
    let mut launches = vec![stored(heads, rows)];
    launches.extend(plain);
    launches.extend(split.into_iter().flatten());
    launches.extend(attend_tile(&halves, seen(rows)));
    launches
}

/// Of every kernel that chooses tokens one launch.
fn of_choices(count: usize, vocabulary: usize) -> Vec<Launch> {
    let (x, entries) = (SOMEWHERE, (SOMEWHERE, count));
    let words = vocabulary.div_ceil(32);
    vec![
        adjust(x, vocabulary, x, count),
        restrict(x, vocabulary, entries, (x, words)),
        choose(x, vocabulary, entries, x),
        take_tokens(x, x, x, count),
    ]
}

fn all() -> Vec<Launch> {
    let mut launches = of_rows(7, 100);
    launches.extend(of_products(20, 512, 300));
    for width in [16, 64, 80, 128] {
        launches.extend(of_attention(9, heads(8, 2, width), 20));
    }
    launches.extend(of_packing(3, 512));
    launches.extend(of_choices(3, 1000));
    launches
}

#[test]
fn launches_and_kernels_are_those_of_the_table() {
    let table = table::kernels();
    for launch in all() {
        let name = launch.kernel;
        let kernel = table
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not in the table"));
        let parameters: Vec<_> = launch
            .arguments
            .iter()
            .map(table::Parameter::from)
            .collect();
        assert_eq!(parameters, kernel.parameters, "{name}");
        assert_eq!(launch.block, [kernel.threads, 1, 1], "{name}");
        if let Some(shared) = kernel.shared {
            assert_eq!(launch.shared, shared, "{name}");
        }
    }
    let launched: HashSet<&str> = all().iter().map(|launch| launch.kernel).collect();
    let idle = table
        .keys()
        .filter(|name| !launched.contains(name.as_str()));
    assert_eq!(idle.count(), 0, "kernels that nothing launches");
}

#[test]
fn kinds_are_numbered_as_kernels_know_them() {
    for (number, kind) in (0..).zip(Kind::ALL) {
        assert_eq!(Argument::from(kind), Argument::Int(number));
    }
}

#[test]
fn shared_memory_is_what_kernels_lay_out_in_it() {
    let shared = |heads: Heads, pages: usize| -> Vec<(&'static str, u32)> {
        let launches = of_attention(1, heads, pages).into_iter();
        launches
            .map(|launch| (launch.kernel, launch.shared))
            .collect()
    };
    // Eight heads of floats; eight warps' heads, one of queries, scores with a place between; largest and sums of eight
    // warps' heads and their results; a factor for each split and eight numbers beside; two stages of 64 keys and values.
    let found = shared(heads(24, 2, 128), 513);
    let expected = [
        ("store", 8 * 128 * 4),
        ("attend_any_f32", (9 * 128 + 8 * 34) * 4),
        ("attend_any_bf16", (9 * 128 + 8 * 34) * 4),
        ("attend_split_bf16_128", 8 * 16 * 8 + 8 * 12 * 128 * 4),
        ("attend_combine", 65 * 4 + 32),
        ("attend_tile_bf16_128", 2 * 64 * (320 + 272)),
    ];
    assert_eq!(found, expected);
    let tiles = [(16, 64, 48), (64, 192, 144), (80, 192, 176)];
    for (width, keys, values) in tiles {
        let found = shared(heads(2, 2, width), 1);
        let tile = found.last().map(|(_, bytes)| *bytes);
        assert_eq!(tile, Some(2 * 64 * (keys + values)), "{width}");
    }
}

#[test]
fn a_card_takes_every_launch_of_models_that_there_are() {
    let mut launches = Vec::new();
    for width in [1, 7, 1_280, 4_096, 28_672] {
        launches.extend(of_rows(MOST_BLOCKS, width));
    }
    for (columns, outputs) in [(8, 1), (4_096, 128_256), (53_248, 16_384)] {
        launches.extend(of_products(4_096, columns, outputs));
    }
    launches.extend(of_packing(128_256, 8_192));
    // 131,072 keys, and heads of one key's group that no tile takes together.
    for of in [
        heads(32, 8, 128),
        heads(16, 16, 80),
        heads(71, 1, 64),
        heads(5, 5, 16),
        heads(1, 1, 512),
    ] {
        launches.extend(of_attention(4_096, of, 4_096));
    }
    launches.extend(of_choices(256, 262_144));
    for launch in launches {
        assert_eq!(check(&launch), Ok(()), "{launch:?}");
        assert!(!launch.grid.contains(&0), "{launch:?}");
    }
}

#[test]
fn what_no_card_takes_is_refused_with_its_name() {
    let refused = |launch: &Launch| match check(launch) {
        Err(CardError::Failed(detail)) => assert!(detail.contains(launch.kernel), "{detail}"),
        other => panic!("{other:?}"),
    };
    let fine = feed(SOMEWHERE, MOST_BLOCKS, target(64));
    assert_eq!(check(&fine), Ok(()));
    refused(&feed(SOMEWHERE, MOST_BLOCKS + 1, target(64)));
    let deep = [1, 1, 1 << 16];
    refused(&Launch {
        grid: deep,
        ..fine.clone()
    });
    let block = [512, 3, 1];
    refused(&Launch {
        block,
        ..fine.clone()
    });
    let shared = MOST_SHARED + 1;
    refused(&Launch { shared, ..fine });
}

#[test]
fn what_no_kernel_computes_is_refused() {
    assert_eq!(check_heads(heads(32, 8, 128)), Ok(()));
    assert_eq!(check_heads(heads(3, 3, 2)), Ok(()));
    for (wrong, word) in [
        (heads(4, 4, 514), "514"),
        (heads(4, 4, 33), "33"),
        (heads(4, 4, 0), "heads of 0"),
        (heads(9, 4, 64), "9 heads"),
        (heads(4, 0, 64), "0 heads of keys"),
    ] {
        let refused = check_heads(wrong).expect_err("no kernel has such heads");
        assert!(refused.contains(word), "{refused}");
    }
    assert_eq!(pack_blocks(SOMEWHERE, Kind::Fp8, factor(1), 1), None);
    let input = (SOMEWHERE, 64);
    assert_eq!(gated(Kind::F32, [factor(1); 2], input, 1, target(1)), None);
    // These have kernels of plain floats alone.
    for width in [2, 32, 96, 256] {
        assert!(!has_width(width));
        let attention = attention(heads(4, 2, width), Kind::Bf16);
        let parts = (SOMEWHERE, SOMEWHERE);
        assert_eq!(attend_split(&attention, seen(1), 1, parts), None);
        assert_eq!(attend_tile(&attention, seen(1)), None);
    }
}
