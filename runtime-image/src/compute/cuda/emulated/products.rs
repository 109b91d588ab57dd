//! Large products, which a real card's library computes.

use std::collections::BTreeMap;

use half::{bf16, f16};

use super::pointer;
use crate::compute::cuda::card::{ALIGNMENT, Address, CardError, Gemm, Number};

/// Refuses numbers that begin elsewhere than promised in the room that was given, or end behind it.
pub(super) fn fits(product: &Gemm, taken: &BTreeMap<u64, usize>) -> Result<(), CardError> {
    let size = product.number.bytes();
    let (rows, outputs) = (product.rows, product.outputs);
    for (what, at, bytes) in [
        ("input", product.input, rows * product.inputs * size),
        ("matrix", product.matrix, outputs * product.inputs * size),
        (
            "out",
            product.out,
            ((rows - 1) * product.stride + outputs) * 4,
        ),
    ] {
        let room = taken.range(..=at.0).next_back();
        let Some((offset, room)) = room.map(|(start, room)| ((at.0 - start) as usize, *room))
        else {
            return Err(CardError::Failed(format!(
                "{what} of {product:?} is nowhere"
            )));
        };
        if !offset.is_multiple_of(ALIGNMENT) || offset + bytes > room {
            return Err(CardError::Failed(format!(
                "{what} of {product:?}: {bytes} bytes from byte {offset} of {room}"
            )));
        }
    }
    Ok(())
}

/// Sums in eight lanes, added at the end.
pub(super) fn gemm(product: &Gemm) {
    const LANES: usize = 8;
    let (rows, outputs, inputs) = (product.rows, product.outputs, product.inputs);
    let read = |at: Address, count: usize| -> Vec<f32> {
        let start = pointer(at);
        // SAFETY: callers name as many numbers of this card's memory.
        let bytes = unsafe { std::slice::from_raw_parts(start, count * product.number.bytes()) };
        let halves = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match product.number {
            Number::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            Number::F16 => halves.map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Number::Bf16 => halves.map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
        }
    };
    let (input, matrix) = (
        read(product.input, rows * inputs),
        read(product.matrix, outputs * inputs),
    );
    for (row, input) in input.chunks_exact(inputs).enumerate() {
        for (output, weights) in matrix.chunks_exact(inputs).enumerate() {
            let mut lanes = [0_f32; LANES];
            for (input, weights) in input.chunks(LANES).zip(weights.chunks(LANES)) {
                for ((lane, input), weight) in lanes.iter_mut().zip(input).zip(weights) {
                    *lane += input * weight;
                }
            }
            let at = product.out.after((row * product.stride + output) * 4);
            // SAFETY: as above; `out` has `rows` rows of `stride` numbers.
            unsafe { pointer(at).cast::<f32>().write(lanes.iter().sum()) };
        }
    }
}
