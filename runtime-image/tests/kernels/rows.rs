//! Norms, what is done number by number, and what is written to the arena.

use crate::card::{Argument, Memory, arguments, card};
use crate::numbers::{KINDS, Kind, Numbers, Random, check, pitch};

/// Widths of models, and such that no vector fits.
const WIDTHS: [usize; 10] = [1, 6, 16, 64, 77, 588, 1280, 4100, 8192, 9_001];

pub(crate) fn allowed(kind: Kind) -> impl Fn(f64) -> f64 {
    move |value| value.abs() * kind.precision() + 2e-6
}

fn blocks(width: usize) -> usize {
    width.div_ceil(1024)
}

/// Each row of `x` by `f`, which gets the row and the place in it.
fn each(x: &[f32], width: usize, f: impl Fn(&[f32], usize) -> f64) -> Vec<f64> {
    x.chunks_exact(width)
        .flat_map(|row| (0..width).map(|at| f(row, at)).collect::<Vec<_>>())
        .collect()
}

pub(crate) fn root(row: &[f32], epsilon: f64) -> f64 {
    let squares: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum();
    (squares / row.len() as f64 + epsilon).sqrt()
}

fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

#[test]
fn root_mean_square_norms_of_picked_rows() {
    let mut random = Random(1);
    for width in WIDTHS {
        for kind in KINDS {
            let (x, weight) = (random.numbers(5 * width), random.numbers(width));
            let picked = [3_u32, 0, u32::MAX, 4];
            let (from, by, picks) = (Memory::of(&x), Memory::of(&weight), Memory::of(&picked));
            let found = card().both_ways(|| {
                let out = kind.room(4, width);
                let arguments =
                    arguments![&from, &picks, &by, 1e-5_f32, &out, kind as usize, width];
                card().launch("rms_norm", [4, 1, 1], 256, 32, &arguments);
                out.read()
            });
            let row = pitch(width) * kind.bytes();
            assert!(
                found[2 * row..3 * row].iter().all(|byte| *byte == 0xff),
                "nobody's row is left alone"
            );
            let kept = [&found[..2 * row], &found[3 * row..]].concat();
            let rows: Vec<f32> = [3, 0, 4]
                .iter()
                .flat_map(|row| x[row * width..][..width].to_vec())
                .collect();
            let right = each(&rows, width, |row, at| {
                f64::from(row[at]) / root(row, 1e-5) * f64::from(weight[at])
            });
            let wrong = each(&rows, width, |row, at| {
                f64::from(row[at]) / root(row, 0.1) * f64::from(weight[at])
            });
            check(
                "rms_norm",
                &kind.rows(&Memory::of(&kept), width),
                &right,
                &wrong,
                allowed(kind),
            );
            let out = kind.room(5, width);
            let arguments = arguments![&from, (), &by, 1e-5_f32, &out, kind as usize, width];
            card().launch("rms_norm", [5, 1, 1], 256, 32, &arguments);
            let right = each(&x, width, |row, at| {
                f64::from(row[at]) / root(row, 1e-5) * f64::from(weight[at])
            });
            let wrong = each(&x, width, |row, at| {
                f64::from(row[at]) * f64::from(weight[at])
            });
            check(
                "rms_norm",
                &kind.rows(&out, width),
                &right,
                &wrong,
                allowed(kind),
            );
        }
    }
}

#[test]
fn norms_with_a_mean() {
    let mut random = Random(2);
    for width in WIDTHS {
        let mut x = random.numbers(3 * width);
        x.iter_mut().for_each(|x| *x += 0.5);
        x[width..2 * width].fill(0.0);
        let (weight, bias) = (random.numbers(width), random.numbers(width));
        let normed = |row: &[f32], at: usize, bias_of: f64| {
            let count = row.len() as f64;
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
            let variance = row
                .iter()
                .map(|x| (f64::from(*x) - mean).powi(2))
                .sum::<f64>()
                / count;
            (f64::from(row[at]) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[at]) + bias_of
        };
        let right = each(&x, width, |row, at| normed(row, at, f64::from(bias[at])));
        let wrong = each(&x, width, |row, at| normed(row, at, 0.0));
        let (by, plus) = (Memory::of(&weight), Memory::of(&bias));
        for kind in KINDS {
            let from = Memory::of(&x);
            let found = card().both_ways(|| {
                let out = kind.room(3, width);
                let arguments = arguments![&from, &by, &plus, 1e-5_f32, &out, kind as usize, width];
                card().launch("layer_norm", [3, 1, 1], 256, 32, &arguments);
                out.read()
            });
            let found = kind.rows(&Memory::of(&found), width);
            check("layer_norm", &found, &right, &wrong, |value| {
                value.abs() * kind.precision() + 2e-5
            });
        }
        let found = card().both_ways(|| {
            let x = Memory::of(&x);
            card().launch(
                "layer_norm_in_place",
                [3, 1, 1],
                256,
                32,
                &arguments![&x, &by, &plus, 1e-5_f32, width],
            );
            x.read()
        });
        check("layer_norm_in_place", &found, &right, &wrong, |value| {
            value.abs() * 2e-6 + 2e-5
        });
    }
}

#[test]
fn what_no_half_can_be_is_the_largest() {
    let values = [1e5, -1e5, f32::INFINITY, 65_519.0, -65_504.0, 7.0, 0.0, 0.0];
    let rounded = |kind: Kind, values: &[f32]| {
        let (x, out) = (Memory::of(values), kind.room(1, values.len()));
        let arguments = arguments![&x, &out, kind as usize, values.len()];
        card().launch("feed", [1, 1, 1], 256, 0, &arguments);
        kind.rows(&out, values.len())
    };
    let expected = values.map(|value| Kind::F16.round(value));
    assert_eq!(expected[..4], [65_504.0, -65_504.0, 65_504.0, 65_504.0]);
    assert_eq!(rounded(Kind::F16, &values), expected);
    assert!(rounded(Kind::F16, &[f32::NAN])[0].is_nan());
    assert!(rounded(Kind::Bf16, &values)[2].is_infinite());
}

#[test]
fn numbers_one_by_one() {
    let mut random = Random(3);
    for width in WIDTHS {
        for kind in KINDS {
            let rows = 1 + random.below(4);
            let (a, b) = (random.numbers(rows * width), random.numbers(rows * width));
            let a: Vec<f32> = a.iter().map(|x| x * 6.0).collect();
            let (x, y) = (Memory::of(&a), Memory::of(&b));
            let grid = [blocks(pitch(width)), rows, 1];
            let run = |name: &str, inputs: &[&Memory<f32>]| {
                let out = kind.room(rows, width);
                let mut arguments: Vec<_> = inputs.iter().map(|input| (*input).into()).collect();
                arguments.extend(arguments![&out, kind as usize, width]);
                card().launch(name, grid, 256, 0, &arguments);
                kind.rows(&out, width)
            };
            let numbers = |f: &dyn Fn(f64, f64) -> f64| {
                let pairs = a.iter().zip(&b);
                pairs
                    .map(|(a, b)| f(f64::from(*a), f64::from(*b)))
                    .collect::<Vec<f64>>()
            };
            let plain = |x: f64, _: f64| x;
            check(
                "feed",
                &run("feed", &[&x]),
                &numbers(&plain),
                &numbers(&|x, _| x * 1.1),
                allowed(kind),
            );
            let right = numbers(&|gate, up| silu(gate) * up);
            let wrong = numbers(&|gate, up| silu(up) * gate);
            check(
                "silu_times",
                &run("silu_times", &[&x, &y]),
                &right,
                &wrong,
                allowed(kind),
            );
            let gelu = |x: f64| x * 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2));
            let by_tanh =
                |x: f64| x * 0.5 * (1.0 + (0.797_884_56 * (x + 0.044_715 * x * x * x)).tanh());
            let found = run("gelu", &[&x]);
            check(
                "gelu",
                &found,
                &numbers(&|x, _| gelu(x)),
                &numbers(&|x, _| silu(x)),
                allowed(kind),
            );
            if kind == Kind::F32 && width > 1000 {
                check(
                    "gelu",
                    &found,
                    &numbers(&|x, _| gelu(x)),
                    &numbers(&|x, _| by_tanh(x)),
                    allowed(kind),
                );
            }
        }
    }
}

/// The error function by its series, in double precision.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

#[test]
fn sums() {
    let mut random = Random(4);
    for width in WIDTHS {
        let rows = 3;
        let (a, b, one) = (
            random.numbers(rows * width),
            random.numbers(rows * width),
            random.numbers(width),
        );
        let run =
            |name: &str, grid: [usize; 3], arguments: &dyn Fn(&Memory<f32>) -> Vec<Argument>| {
                let sum = Memory::of(&a);
                card().launch(name, grid, 256, 0, &arguments(&sum));
                sum.read()
            };
        let exact = |f: &dyn Fn(usize) -> f32| {
            (0..rows * width)
                .map(|at| f64::from(a[at]) + f64::from(f(at)))
                .collect::<Vec<f64>>()
        };
        let (x, y) = (Memory::of(&b), Memory::of(&one));
        let count = (rows * width) as u64;
        let found = run("add", [(rows * width).div_ceil(1024), 1, 1], &|sum| {
            arguments![sum, &x, count].to_vec()
        });
        check(
            "add",
            &found,
            &exact(&|at| b[at]),
            &exact(&|_| 0.0),
            allowed(Kind::F32),
        );
        let found = run("add_to_each", [blocks(width), rows, 1], &|sum| {
            arguments![sum, &y, width].to_vec()
        });
        check(
            "add_to_each",
            &found,
            &exact(&|at| one[at % width]),
            &exact(&|at| b[at]),
            allowed(Kind::F32),
        );
        let picked = Memory::of(&[2_u32, u32::MAX, 0]);
        let found = run("add_scaled", [blocks(width), rows, 1], &|sum| {
            arguments![&picked, 0.7_f32, sum, &x, width].to_vec()
        });
        let source = [2, rows, 0];
        let scaled = |at: usize, source: [usize; 3]| {
            b.get(source[at / width] * width + at % width)
                .map_or(0.0, |b| 0.7 * b)
        };
        check(
            "add_scaled",
            &found,
            &exact(&|at| scaled(at, source)),
            &exact(&|at| scaled(at, [0, rows, 2])),
            allowed(Kind::F32),
        );
        let found = run("add_scaled", [blocks(width), rows, 1], &|sum| {
            arguments![(), 0.7_f32, sum, &x, width].to_vec()
        });
        check(
            "add_scaled",
            &found,
            &exact(&|at| 0.7 * b[at]),
            &exact(&|at| b[at]),
            allowed(Kind::F32),
        );
    }
}

#[test]
fn states_are_interleaved_channel_by_channel() {
    let mut random = Random(5);
    for (width, saved) in [(64, 5), (20, 3), (7, 1), (1280, 5), (9, 8)] {
        let rows = 2;
        let last = random.numbers(rows * width);
        let states: Vec<Vec<f32>> = (0..8).map(|_| random.numbers(rows * width)).collect();
        let (from, memory) = (
            Memory::of(&last),
            states
                .iter()
                .map(|state| Memory::of(state))
                .collect::<Vec<_>>(),
        );
        for kind in KINDS {
            let whole = width * (1 + saved);
            let out = kind.room(rows, whole);
            let mut arguments = arguments![&from].to_vec();
            arguments.extend(memory.iter().enumerate().map(|(index, state)| {
                if index < saved {
                    Argument::from(state)
                } else {
                    Argument::from(())
                }
            }));
            arguments.extend(arguments![saved, &out, kind as usize, width]);
            card().launch(
                "interleave",
                [blocks(pitch(whole)), rows, 1],
                256,
                0,
                &arguments,
            );
            let by = |place: &dyn Fn(usize) -> (usize, usize)| {
                let row = |row: usize| {
                    let own = last[row * width..][..width].to_vec();
                    let others = (0..width * saved)
                        .map(place)
                        .map(|(state, channel)| states[state][row * width + channel]);
                    own.into_iter()
                        .chain(others)
                        .map(f64::from)
                        .collect::<Vec<f64>>()
                };
                (0..rows).flat_map(row).collect::<Vec<f64>>()
            };
            let right = by(&|at| (at % saved, at / saved));
            let wrong = by(&|at| (at / width, (at + 1) % width));
            check(
                "interleave",
                &kind.rows(&out, whole),
                &right,
                &wrong,
                allowed(kind),
            );
        }
    }
}

#[test]
fn heads_are_normed_in_place() {
    let mut random = Random(6);
    for (heads, width) in [(1, 16), (4, 80), (33, 128), (9, 20)] {
        let (x, weight) = (random.numbers(2 * heads * width), random.numbers(width));
        let by = Memory::of(&weight);
        let found = card().both_ways(|| {
            let x = Memory::of(&x);
            card().launch(
                "norm_heads",
                [2, heads.div_ceil(8), 1],
                256,
                0,
                &arguments![&x, &by, 1e-6_f32, heads, width],
            );
            x.read()
        });
        let right = each(&x, width, |row, at| {
            f64::from(row[at]) / root(row, 1e-6) * f64::from(weight[at])
        });
        let wrong = each(&x, width, |row, at| {
            f64::from(row[at]) * f64::from(weight[at])
        });
        check("norm_heads", &found, &right, &wrong, allowed(Kind::F32));
    }
}

#[test]
fn a_sum_and_its_norm_in_one_launch_have_the_bits_of_two() {
    let mut random = Random(8);
    for width in WIDTHS {
        for kind in KINDS {
            let (a, b) = (random.numbers(3 * width), random.numbers(3 * width));
            let (x, weight) = (Memory::of(&b), Memory::of(&random.numbers(width)));
            let two = {
                let (sum, out) = (Memory::of(&a), kind.room(3, width));
                let count = (3 * width) as u64;
                let grid = [(3 * width).div_ceil(1024), 1, 1];
                card().launch("add", grid, 256, 0, &arguments![&sum, &x, count]);
                let arguments = arguments![&sum, (), &weight, 1e-5_f32, &out, kind as usize, width];
                card().launch("rms_norm", [3, 1, 1], 256, 32, &arguments);
                (sum.read(), out.read())
            };
            let one = card().both_ways(|| {
                let (sum, out) = (Memory::of(&a), kind.room(3, width));
                let arguments = arguments![&sum, &x, &weight, 1e-5_f32, &out, kind as usize, width];
                card().launch("add_rms_norm", [3, 1, 1], 256, 32, &arguments);
                (sum.read(), out.read())
            });
            assert!(one == two && one.0 != a);
        }
    }
}
