//! Quantised blocks of GGUF files read as the `gguf` package reads them, bit for bit, by themselves and out of a file.

use std::path::{Path, PathBuf};

use chandler_runtime::compute::Arithmetic;
use chandler_runtime::compute::backend::Backend;
use chandler_runtime::compute::cpu::Cpu;
use chandler_runtime::compute::ranks::seats;
use chandler_runtime::compute::tensor::{Kind, Tensor};
use chandler_runtime::weights::Weights;
use chandler_runtime::weights::gguf::GgufFile;

/// The quantised kinds and their numbers in ggml's list of types.
const NUMBERS: [(Kind, u32); 11] = [
    (Kind::Q4_0, 2),
    (Kind::Q4_1, 3),
    (Kind::Q5_0, 6),
    (Kind::Q5_1, 7),
    (Kind::Q8_0, 8),
    (Kind::Q2_K, 10),
    (Kind::Q3_K, 11),
    (Kind::Q4_K, 12),
    (Kind::Q5_K, 13),
    (Kind::Q6_K, 14),
    (Kind::IQ4_NL, 20),
];

/// The bytes of a kind's blocks and the numbers that PyPI's `gguf` reads in them.
fn reference(kind: Kind) -> (Vec<u8>, Vec<f32>) {
    let folder = PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/gguf-quants"
    ));
    let blocks = std::fs::read(folder.join(format!("{kind:?}.blocks"))).unwrap();
    let floats = std::fs::read(folder.join(format!("{kind:?}.floats"))).unwrap();
    let floats = floats.chunks_exact(4);
    let floats = floats.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
    (blocks, floats.collect())
}

fn same_bits(kind: Kind, read: &[f32], expected: &[f32]) {
    assert_eq!(read.len(), expected.len(), "{kind:?}");
    for (index, (read, expected)) in read.iter().zip(expected).enumerate() {
        assert_eq!(
            read.to_bits(),
            expected.to_bits(),
            "{kind:?}, number {index}: {read} for {expected}"
        );
    }
}

#[test]
fn blocks_read_bit_for_bit_as_the_gguf_package_reads_them() {
    for (kind, _) in NUMBERS {
        let (blocks, expected) = reference(kind);
        let read = Tensor::new(kind, 1, expected.len(), blocks).unwrap();
        same_bits(kind, &read.floats(), &expected);
    }
}

/// Writes a GGUF file with these tensors, each of 256 columns: name, type, rows, bytes.
fn write(path: &Path, tensors: &[(String, u32, usize, Vec<u8>)]) {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    bytes.extend(text("general.architecture"));
    bytes.extend(8_u32.to_le_bytes());
    bytes.extend(text("llama"));
    let mut offset = 0_u64;
    for (name, number, rows, blocks) in tensors {
        bytes.extend(text(name));
        bytes.extend(2_u32.to_le_bytes());
        for size in [256, *rows as u64] {
            bytes.extend(size.to_le_bytes());
        }
        bytes.extend(number.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += (blocks.len() as u64).next_multiple_of(32);
    }
    for (_, _, _, blocks) in tensors {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(blocks);
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn every_type_is_read_out_of_a_file_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.gguf");
    let tensors: Vec<_> = NUMBERS
        .iter()
        .map(|(kind, number)| {
            let (blocks, expected) = reference(*kind);
            (format!("{kind:?}"), *number, expected.len() / 256, blocks)
        })
        .collect();
    write(&path, &tensors);
    let mut file = GgufFile::open(&path).unwrap();
    for (kind, _) in NUMBERS {
        let (_, expected) = reference(kind);
        let tensor = file
            .tensor(&format!("{kind:?}"), expected.len() / 256, 256)
            .unwrap();
        assert_eq!(tensor.kind(), kind);
        same_bits(kind, &tensor.floats(), &expected);
    }
}

#[test]
fn kinds_that_have_kernels_keep_their_numbers_when_they_are_packed() {
    let cpu = Cpu::new(1, seats(1).into_iter().next().unwrap(), Arithmetic::Float32);
    for kind in [Kind::Q8_0, Kind::Q4_1, Kind::IQ4_NL] {
        let (blocks, expected) = reference(kind);
        let tensor = Tensor::new(kind, 2, expected.len() / 2, blocks).unwrap();
        let matrix = cpu.matrix(&tensor).unwrap();
        let mut read = vec![0.0; expected.len()];
        for (row, read) in read.chunks_exact_mut(expected.len() / 2).enumerate() {
            matrix.read_row(row, read);
        }
        same_bits(kind, &read, &expected);
    }
}

#[test]
fn a_type_that_is_not_read_is_refused_by_its_name_and_the_tensor_s() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.gguf");
    for (number, name) in [(23, "IQ4_XS"), (4, "type 4 ")] {
        let tensor = ("blk.0.ffn_up.weight".to_owned(), number, 1, vec![0; 136]);
        write(&path, &[tensor]);
        let error = GgufFile::open(&path).err().expect("refused").to_string();
        for words in [name, "blk.0.ffn_up.weight", "IQ4_NL"] {
            assert!(error.contains(words), "{words}: {error}");
        }
    }
}
