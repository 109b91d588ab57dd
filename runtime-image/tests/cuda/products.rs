//! Large products: whole, in parts, and by own kernels where the card has no way of its own.

use std::sync::Arc;

use chandler_runtime::compute::backend::{Backend, Product};
use chandler_runtime::compute::cuda::matrix::Floats;
use chandler_runtime::compute::cuda::{Cuda, Settings};
use chandler_runtime::compute::tensor::{Kind, Tensor};
use chandler_runtime::compute::vision::Vision;

use crate::{Emulated, card, settings};

const ROWS: usize = 20;
const COLUMNS: usize = 160;
const OUTPUTS: usize = 500;

fn numbers(count: usize) -> impl Iterator<Item = f32> {
    (0..count).map(|at| ((at * 37 + 11) % 97) as f32 / 97.0 - 0.5)
}

/// Products of some rows with a matrix.
fn product(card: &Emulated, settings: Settings) -> Vec<f32> {
    let mut backend = Cuda::new(Arc::new(card.clone()), settings).unwrap();
    let bytes = numbers(OUTPUTS * COLUMNS).flat_map(f32::to_le_bytes);
    let tensor = Tensor::new(Kind::F32, OUTPUTS, COLUMNS, bytes.collect()).unwrap();
    let matrix = backend.matrix(&tensor).unwrap();
    let mut input = backend.input(ROWS, COLUMNS);
    let values: Vec<f32> = numbers(ROWS * COLUMNS).collect();
    backend.put_input(&values, ROWS, &matrix, &mut input);
    let mut out = backend.rows(ROWS, OUTPUTS);
    let product = Product {
        matrix: &matrix,
        out: &mut out,
    };
    backend.multiply(&input, ROWS, &mut [product]);
    backend.read(ROWS, &out).unwrap().to_vec()
}

#[test]
fn parts_of_a_product_begin_where_the_library_wants_them_and_give_the_same_bits() {
    let large = Settings {
        scratch: 1 << 24,
        ..settings(Floats::Fp8)
    };
    let whole = product(&card(), large);
    for (scratch, parts) in [(50_000, 4), (1 << 16, 3), (64 * 2 * COLUMNS, 8)] {
        let card = card();
        let found = product(&card, Settings { scratch, ..large });
        assert!(found == whole, "{scratch}");
        assert_eq!(card.products(), parts, "{scratch}");
    }
}

#[test]
fn own_kernels_compute_what_the_library_does_not() {
    // The library's factors of eight bits are rounded to BF16 once more.
    let close = |found: &[f32], whole: &[f32]| {
        let mut pairs = found.iter().zip(whole);
        pairs.all(|(found, whole)| (found - whole).abs() < 0.03)
    };
    for floats in [Floats::F32, Floats::Bf16, Floats::F16, Floats::Fp8] {
        let whole = product(&card(), settings(floats));
        let card = card();
        card.without_products();
        let found = product(&card, settings(floats));
        assert_eq!(card.products(), 0);
        assert!(close(&found, &whole), "{floats:?}");
    }
    // Nor where not even one part has room.
    let small = Settings {
        scratch: 1 << 12,
        ..settings(Floats::Fp8)
    };
    let card = card();
    let found = product(&card, small);
    assert!(close(
        &found,
        &product(&crate::card(), settings(Floats::Fp8))
    ));
    assert_eq!(card.products(), 0);
}
