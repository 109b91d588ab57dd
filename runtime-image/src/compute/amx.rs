//! Matrix units (AMX): registers of sixteen rows of 64 bytes each, tiles, that are multiplied with one another.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

use super::activation::{Activation, Form};
use super::matmul::{Product, multiply};
use super::matrix::{BLOCK, Float, GROUP, Matrix};
use super::pool::Pool;
use super::{Bf16, Instructions, wave};

pub(super) mod bf16;

/// Whether a processor with [`Instructions::Avx512`] has these units too, the kernel grants them, and a small product is right.
pub(super) fn usable() -> bool {
    present() && granted() && right()
}

fn present() -> bool {
    /// Bits of AMX-BF16 and AMX-TILE in EDX of leaf 7.
    const NEEDED: u32 = 1 << 22 | 1 << 24;
    __cpuid_count(0, 0).eax >= 7
        && __cpuid_count(7, 0).edx & NEEDED == NEEDED
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bf16")
}

/// Asks the kernel to let this process use the tiles (Linux: `arch_prctl`), which costs memory in each of its threads that does.
#[cfg(target_os = "linux")]
fn granted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let answer: isize;
    // SAFETY: a system call that reads and writes no memory of ours.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    answer == 0
}

#[cfg(not(target_os = "linux"))]
fn granted() -> bool {
    false
}

/// Compares a product with that of 32-bit inputs.
fn right() -> bool {
    let (rows, columns, outputs) = (2 * GROUP + 3, 3 * BLOCK, 2 * GROUP + 5);
    let (weights, numbers) = (wave(outputs * columns, 0.7), wave(rows * columns, 1.3));
    let mut pool = Pool::new(1);
    let mut product = |matrix: &Matrix, set: Instructions| {
        let mut input = Activation::new(rows, columns);
        let form = Form::of(&[matrix], set.multiply_bf16());
        input.fill(&mut pool, set, rows, form, &|row, out| {
            out.copy_from_slice(&numbers[row * columns..][..columns]);
        });
        let mut out = vec![0.0; rows * outputs];
        let product = Product {
            matrix,
            out: &mut out,
        };
        multiply(&mut pool, set, &input, rows, &mut [product]);
        out
    };
    let matrix = Matrix::from_floats(outputs, columns, &weights, Float::Bf16);
    let exact = product(&matrix, Instructions::Scalar);
    let rounded = product(&matrix, Instructions::Avx512(Bf16::Tiles));
    // Each of the inputs, at most 1, is rounded by up to 1/256 of it.
    let near = |(one, other): (&f32, &f32)| (one - other).abs() < columns as f32 / 256.0;
    exact.iter().zip(&rounded).all(near)
}

/// Rows of a tile, and its 32-bit numbers (or pairs of bfloat16) in each.
pub(super) type Shape = (usize, usize);

/// What the tiles' shapes are loaded from.
#[repr(C, align(64))]
struct Shapes([u8; 64]);

/// Shapes the eight tiles anew, which makes them zero.
///
/// # Safety
/// The units are usable. A tile has 1 to 16 rows of 1 to 16 numbers.
pub(super) unsafe fn shape(tiles: [Shape; 8]) {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    for (register, (rows, numbers)) in tiles.into_iter().enumerate() {
        bytes[48 + register] = rows as u8;
        bytes[16 + 2 * register] = (numbers * size_of::<f32>()) as u8;
    }
    let shapes = Shapes(bytes);
    // SAFETY: by this function's contract; the compiler itself never uses tiles.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly)) };
}

/// Lets go of the tiles: threads without tiles in use are cheaper to switch.
///
/// # Safety
/// The units are usable.
pub(super) unsafe fn release() {
    // SAFETY: by this function's contract.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}
