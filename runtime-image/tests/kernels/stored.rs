//! Heads that are normed and rotated, and keys and values in their places of the arena.

use crate::card::{Argument, Memory, arguments, card};
use crate::numbers::{Kind, Numbers, Random, check};
use crate::rows::{allowed, root};

/// One layer's rows, and what becomes of them.
struct Stored {
    queries: usize,
    keys: usize,
    width: usize,
    pairs: usize,
    neighbours: bool,
    normed: bool,
    kind: Kind,
}

impl Stored {
    /// A head normed and turned.
    fn turned(&self, head: &[f32], weight: &[f32], cosines: &[f32], sines: &[f32]) -> Vec<f64> {
        let factor = if self.normed {
            1.0 / root(head, 1e-6)
        } else {
            1.0
        };
        let by = |at: usize| {
            if self.normed {
                f64::from(weight[at])
            } else {
                1.0
            }
        };
        let mut out: Vec<f64> = head
            .iter()
            .enumerate()
            .map(|(at, x)| f64::from(*x) * factor * by(at))
            .collect();
        for pair in 0..self.pairs {
            let (a, b) = if self.neighbours {
                (2 * pair, 2 * pair + 1)
            } else {
                (pair, pair + self.pairs)
            };
            let (x, y) = (out[a], out[b]);
            let (cosine, sine) = (f64::from(cosines[pair]), f64::from(sines[pair]));
            out[a] = x * cosine - y * sine;
            out[b] = x * sine + y * cosine;
        }
        out
    }

    fn check(&self, random: &mut Random) {
        let Self {
            queries,
            keys,
            width,
            pairs,
            kind,
            ..
        } = *self;
        let (rows, blocks, layers, layer) = (4, 3, 2, 1);
        let places = [70_u32, 3, u32::MAX, 33];
        let query = random.numbers(rows * queries * width);
        let (key, value) = (
            random.numbers(rows * keys * width),
            random.numbers(rows * keys * width),
        );
        let (query_norm, key_norm) = (random.numbers(width), random.numbers(width));
        let (cosines, sines) = (random.numbers(rows * pairs), random.numbers(rows * pairs));
        let part = keys * 32 * width;
        let (block, at) = (layers * 2 * part, layer * 2 * part);
        let memory = [&query, &key, &value].map(|values| Memory::of(values));
        let arena = Memory::<u8>::new(blocks * block * kind.bytes());
        let norms = [&query_norm, &key_norm].map(|norm| Memory::of(norm));
        let norm = |index: usize| {
            if self.normed {
                Argument::from(&norms[index])
            } else {
                Argument::from(())
            }
        };
        let (cosine, sine, place) = (
            Memory::of(&cosines),
            Memory::of(&sines),
            Memory::of(&places),
        );
        let mut arguments = arguments![&memory[0], &memory[1], &memory[2]].to_vec();
        arguments.extend([norm(0), norm(1)]);
        arguments.extend(arguments![
            1e-6_f32,
            &cosine,
            &sine,
            pairs,
            usize::from(self.neighbours),
            &place,
            &arena,
            kind as usize
        ]);
        arguments.extend(arguments![queries, keys, width, block as u64, at as u64]);
        card().launch(
            "store",
            [rows, (queries + 2 * keys).div_ceil(8), 1],
            256,
            8 * width * 4,
            &arguments,
        );
        let stored = kind.floats(&arena.read());
        let (new_query, new_key) = (memory[0].read(), memory[1].read());
        let mut written = 0;
        for (row, place) in places.iter().enumerate() {
            let (cosines, sines) = (
                &cosines[row * pairs..][..pairs],
                &sines[row * pairs..][..pairs],
            );
            if *place == u32::MAX {
                assert_eq!(
                    new_key[row * keys * width..][..keys * width],
                    key[row * keys * width..][..keys * width]
                );
                continue;
            }
            for head in 0..queries {
                let head = (row * queries + head) * width..(row * queries + head + 1) * width;
                let right = self.turned(&query[head.clone()], &query_norm, cosines, sines);
                let wrong: Vec<f64> = right.iter().map(|x| x * 1.1 + 0.01).collect();
                check(
                    "store",
                    &new_query[head],
                    &right,
                    &wrong,
                    allowed(Kind::F32),
                );
            }
            for head in 0..keys {
                let from = (row * keys + head) * width..(row * keys + head + 1) * width;
                let right = self.turned(&key[from.clone()], &key_norm, cosines, sines);
                let wrong: Vec<f64> = right.iter().map(|x| x * 1.1 + 0.01).collect();
                check(
                    "store",
                    &new_key[from.clone()],
                    &right,
                    &wrong,
                    allowed(Kind::F32),
                );
                let slot =
                    *place as usize / 32 * block + at + (head * 32 + *place as usize % 32) * width;
                check(
                    "store",
                    &stored[slot..slot + width],
                    &right,
                    &wrong,
                    allowed(kind),
                );
                let right: Vec<f64> = value[from].iter().map(|x| f64::from(*x)).collect();
                let wrong: Vec<f64> = right.iter().map(|x| x * 1.1 + 0.01).collect();
                check(
                    "store",
                    &stored[slot + part..slot + part + width],
                    &right,
                    &wrong,
                    allowed(kind),
                );
                written += 2 * width;
            }
        }
        let touched = stored.iter().filter(|number| !number.is_nan()).count();
        assert_eq!(touched, written, "nothing else is written");
    }
}

#[test]
fn keys_and_values_go_to_their_places() {
    let mut random = Random(7);
    let cases = [
        (4, 2, 16, 8),
        (32, 8, 128, 64),
        (0, 3, 80, 0),
        (3, 3, 64, 16),
        (7, 1, 20, 10),
        (0, 2, 128, 0),
    ];
    for (queries, keys, width, pairs) in cases {
        for kind in [Kind::F32, Kind::Bf16] {
            for (neighbours, normed) in [(false, false), (true, true), (false, true)] {
                let stored = Stored {
                    queries,
                    keys,
                    width,
                    pairs,
                    neighbours,
                    normed,
                    kind,
                };
                stored.check(&mut random);
            }
        }
    }
}
