//! Which numbers the threads of a launch take, as the kernels reckon it: of any size every one, and none twice.

use super::*;

const SIZES: [usize; 9] = [1, 3, 8, 77, 256, 257, 1_023, 1_024, 4_100];

/// So many numbers are each taken once, and every block has some.
fn once(launch: &Launch, count: usize, takes: impl Fn([usize; 3]) -> Vec<usize>) {
    let mut times = vec![0; count];
    let [x, y, z] = launch.grid.map(|blocks| blocks as usize);
    for block in (0..z).flat_map(|z| (0..y).flat_map(move |y| (0..x).map(move |x| [x, y, z]))) {
        let taken = takes(block);
        assert!(!taken.is_empty(), "block {block:?} of {launch:?} is idle");
        for number in taken {
            times[number] += 1;
        }
    }
    let wrong = times.iter().position(|times| *times != 1);
    assert_eq!(wrong, None, "{launch:?}");
}

/// The numbers of a row that a block's threads take, so many each.
fn of_row(launch: &Launch, [x, y, _]: [usize; 3], each: usize, width: usize) -> Vec<usize> {
    let threads = launch.block[0] as usize;
    let all = x * threads * each..((x + 1) * threads * each).min(width);
    all.map(|at| y * width + at).collect()
}

/// The heads of a row that a block's warps take.
fn of_heads(launch: &Launch, [row, y, _]: [usize; 3], heads: usize) -> Vec<usize> {
    let warps = launch.block[0] as usize / 32;
    let all = y * warps..((y + 1) * warps).min(heads);
    all.map(|head| row * heads + head).collect()
}

#[test]
fn rows_number_by_number() {
    let (x, rows) = (SOMEWHERE, 3);
    for width in SIZES {
        // What fills rows of an input up is written too.
        let padded = pitch(width);
        for launch in [
            feed(x, rows, target(width)),
            gelu(x, rows, target(width)),
            silu_times(x, x, rows, target(width)),
        ] {
            once(&launch, rows * padded, |at| of_row(&launch, at, 4, padded));
        }
        for launch in [
            add_to_each(x, x, rows, width),
            add_scaled(x, 1.0, (x, x), rows, width),
            dequantise((factor(rows), Kind::Q8, width), 0, rows, x),
        ] {
            once(&launch, rows * width, |at| of_row(&launch, at, 4, width));
        }
        let launch = add(x, x, width);
        once(&launch, width, |at| of_row(&launch, at, 4, width));
        let launch = interleave(x, &[x; 4], rows, width, target(5 * width));
        let padded = pitch(5 * width);
        once(&launch, rows * padded, |at| of_row(&launch, at, 4, padded));
    }
}

#[test]
fn rows_and_heads_by_themselves() {
    for count in [1, 7, 8, 9, 40] {
        let launch = norm_heads(SOMEWHERE, 3, (SOMEWHERE, 1e-5), (count, 64));
        once(&launch, 3 * count, |at| of_heads(&launch, at, count));
        let launch = stored(heads(3 * count, count, 64), 2);
        once(&launch, 2 * 5 * count, |at| {
            of_heads(&launch, at, 5 * count)
        });
        // Keys and values of pictures have no queries beside them.
        let launch = stored(heads(0, count, 64), 2);
        once(&launch, 2 * 2 * count, |at| {
            of_heads(&launch, at, 2 * count)
        });
        for launch in of_rows(count, 100).iter().take(5) {
            once(launch, count, |[row, ..]| vec![row]);
        }
        let attention = attention(heads(count, 1, 48), Kind::Bf16);
        let launch = attend_any(&attention, seen(5));
        once(&launch, 5 * count, |[head, row, _]| {
            vec![row * count + head]
        });
    }
}

#[test]
fn choices_tokens_and_logits() {
    let x = SOMEWHERE;
    for count in SIZES {
        let words = count.div_ceil(32);
        for launch in [adjust(x, 9, x, count), take_tokens(x, x, x, count)] {
            once(&launch, count, |at| of_row(&launch, at, 1, count));
        }
        let launch = restrict(x, count, (x, 3), (x, words));
        once(&launch, 3 * count, |at| of_row(&launch, at, 1, count));
        let launch = choose(x, 1000, (x, count), x);
        once(&launch, count, |[choice, ..]| vec![choice]);
    }
}

/// Outputs and rows of a thin product's block.
fn of_thin(kernel: &str) -> (usize, usize) {
    match kernel {
        "thin_f32" => (32, 8),
        _ if kernel.ends_with("_16") => (32, 16),
        _ => (16, 8),
    }
}

#[test]
fn outputs_of_up_to_three_matrices() {
    for outputs in [vec![1], vec![33, 8], vec![16, 1, 70], vec![4_100]] {
        let all: usize = outputs.iter().sum();
        let factors: Vec<Factor> = outputs.iter().map(|outputs| factor(*outputs)).collect();
        for rows in [1, 8, 9, 16, 35] {
            for kind in Kind::ALL {
                let launch = thin(kind, &factors, SOMEWHERE, 512, rows);
                let (wide, together) = of_thin(launch.kernel);
                once(&launch, all * rows, |[x, y, _]| {
                    let (mut block, mut before) = (x, 0);
                    let own = outputs.iter().find(|outputs| {
                        let blocks = outputs.div_ceil(wide);
                        let here = block < blocks;
                        if !here {
                            block -= blocks;
                            before += **outputs;
                        }
                        here
                    });
                    let first = block * wide;
                    let own = first..(first + wide).min(own.copied().unwrap_or(0));
                    let rows = y * together..((y + 1) * together).min(rows);
                    rows.flat_map(|row| own.clone().map(move |output| row * all + before + output))
                        .collect()
                });
            }
        }
    }
}

#[test]
fn outputs_of_gates() {
    for outputs in [1, 16, 33, 4_100] {
        for rows in [1, 8, 9, 35] {
            for kind in Kind::ALL.into_iter().skip(1) {
                let (pair, input) = ([factor(outputs); 2], (SOMEWHERE, 512));
                let launch = gated(kind, pair, input, rows, target(outputs));
                let launch = launch.expect("only floats have no such kernel");
                let together = if rows <= 8 { 8 } else { 16 };
                // What fills rows up is written too.
                let padded = pitch(outputs);
                once(&launch, padded * rows, |[x, y, _]| {
                    let own = x * 16..((x + 1) * 16).min(padded);
                    let rows = y * together..((y + 1) * together).min(rows);
                    rows.flat_map(|row| own.clone().map(move |output| row * padded + output))
                        .collect()
                });
            }
        }
    }
}

#[test]
fn bytes_of_blocks() {
    for (kind, bytes) in [(Kind::Q8, 34), (Kind::Q4, 20), (Kind::Q4K, 144)] {
        for blocks in [1, 15, 16, 257] {
            let launch = pack_blocks(SOMEWHERE, kind, factor(1), blocks);
            let launch = launch.expect("made of blocks");
            let pairs = blocks * bytes / 2;
            once(&launch, pairs, |at| of_row(&launch, at, 1, pairs));
        }
    }
}

#[test]
fn outputs_of_many_rows() {
    for (outputs, rows) in [(1, 1), (127, 65), (128, 64), (300, 130)] {
        let launch = same_bits(Kind::Bf16, factor(outputs), SOMEWHERE, 64, rows);
        once(&launch, outputs * rows, |[x, y, _]| {
            let own = x * 128..((x + 1) * 128).min(outputs);
            let rows = y * 64..((y + 1) * 64).min(rows);
            rows.flat_map(|row| own.clone().map(move |output| row * outputs + output))
                .collect()
        });
    }
}

#[test]
fn heads_and_pages_of_attention_in_splits() {
    let parts = (SOMEWHERE, SOMEWHERE);
    for (queries, keys) in [(1, 1), (8, 8), (32, 8), (24, 3), (17, 1), (40, 1), (66, 2)] {
        for pages in [1, 8, 9, 65] {
            let (group, rows) = (queries / keys, 3);
            let attention = attention(heads(queries, keys, 64), Kind::Bf16);
            let launches = attend_split(&attention, seen(rows), splits(pages), parts);
            let [split, whole] = launches.expect("heads of 64 have kernels");
            once(&split, rows * queries * pages, |[x, y, row]| {
                let parts = group.div_ceil(16);
                let first = y / parts * group + y % parts * 16;
                let end = (first + 16).min((y / parts + 1) * group);
                let pages_of = x * 8..((x + 1) * 8).min(pages);
                (first..end)
                    .flat_map(|head| {
                        let at = (row * queries + head) * pages;
                        pages_of.clone().map(move |page| at + page)
                    })
                    .collect()
            });
            let bytes = partial_bytes(attention.heads, splits(pages));
            let numbers = queries * splits(pages);
            assert_eq!(bytes, (numbers * 64 * 4, numbers * 2 * 4));
            once(&whole, rows * queries, |[head, row, _]| {
                vec![row * queries + head]
            });
        }
    }
}

#[test]
fn rows_of_a_tile_are_as_many_as_its_warps_take() {
    for (width, each) in [(16, 16), (64, 32), (80, 32), (128, 16)] {
        for (queries, keys) in [(1, 1), (8, 8), (32, 8), (24, 3), (17, 1), (80, 1), (150, 1)] {
            let heads = heads(queries, keys, width);
            let launch = attend_tile(&attention(heads, Kind::Bf16), seen(4));
            let launch = launch.expect("such heads have kernels");
            once(&launch, 4 * keys, |[tile, key, _]| vec![tile * keys + key]);
            let places = launch.block[0] as usize / 32 * each;
            let group = queries / keys;
            let rows = tile_rows(heads);
            assert!(rows * group <= places && (rows + 1) * group > places);
        }
    }
}
