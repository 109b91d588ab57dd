//! Products with matrices of every kind, and their numbers one by one.

use half::bf16;

use crate::card::{Argument, Memory, arguments, card};
use crate::matrices::{Matrix, name, small_float};
use crate::numbers::{KINDS, Kind, Numbers, Random, check, pitch};

/// How a kernel of products is launched: outputs and rows of a block, bytes of shared memory.
fn shape(kernel: &str) -> (usize, usize, usize) {
    match kernel {
        "thin_f32" => (32, 8, 33_792),
        _ if kernel.ends_with("_16") => (32, 16, 16_384),
        _ => (16, 8, 4_096),
    }
}

/// The products of up to three matrices.
fn thin(kernel: &str, matrices: &[Matrix], x: &Memory<u8>, rows: usize) -> Vec<Vec<f32>> {
    let (outputs, together, shared) = shape(kernel);
    let outs: Vec<Memory<f32>> = matrices
        .iter()
        .map(|matrix| Memory::new(rows * matrix.outputs))
        .collect();
    let mut arguments: Vec<Argument> = Vec::new();
    for index in 0..3 {
        match (matrices.get(index), outs.get(index)) {
            (Some(matrix), Some(out)) => {
                arguments.extend(arguments![
                    &matrix.weights,
                    &matrix.scales,
                    out,
                    matrix.outputs
                ]);
            }
            _ => arguments.extend(arguments![(), (), (), 0_usize]),
        }
    }
    arguments.extend(arguments![x, matrices[0].columns, rows]);
    let blocks = matrices
        .iter()
        .map(|matrix| matrix.outputs.div_ceil(outputs))
        .sum();
    card().launch(
        kernel,
        [blocks, rows.div_ceil(together), 1],
        256,
        shared,
        &arguments,
    );
    outs.iter().map(Memory::read).collect()
}

/// Rows as products take them: rounded, filled up with zeros.
fn rows_of(random: &mut Random, kind: Kind, rows: usize, width: usize) -> Vec<f32> {
    let row = |_| {
        let mut row: Vec<f32> = random
            .numbers(width)
            .iter()
            .map(|x| kind.round(*x))
            .collect();
        row.resize(pitch(width), 0.0);
        row
    };
    (0..rows).flat_map(row).collect()
}

fn check_products(what: &str, found: &[f32], matrix: &Matrix, x: &[f32], rows: usize) {
    let (right, sizes) = matrix.products(x, rows);
    // The next output's products.
    let wrong: Vec<f64> = right
        .iter()
        .cycle()
        .skip(1)
        .take(right.len())
        .copied()
        .collect();
    let parts = |exact: &[f64]| {
        exact
            .iter()
            .zip(&sizes)
            .map(|(exact, size)| exact / size.max(1e-9))
            .collect::<Vec<f64>>()
    };
    let scaled: Vec<f32> = found
        .iter()
        .zip(&sizes)
        .map(|(found, size)| found / size.max(1e-9) as f32)
        .collect();
    let wrong = if right.len() > 1 {
        parts(&wrong)
    } else {
        vec![2.0]
    };
    check(what, &scaled, &parts(&right), &wrong, |_| 2e-6);
}

fn kernels(format: Kind) -> Vec<String> {
    let name = name(format);
    match format {
        Kind::F32 => vec!["thin_f32".to_owned()],
        _ => [8, 16].map(|rows| format!("thin_{name}_{rows}")).to_vec(),
    }
}

#[test]
fn products_of_few_rows() {
    let mut random = Random(11);
    for format in Kind::ALL {
        for (width, outputs, rows) in [
            (64, 48, 1),
            (588, 33, 3),
            (160, 16, 8),
            (2048, 1, 9),
            (768, 130, 17),
            (8, 7, 2),
            (14_336, 20, 2),
            (3, 4, 1),
        ] {
            let width = width / format.multiple() * format.multiple();
            if width == 0 {
                continue;
            }
            let matrix = Matrix::random(format, &mut random, outputs, width);
            let x = rows_of(&mut random, format.input(), rows, width);
            let input = Memory::of(&format.input().bits(&x));
            let matrices = [matrix];
            let mut all = Vec::new();
            for kernel in kernels(format) {
                let found = card()
                    .both_ways(|| thin(&kernel, &matrices, &input, rows))
                    .remove(0);
                check_products(
                    &format!("{kernel} {width} {outputs} {rows}"),
                    &found,
                    &matrices[0],
                    &x,
                    rows,
                );
                all.push(found);
            }
            assert!(
                all.iter().all(|found| *found == all[0]),
                "{format:?}: the same bits by both"
            );
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let mut random = Random(12);
    for format in Kind::ALL {
        let width = 512;
        let matrices = [Matrix::random(format, &mut random, 40, width)];
        let x = rows_of(&mut random, format.input(), 11, width);
        let bits = format.input().bits(&x);
        for kernel in kernels(format) {
            let together = thin(&kernel, &matrices, &Memory::of(&bits), 11).remove(0);
            for row in [0, 7, 10] {
                let bytes = width * format.input().bytes();
                let alone = thin(
                    &kernel,
                    &matrices,
                    &Memory::of(&bits[row * bytes..][..bytes]),
                    1,
                )
                .remove(0);
                assert_eq!(alone, together[row * 40..][..40]);
            }
        }
    }
}

#[test]
fn several_matrices_in_one_launch() {
    let mut random = Random(13);
    for format in Kind::ALL {
        let (width, rows) = (256, 5);
        let x = rows_of(&mut random, format.input(), rows, width);
        let input = Memory::of(&format.input().bits(&x));
        for outputs in [vec![40, 16], vec![33, 8, 70]] {
            let matrices: Vec<Matrix> = outputs
                .iter()
                .map(|outputs| Matrix::random(format, &mut random, *outputs, width))
                .collect();
            for kernel in kernels(format) {
                for (found, matrix) in thin(&kernel, &matrices, &input, rows).iter().zip(&matrices)
                {
                    check_products(&kernel, found, matrix, &x, rows);
                }
            }
        }
    }
}

#[test]
fn products_of_many_rows_have_the_bits_of_few() {
    let mut random = Random(14);
    for format in [Kind::Bf16, Kind::F16] {
        for (width, outputs, rows) in [(64, 64, 64), (588, 200, 70), (1312, 129, 20), (24, 5, 130)]
        {
            let matrices = [Matrix::random(format, &mut random, outputs, width)];
            let x = rows_of(&mut random, format.input(), rows, width);
            let input = Memory::of(&format.input().bits(&x));
            let found = card().both_ways(|| {
                let out = Memory::<f32>::new(rows * outputs);
                let matrix = &matrices[0];
                let arguments =
                    arguments![&matrix.weights, &input, &out, outputs, matrix.columns, rows];
                let grid = [outputs.div_ceil(128), rows.div_ceil(64), 1];
                card().launch(
                    &format!("gemm_{}", name(format)),
                    grid,
                    256,
                    73_728,
                    &arguments,
                );
                out.read()
            });
            check_products("gemm", &found, &matrices[0], &x, rows);
            assert_eq!(
                found,
                thin(
                    &format!("thin_{}_16", name(format)),
                    &matrices,
                    &input,
                    rows
                )
                .remove(0)
            );
        }
    }
}

#[test]
fn rows_of_tables_and_matrices_as_floats() {
    let mut random = Random(15);
    for format in Kind::ALL {
        let width = if format.multiple() > 100 { 512 } else { 96 };
        let matrix = Matrix::random(format, &mut random, 20, width);
        let tokens = [19_u32, 0, 7];
        let (kind, picked) = (format as usize, Memory::of(&tokens));
        let out = Memory::<f32>::new(3 * width);
        let arguments = arguments![
            &matrix.weights,
            &matrix.scales,
            kind,
            &picked,
            &out,
            width,
            matrix.columns
        ];
        card().launch("embed", [3, 1, 1], 256, 0, &arguments);
        let row = |token: u32| matrix.numbers[token as usize * width..][..width].to_vec();
        let right: Vec<f64> = tokens.iter().flat_map(|token| row(*token)).collect();
        let wrong: Vec<f64> = tokens
            .iter()
            .flat_map(|token| row(*token / 2 + 1))
            .collect();
        check("embed", &out.read(), &right, &wrong, |value| {
            value.abs() * 1e-6 + 1e-7
        });
        if format.multiple() == 1 {
            continue;
        }
        let out = Memory::<u8>::new(5 * width * 2);
        let arguments = arguments![&matrix.weights, &matrix.scales, kind, &out, 15_usize, width];
        card().launch(
            "dequantise",
            [width.div_ceil(1024), 5, 1],
            256,
            0,
            &arguments,
        );
        let right = &matrix.numbers[15 * width..];
        let wrong = &matrix.numbers[14 * width..][..5 * width];
        check(
            "dequantise",
            &Kind::Bf16.floats(&out.read()),
            right,
            wrong,
            |value| value.abs() / 256.0 + 1e-7,
        );
        assert!(bf16::EPSILON.to_f32() == 1.0 / 128.0);
    }
}

#[test]
fn every_number_of_eight_bits_is_read_right() {
    // All bytes of FP8 that are numbers, through the tensor cores' path as well.
    let bytes: Vec<u8> = (0..=255)
        .filter(|byte| byte & 127 != 127)
        .chain([0, 0])
        .collect();
    let columns = bytes.len();
    let matrices = [Matrix {
        kind: Kind::Fp8,
        outputs: 1,
        columns,
        weights: Memory::of(&bytes),
        scales: Memory::of(&1.0_f32.to_le_bytes()),
        numbers: bytes.iter().map(|byte| small_float(*byte)).collect(),
    }];
    assert_eq!(matrices[0].kind, Kind::Fp8);
    for place in 0..columns {
        let mut x = vec![0.0; columns];
        x[place] = 1.0;
        let found = thin(
            "thin_fp8_8",
            &matrices,
            &Memory::of(&Kind::Bf16.bits(&x)),
            1,
        )
        .remove(0);
        assert_eq!(
            f64::from(found[0]),
            matrices[0].numbers[place],
            "byte {}",
            bytes[place]
        );
    }
}

#[test]
fn gates_in_one_launch_have_the_bits_of_three() {
    let mut random = Random(16);
    for format in Kind::ALL.into_iter().skip(1) {
        for (outputs, rows) in [(48, 1), (33, 8), (72, 19)] {
            let width = 512;
            let matrices = [0, 1].map(|_| Matrix::random(format, &mut random, outputs, width));
            let x = rows_of(&mut random, format.input(), rows, width);
            let input = Memory::of(&format.input().bits(&x));
            for (together, shared) in [(8, 8_192), (16, 16_384)] {
                let kernel = format!("thin_{}_{together}", name(format));
                let [gate, up] = [0, 1].map(|index| {
                    Memory::of(&thin(&kernel, &matrices[index..=index], &input, rows)[0])
                });
                for kind in KINDS {
                    let (apart, at_once) = (kind.room(rows, outputs), kind.room(rows, outputs));
                    let arguments = arguments![&gate, &up, &apart, kind as usize, outputs];
                    let grid = [pitch(outputs).div_ceil(1024), rows, 1];
                    card().launch("silu_times", grid, 256, 0, &arguments);
                    let mut arguments: Vec<Argument> = matrices
                        .iter()
                        .flat_map(|matrix| arguments![&matrix.weights, &matrix.scales])
                        .collect();
                    arguments.extend(arguments![&input, &at_once, kind as usize]);
                    arguments.extend(arguments![outputs, matrices[0].columns, rows]);
                    let grid = [outputs.div_ceil(16), rows.div_ceil(together), 1];
                    card().launch(&format!("{kernel}_gated"), grid, 256, shared, &arguments);
                    let found = kind.rows(&at_once, outputs);
                    assert_eq!(found, kind.rows(&apart, outputs), "{kernel}");
                    assert!(found.iter().any(|number| *number != 0.0));
                }
            }
        }
    }
}
