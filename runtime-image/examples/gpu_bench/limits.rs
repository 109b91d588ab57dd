//! What a card can do at most, measured in the run whose results are compared with it.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use chandler_runtime::compute::cuda::card::{Buffer, Card, Gemm, Number};

/// Bytes of the buffers that are copied: several times what caches hold.
const COPIED: usize = 2 << 30;
/// Rows, outputs and inputs of the large product.
const SIDE: usize = 8_192;
/// Bytes of one piece that comes from the host.
const PIECE: usize = 64 << 20;
/// Times that each is done.
const TIMES: usize = 10;

/// Limits, each a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes that the card's memory moves: read and written by a copy.
    pub(crate) memory: f64,
    /// Operations of a large dense product in BF16.
    pub(crate) dense: f64,
    /// Bytes from pinned memory of the host.
    pub(crate) pinned: f64,
}

/// Measures them.
///
/// # Errors
/// When the card fails.
pub(crate) fn measure(card: &Arc<dyn Card>) -> Result<Limits, Box<dyn Error>> {
    Ok(Limits {
        memory: memory(card)?,
        dense: dense(card)?,
        pinned: pinned(card)?,
    })
}

/// Seconds of one time, after a first that is not counted.
fn timed(
    card: &Arc<dyn Card>,
    mut work: impl FnMut() -> Result<(), Box<dyn Error>>,
) -> Result<f64, Box<dyn Error>> {
    work()?;
    card.synchronise()?;
    let begin = Instant::now();
    for _ in 0..TIMES {
        work()?;
    }
    card.synchronise()?;
    Ok(begin.elapsed().as_secs_f64() / TIMES as f64)
}

fn memory(card: &Arc<dyn Card>) -> Result<f64, Box<dyn Error>> {
    let from = Buffer::zeroed(card, COPIED)?;
    let to = Buffer::zeroed(card, COPIED)?;
    let seconds = timed(card, || {
        Ok(card.copy(from.address(), to.address(), COPIED)?)
    })?;
    Ok(2.0 * COPIED as f64 / seconds)
}

fn dense(card: &Arc<dyn Card>) -> Result<f64, Box<dyn Error>> {
    // Zeros would be multiplied with less power, and so faster.
    let mut state = 1_u32;
    let numbers: Vec<u8> = (0..SIDE * SIDE)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            let number = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            half::bf16::from_f32(number).to_le_bytes()
        })
        .collect();
    let (matrix, input) = (Buffer::of(card, &numbers)?, Buffer::of(card, &numbers)?);
    let out = Buffer::new(card, SIDE * SIDE * 4)?;
    let gemm = Gemm {
        number: Number::Bf16,
        rows: SIDE,
        outputs: SIDE,
        inputs: SIDE,
        input: input.address(),
        matrix: matrix.address(),
        out: out.address(),
        stride: SIDE,
    };
    let seconds = timed(card, || {
        let done = card.gemm(&gemm)?;
        done.then_some(())
            .ok_or_else(|| "cuBLASLt does not support the large product".into())
    })?;
    Ok(2.0 * (SIDE as f64).powi(3) / seconds)
}

fn pinned(card: &Arc<dyn Card>) -> Result<f64, Box<dyn Error>> {
    let to = Buffer::new(card, PIECE)?;
    let mut pieces = [card.pinned(PIECE)?, card.pinned(PIECE)?];
    let seconds = timed(card, || {
        for piece in &mut pieces {
            piece.wait()?;
            piece.upload(PIECE, to.address())?;
        }
        Ok(pieces.iter_mut().try_for_each(|piece| piece.wait())?)
    })?;
    Ok((pieces.len() * PIECE) as f64 / seconds)
}

/// Bytes a second that all processors together read of a folder's weights, which have been read before.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn read_speed(folder: &Path) -> Result<f64, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            files.push(path);
        }
    }
    let begin = Instant::now();
    let bytes = std::thread::scope(|scope| {
        let readers: Vec<_> = files
            .iter()
            .map(|path| scope.spawn(move || read_through(path)))
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap_or(Ok(0)))
            .sum::<std::io::Result<usize>>()
    })?;
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

fn read_through(path: &Path) -> std::io::Result<usize> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 8 << 20];
    let mut all = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(all),
            read => all += read,
        }
    }
}
