//! Matrices that are made of what stands in files.

use crate::card::{Memory, arguments, card};
use crate::matrices::small_float;
use crate::numbers::{KINDS, Numbers, Random};

/// The nearest number of FP8, the even one of two.
fn nearest(number: f64) -> u8 {
    let distance = |byte: u8| (small_float(byte) - number.abs()).abs();
    let best = (0..127_u8).min_by(|a, b| {
        let order = distance(*a).total_cmp(&distance(*b));
        order.then((a % 2).cmp(&(b % 2)))
    });
    best.expect("one of them") | if number < 0.0 { 128 } else { 0 }
}

#[test]
fn numbers_are_rounded_to_eight_bits() {
    let mut random = Random(41);
    for (kind, k) in KINDS.into_iter().zip([16, 272, 1040]) {
        let mut values = random.numbers(4 * k);
        values[..k].iter_mut().for_each(|x| *x *= 1e-3);
        values[k..2 * k].fill(0.0);
        // Numbers that are exact, and such as lie in the middle of two.
        for (index, x) in values[2 * k..3 * k].iter_mut().enumerate() {
            let (lower, upper) = (index % 126, index % 126 + index % 2);
            *x = (small_float(lower as u8) + small_float(upper as u8)) as f32 / 2.0;
        }
        values[2 * k] = -448.0;
        let (from, weights) = (Memory::of(&kind.bits(&values)), Memory::<u8>::new(4 * k));
        let scales = Memory::<f32>::new(4);
        let arguments = arguments![&from, kind as usize, &weights, &scales, k];
        card().launch("pack_fp8", [4, 1, 1], 256, 32, &arguments);
        let (weights, scales) = (weights.read(), scales.read());
        assert_eq!(scales[1..3], [1.0, 1.0]);
        for (row, scale) in scales.iter().enumerate() {
            let own = values[row * k..][..k].iter().map(|x| kind.round(*x));
            let largest = own.clone().map(f32::abs).fold(0.0, f32::max);
            assert!(largest == 0.0 || *scale == largest / 448.0);
            for (found, value) in weights[row * k..].iter().zip(own) {
                let expected = nearest(f64::from(value / scale));
                assert_eq!(*found & 127, expected & 127, "{value} / {scale}");
                assert!(*found == expected || value == 0.0);
            }
        }
    }
}

#[test]
fn scales_and_numbers_of_blocks_come_apart() {
    let mut random = Random(42);
    for (kind, bytes, scales) in [(3_usize, 34, 2), (4, 20, 4), (5, 144, 16)] {
        let count = 37;
        let blocks: Vec<u8> = (0..count * bytes).map(|_| random.bits() as u8).collect();
        let from = Memory::of(&blocks);
        let (numbers, own) = (
            Memory::<u8>::new(count * (bytes - scales)),
            Memory::<u8>::new(count * scales),
        );
        let arguments = arguments![&from, kind, &numbers, &own, count as u64];
        let grid = [(count * bytes).div_ceil(512), 1, 1];
        card().launch("pack_blocks", grid, 256, 0, &arguments);
        let parts = |range: std::ops::Range<usize>| {
            let parts = blocks.chunks_exact(bytes);
            parts
                .flat_map(|block| block[range.clone()].to_vec())
                .collect::<Vec<u8>>()
        };
        assert_eq!(own.read(), parts(0..scales));
        assert_eq!(numbers.read(), parts(scales..bytes));
    }
}
