//! A picture's bytes to what a model's vision tower reads: [`decode`] within limits, choose [`tiles`], [`resize`], pad, cut.
//!
//! The arithmetic is that of the models' reference code (Pillow's antialiased bilinear filter on bytes), so the same pixels
//! come out to the last bit. Pixels stay bytes here; the tower normalises them when it reads them.
//! Nothing here knows requests or tensors, waits or asks the network.

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::compute::Instructions;
use crate::compute::elementwise::by_instructions;
use crate::weights::LoadError;
use crate::weights::sight::Sight;

mod bands;
pub mod budget;
pub mod decode;
pub mod resize;
pub mod tiles;

use bands::by_bands;
use budget::{Budget, Kept};
pub use decode::{PictureError, Rgb};
use tiles::Fit;

/// Changes whenever the same bytes would give other pixels: pictures prepared by different rules share nothing.
const RULES: u8 = 1;

/// A picture as the vision tower reads it.
pub struct Picture {
    /// Number of its arrangement of tiles in the model's list, from 1.
    pub arrangement: usize,
    /// Tiles that show something, row by row.
    pub tiles: usize,
    /// `[tile][channel][row][column]`, as many tiles as `tiles`.
    pub pixels: Vec<u8>,
    /// What each byte of each channel stands for.
    pub values: Arc<[[f32; 256]; 3]>,
    /// Names the content: equal for pictures of equal pixels and arrangement.
    pub digest: [u8; 32],
    /// Its part of what all pictures may take; absent outside of a server.
    pub kept: Option<Kept>,
}

impl PartialEq for Picture {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for Picture {}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Picture")
            .field("arrangement", &self.arrangement)
            .field("tiles", &self.tiles)
            .finish_non_exhaustive()
    }
}

/// How a model wants its pictures.
#[derive(Clone, Debug)]
pub struct Preparation {
    /// Width and height of a tile in pixels.
    pub side: usize,
    /// Tiles that a picture has at most.
    pub most_tiles: usize,
    /// Arrangements of tiles (rows, columns) in the order of their numbers, the first of which is 1.
    pub arrangements: Vec<(usize, usize)>,
    /// What each byte of each channel stands for in the tower.
    pub values: Arc<[[f32; 256]; 3]>,
    /// What pictures may take of memory.
    pub budget: Arc<Budget>,
}

/// The part of `preprocessor_config.json` that matters here.
#[derive(Deserialize)]
struct Config {
    size: Size,
    max_image_tiles: usize,
    image_mean: [f32; 3],
    image_std: [f32; 3],
    #[serde(default = "bilinear")]
    resample: u32,
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_pad: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
}

#[derive(Deserialize)]
struct Size {
    height: usize,
    width: usize,
}

/// Pillow's number of the bilinear filter.
const BILINEAR: u32 = 2;

fn bilinear() -> u32 {
    BILINEAR
}

fn yes() -> bool {
    true
}

impl Preparation {
    /// Reads a model's `preprocessor_config.json`; the rest is in its `config.json`.
    ///
    /// # Errors
    /// When the file is missing, damaged, asks for something that is not done here, or does not fit the tower.
    pub fn read(path: &Path, sight: &Sight) -> Result<Self, LoadError> {
        let text = std::fs::read(path).map_err(|source| LoadError::Open {
            path: path.to_owned(),
            source,
        })?;
        let fail = |detail: String| LoadError::Description {
            path: path.to_owned(),
            detail,
        };
        let config: Config =
            serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
        let side = config.size.height;
        if side != config.size.width || side != sight.side {
            return Err(fail(format!(
                "tiles have {}x{side} pixels, config.json says that the tower takes {1}x{1}",
                config.size.width, sight.side
            )));
        }
        if !(1..=sight.tiles).contains(&config.max_image_tiles) {
            return Err(fail(format!(
                "max_image_tiles is {}, expected 1 to {}",
                config.max_image_tiles, sight.tiles
            )));
        }
        let arrangements = sight.arrangements.clone();
        let whole = config.do_resize && config.do_pad && config.do_rescale && config.do_normalize;
        if config.resample != BILINEAR || !whole {
            return Err(fail(
                "only resample 2 (bilinear) with do_resize, do_pad, do_rescale and do_normalize is supported"
                    .to_owned(),
            ));
        }
        if config.image_std.iter().any(|part| *part <= 0.0) {
            return Err(fail("image_std has a part that is not positive".to_owned()));
        }
        let missing = tiles::canvases(config.max_image_tiles)
            .into_iter()
            .find(|canvas| !arrangements.contains(canvas));
        if let Some((rows, columns)) = missing {
            return Err(fail(format!(
                "config.json lists no aspect ratio of {rows} rows and {columns} columns, which {} tiles may have",
                config.max_image_tiles
            )));
        }
        Ok(Self {
            side,
            most_tiles: config.max_image_tiles,
            arrangements,
            values: Arc::new(normalised(config.image_mean, config.image_std)),
            budget: Arc::default(),
        })
    }

    /// Fits a decoded picture into tiles.
    #[must_use]
    pub fn prepare(&self, picture: &Rgb) -> Picture {
        let Fit {
            rows,
            columns,
            width,
            height,
        } = tiles::fit(picture.width, picture.height, self.side, self.most_tiles);
        let resized = resize::resize(picture, width, height);
        let side = self.side;
        let tile = 3 * side * side;
        let mut pixels = vec![0; rows * columns * tile];
        let digests = by_bands(&mut pixels, tile, |first, band| {
            let digest = |(index, pixels): (usize, &mut [u8])| -> [u8; 32] {
                let (row, column) = ((first + index) / columns, (first + index) % columns);
                cut(&resized, row * side, column * side, side, pixels);
                Sha256::digest(pixels).into()
            };
            let tiles = band.chunks_exact_mut(tile).enumerate();
            tiles.map(digest).collect::<Vec<_>>()
        });
        let arrangement = self
            .arrangements
            .iter()
            .position(|arrangement| *arrangement == (rows, columns))
            .map_or(1, |index| index + 1);
        let mut hash = Sha256::new();
        hash.update([RULES]);
        hash.update((arrangement as u64).to_le_bytes());
        hash.update((side as u64).to_le_bytes());
        for digest in digests.iter().flatten() {
            hash.update(digest);
        }
        Picture {
            arrangement,
            tiles: rows * columns,
            pixels,
            values: Arc::clone(&self.values),
            digest: hash.finalize().into(),
            kept: None,
        }
    }

    /// Decodes and prepares a picture; waits while others take what pictures may take of memory.
    ///
    /// # Errors
    /// When it is of an unknown format, damaged or too large, or requests keep too many pictures.
    pub fn read_picture(&self, bytes: &[u8]) -> Result<Arc<Picture>, PictureError> {
        let head = decode::head(bytes)?;
        let prepared = self
            .budget
            .decoding(head.bytes, || Ok(self.prepare(&decode::decode(bytes)?)));
        let mut picture = prepared?;
        let size = picture.pixels.len() as u64;
        picture.kept = Some(self.budget.keep(size).ok_or(PictureError::Full)?);
        Ok(Arc::new(picture))
    }
}

/// Writes what a tile shows of a picture, from this row and column on, channel by channel.
fn cut(picture: &Rgb, row: usize, column: usize, side: usize, tile: &mut [u8]) {
    let width = side.min(picture.width.saturating_sub(column));
    let (red, others) = tile.split_at_mut(side * side);
    let (green, blue) = others.split_at_mut(side * side);
    let lines = picture.pixels.chunks_exact(3 * picture.width).skip(row);
    for (y, line) in lines.take(side).enumerate() {
        let channels = [&mut *red, &mut *green, &mut *blue];
        let [red, green, blue] = channels.map(|channel| &mut channel[y * side..][..width]);
        if width > 0 {
            part(
                Instructions::detect(),
                &line[3 * column..],
                red,
                green,
                blue,
            );
        }
    }
}

by_instructions! {
    /// Parts the channels of as many pixels as there is room for.
    fn part(pixels: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) = part_body
}

#[inline(always)]
fn part_body(pixels: &[u8], red: &mut [u8], green: &mut [u8], blue: &mut [u8]) {
    let channels = red.iter_mut().zip(green).zip(blue);
    for (((red, green), blue), pixel) in channels.zip(pixels.as_chunks::<3>().0) {
        [*red, *green, *blue] = *pixel;
    }
}

/// `(byte / 255 - mean) / deviation` of each channel, in single precision.
fn normalised(mean: [f32; 3], deviation: [f32; 3]) -> [[f32; 256]; 3] {
    std::array::from_fn(|channel| {
        std::array::from_fn(|byte| (byte as f32 / 255.0 - mean[channel]) / deviation[channel])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preparation(side: usize) -> Preparation {
        Preparation {
            side,
            most_tiles: 4,
            arrangements: tiles::canvases(4),
            values: Arc::new(normalised([0.5; 3], [0.5; 3])),
            budget: Arc::default(),
        }
    }

    #[test]
    fn tiles_are_cut_row_by_row_and_padded_with_black_on_the_right_and_below() {
        // 3 x 2 pixels stay as they are on a canvas of 2 x 1 tiles of 2 pixels.
        let picture = Rgb {
            width: 3,
            height: 2,
            pixels: (1..=18).collect(),
        };
        let prepared = preparation(2).prepare(&picture);
        assert_eq!((prepared.tiles, prepared.arrangement), (2, 2));
        assert_eq!(prepared.pixels[..4], [1, 4, 10, 13]);
        assert_eq!(prepared.pixels[12..16], [7, 0, 16, 0]);
    }

    #[test]
    fn a_digest_tells_arrangement_and_pixels() {
        let of = |width: usize, height: usize, first: u8| {
            let mut pixels = vec![9; width * height * 3];
            pixels[0] = first;
            let picture = Rgb {
                width,
                height,
                pixels,
            };
            preparation(4).prepare(&picture).digest
        };
        assert_eq!(of(8, 4, 1), of(8, 4, 1));
        assert_ne!(of(8, 4, 1), of(8, 4, 2));
        assert_ne!(of(8, 4, 9), of(4, 8, 9));
    }
}
