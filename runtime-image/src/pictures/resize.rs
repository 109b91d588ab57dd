//! Antialiased bilinear resizing of bytes, with Pillow's arithmetic: first along rows, then along columns, weights as whole
//! numbers of 22 bits after the point, rounded to a byte after each pass.
//!
//! Faster crates round their weights to 15 bits and come out a step off (docs/decisions/0110).

use super::Rgb;
use super::bands::by_bands;
use crate::compute::Instructions;
use crate::compute::elementwise::by_instructions;

/// Bits after the point of a weight: of 32 bits, 8 are the pixel's and 2 keep sums from running over.
const BITS: u32 = 32 - 8 - 2;

/// The weights of the inputs of each output along one axis.
struct Filter {
    /// For each output its first input.
    firsts: Vec<usize>,
    /// For each output `taps` weights; those beyond the last input are 0.
    weights: Vec<i32>,
    taps: usize,
}

impl Filter {
    /// A triangle as wide as an output pixel is, and at least as an input pixel.
    fn new(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let narrowing = 1.0 / support;
        let taps = support.ceil() as usize * 2 + 1;
        let mut filter = Self {
            firsts: Vec::with_capacity(to),
            weights: vec![0; to * taps],
            taps: taps.min(from),
        };
        filter.weights.truncate(to * filter.taps);
        let mut weights = Vec::with_capacity(taps);
        for output in 0..to {
            let center = (output as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            weights.clear();
            weights.extend((first..end).map(|input| {
                let distance = ((input as f64 - center + 0.5) * narrowing).abs();
                (1.0 - distance).max(0.0)
            }));
            let total: f64 = weights.iter().sum();
            // So that every output has all its taps inside the row.
            let start = first.min(from - filter.taps);
            filter.firsts.push(start);
            let places = &mut filter.weights[output * filter.taps + first - start..];
            for (place, weight) in places.iter_mut().zip(&weights) {
                let weight = if total == 0.0 {
                    *weight
                } else {
                    weight / total
                };
                *place = (0.5 + weight * f64::from(1 << BITS)) as i32;
            }
        }
        filter
    }
}

fn byte(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Lines that go along rows together: four numbers a pixel each, they fill the widest registers.
const TOGETHER: usize = 4;

/// Numbers of a pixel of so many lines.
const WIDE: usize = 4 * TOGETHER;

/// Brings a picture to this size.
#[must_use]
pub fn resize(picture: &Rgb, width: usize, height: usize) -> Rgb {
    let instructions = Instructions::detect();
    let line = width * 3;
    let mut pixels;
    let across: &[u8] = if width == picture.width {
        &picture.pixels
    } else {
        let filter = Filter::new(picture.width, width);
        pixels = vec![0; line * picture.height];
        by_bands(&mut pixels, line, |first, band| {
            let mut wide = vec![0; picture.width * WIDE];
            let from =
                picture.pixels[first * picture.width * 3..].chunks(TOGETHER * picture.width * 3);
            for (from, to) in from.zip(band.chunks_mut(TOGETHER * line)) {
                let (firsts, weights) = (&filter.firsts, &filter.weights);
                for (at, from) in from.chunks_exact(picture.width * 3).enumerate() {
                    let wide = wide.as_chunks_mut::<WIDE>().0.iter_mut();
                    for (wide, from) in wide.zip(from.as_chunks::<3>().0) {
                        wide[4 * at..][..3].copy_from_slice(from);
                    }
                }
                rows(instructions, &wide, firsts, weights, filter.taps, to, line);
            }
        });
        &pixels
    };
    if height == picture.height {
        let pixels = across.to_vec();
        return Rgb {
            width,
            height,
            pixels,
        };
    }
    let filter = Filter::new(picture.height, height);
    let mut out = vec![0; line * height];
    by_bands(&mut out, line, |first, band| {
        let mut sums = vec![0; line];
        for (index, to) in band.chunks_exact_mut(line).enumerate() {
            let index = first + index;
            let weights = &filter.weights[index * filter.taps..][..filter.taps];
            let lines = &across[filter.firsts[index] * line..];
            columns(instructions, lines, weights, &mut sums, to);
        }
    });
    Rgb {
        width,
        height,
        pixels: out,
    }
}

by_instructions! {
    /// Some lines of the pass along rows; `from` has [`WIDE`] bytes a pixel, `to` three and lines of so many bytes.
    fn rows(from: &[u8], firsts: &[usize], weights: &[i32], taps: usize, to: &mut [u8], line: usize) = rows_body
}

#[inline(always)]
fn rows_body(
    from: &[u8],
    firsts: &[usize],
    weights: &[i32],
    taps: usize,
    to: &mut [u8],
    line: usize,
) {
    let pixels = from.as_chunks::<WIDE>().0;
    for (at, (weights, first)) in weights.chunks_exact(taps).zip(firsts).enumerate() {
        let mut sums = [1 << (BITS - 1); WIDE];
        for (pixel, weight) in pixels[*first..].iter().zip(weights) {
            for (sum, part) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(*part) * weight;
            }
        }
        let bytes = sums.map(byte);
        for (to, from) in to.chunks_exact_mut(line).zip(bytes.as_chunks::<4>().0) {
            to[3 * at..][..3].copy_from_slice(&from[..3]);
        }
    }
}

by_instructions! {
    /// One row of the pass along columns: a weighted sum of lines as long as `to`.
    fn columns(lines: &[u8], weights: &[i32], sums: &mut [i32], to: &mut [u8]) = columns_body
}

#[inline(always)]
fn columns_body(lines: &[u8], weights: &[i32], sums: &mut [i32], to: &mut [u8]) {
    sums.fill(1 << (BITS - 1));
    for (line, weight) in lines.chunks_exact(to.len()).zip(weights) {
        for (sum, part) in sums.iter_mut().zip(line) {
            *sum += i32::from(*part) * weight;
        }
    }
    for (to, sum) in to.iter_mut().zip(sums) {
        *to = byte(*sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_of_one_colour_keeps_it_whatever_the_sizes() {
        for (from, to) in [(1, 7), (7, 1), (5, 5), (3, 300), (301, 2), (2, 3)] {
            let picture = Rgb {
                width: from,
                height: from,
                pixels: [255, 128, 3].repeat(from * from),
            };
            let resized = resize(&picture, to, to);
            assert_eq!(resized.pixels, [255, 128, 3].repeat(to * to), "{from} {to}");
        }
    }
}
