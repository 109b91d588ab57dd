//! A file's bytes to red, green and blue: PNG, JPEG, WebP and GIF (its first frame), told apart by content alone.
//!
//! Sizes are read and checked before any pixel is decoded. Error texts are fixed: nothing that a decoder says reaches a
//! client. Transparency is laid onto white; colour profiles are passed over; a photograph is turned as its EXIF
//! orientation says; of 16 bits the upper eight count.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat, Limits};
use libjpeg_turbo_rs::{DecodeLimits, PixelFormat};

/// Pixels that a picture may have: 64 mega, more than cameras take.
pub const MOST_PIXELS: u64 = 1 << 26;

/// Bytes that a decoded picture and its decoder may take.
pub const MOST_BYTES: u64 = 1 << 29;

/// Passes over the whole picture that a JPEG may take; encoders write ten.
const MOST_SCANS: usize = 100;

/// Pixels on a side; formats have 65,535 at most.
const LONGEST_SIDE: u32 = u16::MAX as u32;

/// A decoded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// In pixels, at least 1.
    pub width: usize,
    /// In pixels, at least 1.
    pub height: usize,
    /// `[row][column][channel]`.
    pub pixels: Vec<u8>,
}

/// Why a picture cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    /// No bytes.
    #[error("it is empty")]
    Empty,
    /// The first bytes are of no format that is read.
    #[error("it is no PNG, JPEG, WebP or GIF")]
    Format,
    /// Larger than is taken.
    #[error(
        "it has {width}x{height} pixels; at most {MOST_PIXELS} pixels and {LONGEST_SIDE} on a side are taken"
    )]
    TooLarge {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// A side of no length.
    #[error("it has {width}x{height} pixels, expected at least 1x1")]
    NoPixels {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// Requests keep as many pictures as this process takes.
    #[error("this server holds as many pictures as it takes; try again later")]
    Full,
    /// Cut short, inconsistent, or using a feature that is not read.
    #[error("it is damaged, cut short, or stored in a way that is not read")]
    Damaged,
}

/// What a picture's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Bytes that decoding takes at most.
    pub bytes: u64,
}

/// A file whose head was read.
enum Opened<'a> {
    Jpeg(Box<libjpeg_turbo_rs::Decoder<'a>>),
    Other(Box<dyn ImageDecoder + 'a>),
}

fn open(bytes: &[u8]) -> Result<(Opened<'_>, Head), PictureError> {
    use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};

    if bytes.is_empty() {
        return Err(PictureError::Empty);
    }
    let format = image::guess_format(bytes).map_err(|_| PictureError::Format)?;
    let damaged = |_| PictureError::Damaged;
    let cursor = Cursor::new(bytes);
    // Beside the decoded picture: a GIF's or WebP's canvas, three bytes a pixel of what PNG turns.
    let (mut decoder, beside): (Box<dyn ImageDecoder + '_>, u64) = match format {
        ImageFormat::Jpeg => return open_jpeg(bytes),
        ImageFormat::Png => {
            let decoder = PngDecoder::with_limits(cursor, limits()).map_err(damaged)?;
            (Box::new(decoder), 3)
        }
        ImageFormat::WebP => (Box::new(WebPDecoder::new(cursor).map_err(damaged)?), 8),
        ImageFormat::Gif => (Box::new(GifDecoder::new(cursor).map_err(damaged)?), 8),
        _ => return Err(PictureError::Format),
    };
    let (width, height) = decoder.dimensions();
    let head = check(width, height, decoder.total_bytes(), beside)?;
    decoder.set_limits(limits()).map_err(damaged)?;
    Ok((Opened::Other(decoder), head))
}

fn open_jpeg(bytes: &[u8]) -> Result<(Opened<'_>, Head), PictureError> {
    // The size is checked here, with a better message.
    let limits = DecodeLimits {
        max_width: usize::MAX,
        max_height: usize::MAX,
        max_pixels: u64::MAX,
        max_scans: MOST_SCANS,
        max_memory: None,
    };
    let decoder = libjpeg_turbo_rs::Decoder::new_with_limits(bytes, limits)
        .map_err(|_| PictureError::Damaged)?;
    let frame = decoder.header();
    if frame.precision != 8 {
        return Err(PictureError::Damaged);
    }
    let colours = frame.components.len() as u64;
    let [width, height] =
        [frame.width(), frame.height()].map(|side| u32::try_from(side).unwrap_or(u32::MAX));
    let size = u64::from(width) * u64::from(height) * colours;
    // Beside the decoded picture: its planes, and a progressive one's coefficients of two bytes.
    let head = check(width, height, size, 3 * colours)?;
    Ok((Opened::Jpeg(Box::new(decoder)), head))
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(LONGEST_SIDE);
    limits.max_image_height = Some(LONGEST_SIDE);
    limits.max_alloc = Some(MOST_BYTES);
    limits
}

/// Refuses sizes that are not taken; `size` is that of the decoded picture, `beside` what each pixel takes on the way there.
fn check(width: u32, height: u32, size: u64, beside: u64) -> Result<Head, PictureError> {
    if width == 0 || height == 0 {
        return Err(PictureError::NoPixels { width, height });
    }
    let pixels = u64::from(width) * u64::from(height);
    if pixels > MOST_PIXELS || width.max(height) > LONGEST_SIDE || size > MOST_BYTES {
        return Err(PictureError::TooLarge { width, height });
    }
    Ok(Head {
        width,
        height,
        bytes: size.saturating_add(pixels * beside),
    })
}

/// Reads a picture's head and checks its size.
///
/// # Errors
/// When the format is unknown, the head damaged or the picture too large.
pub fn head(bytes: &[u8]) -> Result<Head, PictureError> {
    open(bytes).map(|(_, head)| head)
}

/// Decodes a picture.
///
/// # Errors
/// When the format is unknown, or the picture damaged or too large.
pub fn decode(bytes: &[u8]) -> Result<Rgb, PictureError> {
    let (opened, _) = open(bytes)?;
    let (mut image, orientation) = match opened {
        Opened::Jpeg(decoder) => {
            let code = decoder.exif_orientation();
            (jpeg(&decoder)?, code.and_then(Orientation::from_exif))
        }
        Opened::Other(mut decoder) => {
            let orientation = decoder.orientation().ok();
            let image = DynamicImage::from_decoder(decoder).map_err(|_| PictureError::Damaged)?;
            (image, orientation)
        }
    };
    // A damaged orientation is none.
    image.apply_orientation(orientation.unwrap_or(Orientation::NoTransforms));
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Rgb {
        width,
        height,
        pixels: rgb(image),
    })
}

fn jpeg(decoder: &libjpeg_turbo_rs::Decoder<'_>) -> Result<DynamicImage, PictureError> {
    let read = decoder.decode_image().map_err(|_| PictureError::Damaged)?;
    let (width, height) = (read.width as u32, read.height as u32);
    let image = match read.pixel_format {
        PixelFormat::Grayscale => {
            ImageBuffer::from_raw(width, height, read.data).map(DynamicImage::ImageLuma8)
        }
        PixelFormat::Rgb => {
            ImageBuffer::from_raw(width, height, read.data).map(DynamicImage::ImageRgb8)
        }
        PixelFormat::Cmyk => {
            ImageBuffer::from_raw(width, height, inks(&read.data)).map(DynamicImage::ImageRgb8)
        }
        _ => None,
    };
    image.ok_or(PictureError::Damaged)
}

/// Four inks, stored as what they leave white, to three colours, as Pillow does.
fn inks(values: &[u8]) -> Vec<u8> {
    let pixels = values.chunks_exact(4);
    let colours = pixels.flat_map(|pixel| {
        [0, 1, 2].map(|ink| {
            let product = u32::from(pixel[ink]) * u32::from(pixel[3]) + 128;
            (((product >> 8) + product) >> 8) as u8
        })
    });
    colours.collect()
}

fn rgb(image: DynamicImage) -> Vec<u8> {
    /// Of 16 bits the upper eight.
    fn upper(values: Vec<u16>) -> Vec<u8> {
        values.into_iter().map(|value| (value >> 8) as u8).collect()
    }
    match image {
        DynamicImage::ImageRgb8(image) => image.into_raw(),
        DynamicImage::ImageLuma8(image) => grey(&image.into_raw()),
        DynamicImage::ImageLuma16(image) => grey(&upper(image.into_raw())),
        DynamicImage::ImageRgb16(image) => upper(image.into_raw()),
        DynamicImage::ImageLumaA8(image) => onto_white(&image.into_raw(), 1),
        DynamicImage::ImageLumaA16(image) => onto_white(&upper(image.into_raw()), 1),
        DynamicImage::ImageRgba16(image) => onto_white(&upper(image.into_raw()), 3),
        other => onto_white(&other.into_rgba8().into_raw(), 3),
    }
}

fn grey(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|value| [*value; 3]).collect()
}

/// Lays pixels of so many colours and an alpha onto white, rounding as Pillow does.
fn onto_white(values: &[u8], colours: usize) -> Vec<u8> {
    values
        .chunks_exact(colours + 1)
        .flat_map(|pixel| {
            let alpha = u32::from(pixel[colours]);
            let blend = move |colour: u8| {
                let sum = (u32::from(colour) * alpha + 255 * (255 - alpha)) * 128 + (128 << 7);
                ((((sum >> 8) + sum) >> 8) >> 7) as u8
            };
            [0, 1, 2].map(|channel| blend(pixel[channel.min(colours - 1)]))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use image::codecs::gif::GifEncoder;
    use image::{Delay, Frame, Rgba};

    use super::*;
    use crate::noise::Noise;

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).expect("encoded");
        bytes.into_inner()
    }

    /// Pixels of so many channels, all different.
    fn waves(width: u32, height: u32, channels: u32) -> Vec<u8> {
        let count = width * height * channels;
        (0..count).map(|at| (at * 31 % 256) as u8).collect()
    }

    fn colours(width: u32, height: u32) -> DynamicImage {
        let pixels = waves(width, height, 3);
        ImageBuffer::from_raw(width, height, pixels)
            .map(DynamicImage::ImageRgb8)
            .expect("whole")
    }

    #[test]
    fn a_webp_with_more_codes_than_bits_is_damaged() {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        let file = "UklGRswGAABXRUJQVlA4TLsGAAAvPIAKAAlFbRsxHd/yJ9wbFCL6PwG5czL50NILgmybIswf+DmCgrQNWJSdQeh/YgR+B4AA\
        AEDk19q2Y9tsbXtsV2U9s23btm3btm1WUDhMuwYAAC88gAoACUVtGzEd3/In3BsUIvo/AblzMvnQ0guCbJsizB/4OYKCtA1Y\
        lJ1B6H9iBH4HgAAAQOTX2rZj22xte2xXZT2zbdu2bdu2bdu2bZvTULaDbduxN1f0xLZt25z+6Z/CybZtq7bbyVOmTLXtybb9\
        /kVMmW98JWkbcvWkxF4FYHtodlVzlkKNhZLYrVAibs1eVg==";
        let file = BASE64_STANDARD.decode(file).expect("base64");
        assert!(matches!(decode(&file), Err(PictureError::Damaged)));
    }

    #[test]
    fn every_kind_of_pixel_becomes_three_bytes() {
        let pixels = |image: DynamicImage| {
            decode(&encoded(&image, ImageFormat::Png))
                .expect("read")
                .pixels
        };
        assert_eq!(pixels(colours(5, 4)), waves(5, 4, 3));
        let grey = ImageBuffer::from_raw(2, 1, vec![7, 200]).map(DynamicImage::ImageLuma8);
        assert_eq!(pixels(grey.expect("whole")), [7, 7, 7, 200, 200, 200]);
        let deep = ImageBuffer::from_raw(2, 1, vec![0x0701, 0xc8ff]).map(DynamicImage::ImageLuma16);
        assert_eq!(pixels(deep.expect("whole")), [7, 7, 7, 200, 200, 200]);
        let deep =
            ImageBuffer::from_raw(1, 1, vec![0x01ff, 0x0280, 0x03aa]).map(DynamicImage::ImageRgb16);
        assert_eq!(pixels(deep.expect("whole")), [1, 2, 3]);
        // What is not there is white, what is there keeps its colour.
        let veiled = vec![10, 20, 30, 0, 10, 20, 30, 255, 0, 0, 0, 128];
        let veiled = ImageBuffer::from_raw(3, 1, veiled).map(DynamicImage::ImageRgba8);
        assert_eq!(
            pixels(veiled.expect("whole")),
            [255, 255, 255, 10, 20, 30, 127, 127, 127]
        );
        let veiled = ImageBuffer::from_raw(1, 1, vec![0, 0]).map(DynamicImage::ImageLumaA8);
        assert_eq!(pixels(veiled.expect("whole")), [255, 255, 255]);
        let deep = vec![0_u16, 0, 0, 0, 0x1234, 0, 0, u16::MAX];
        let deep = ImageBuffer::from_raw(2, 1, deep).map(DynamicImage::ImageRgba16);
        assert_eq!(pixels(deep.expect("whole")), [255, 255, 255, 0x12, 0, 0]);
    }

    #[test]
    fn all_formats_are_told_by_their_content_and_of_an_animation_the_first_frame_is_read() {
        let image = colours(9, 7);
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let read = decode(&encoded(&image, format)).expect("read");
            assert_eq!((read.width, read.height), (9, 7));
            assert_eq!(read.pixels, waves(9, 7, 3), "{format:?}");
        }
        let flat = DynamicImage::from(ImageBuffer::from_pixel(
            16,
            16,
            image::Rgb([90_u8, 140, 30]),
        ));
        let read = decode(&encoded(&flat, ImageFormat::Jpeg)).expect("read");
        for pixel in read.pixels.chunks(3) {
            for (found, expected) in pixel.iter().zip([90_u8, 140, 30]) {
                assert!(found.abs_diff(expected) <= 2, "{pixel:?}");
            }
        }
        let mut bytes = Vec::new();
        let mut encoder = GifEncoder::new(&mut bytes);
        for colour in [[255, 0, 0, 255], [0, 0, 255, 255]] {
            let frame = ImageBuffer::from_pixel(3, 2, Rgba(colour));
            let delay = Delay::from_numer_denom_ms(100, 1);
            encoder
                .encode_frame(Frame::from_parts(frame, 0, 0, delay))
                .expect("encoded");
        }
        drop(encoder);
        let read = decode(&bytes).expect("read");
        assert_eq!(read.pixels, [255, 0, 0].repeat(6));
    }

    #[test]
    fn a_photograph_is_turned_as_its_orientation_says() {
        let jpeg = encoded(&colours(16, 8), ImageFormat::Jpeg);
        let turned = |orientation: u8| {
            // An APP1 segment after the start of image: TIFF, little end first, one entry.
            let exif = [
                b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(),
                &[orientation, 0, 0, 0, 0, 0, 0, 0],
            ]
            .concat();
            let length = u16::try_from(exif.len() + 2).expect("short").to_be_bytes();
            let parts = [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]];
            decode(&parts.concat()).expect("read")
        };
        let plain = turned(1);
        assert_eq!((plain.width, plain.height), (16, 8));
        assert_eq!(plain, decode(&jpeg).expect("read"));
        let right = turned(6);
        assert_eq!((right.width, right.height), (8, 16));
        // The upper left corner goes to the upper right.
        assert_eq!(right.pixels[7 * 3..8 * 3], plain.pixels[..3]);
        // An orientation that there is not is none.
        assert_eq!(turned(77), plain);
    }

    /// A PNG's head that says this size, with nothing behind it.
    fn png_head(width: u32, height: u32) -> Vec<u8> {
        let mut chunk = b"IHDR".to_vec();
        chunk.extend(width.to_be_bytes());
        chunk.extend(height.to_be_bytes());
        chunk.extend([8, 2, 0, 0, 0]);
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
        bytes.extend(&chunk);
        bytes.extend(checksum(&chunk).to_be_bytes());
        bytes.extend(b"\0\0\0\x04IDAT\0\0\0\0");
        bytes.extend(checksum(b"IDAT\0\0\0\0").to_be_bytes());
        bytes
    }

    /// CRC-32 as PNG has it.
    fn checksum(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                (sum >> 1) ^ if sum & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        })
    }

    #[test]
    fn bombs_are_refused_by_their_heads() {
        let large = |width, height| Err(PictureError::TooLarge { width, height });
        assert_eq!(decode(&png_head(65_535, 65_535)), large(65_535, 65_535));
        assert_eq!(decode(&png_head(8_193, 8_193)), large(8_193, 8_193));
        assert!(matches!(
            head(&png_head(8_192, 8_192)),
            Ok(Head { width: 8_192, .. })
        ));
        assert_eq!(decode(&png_head(8_192, 8_192)), Err(PictureError::Damaged));
        for (width, height) in [(0, 1), (1, 0), (0, 0), (u32::MAX, 1), (1, 70_000)] {
            assert!(
                decode(&png_head(width, height)).is_err(),
                "{width} {height}"
            );
        }
        let gif = b"GIF89a\xff\xff\xff\xff\0\0\0";
        assert!(decode(gif).is_err());
        // A JPEG's frame: 65,500 on each side.
        let mut jpeg = encoded(&colours(8, 8), ImageFormat::Jpeg);
        let at = jpeg
            .windows(2)
            .position(|pair| pair == [0xff, 0xc0])
            .expect("a frame");
        jpeg[at + 5..at + 9].copy_from_slice(&[0xff, 0xdc, 0xff, 0xdc]);
        assert_eq!(decode(&jpeg), large(65_500, 65_500));
        // A WebP's canvas of 2^24 on each side.
        let webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff";
        assert!(decode(webp).is_err());
    }

    #[test]
    fn the_smallest_and_the_longest_are_read() {
        for (width, height) in [(1, 1), (65_535, 1), (1, 65_535), (3, 2)] {
            let read = decode(&encoded(&colours(width, height), ImageFormat::Png)).expect("read");
            assert_eq!((read.width, read.height), (width as usize, height as usize));
        }
    }

    #[test]
    fn what_is_cut_short_or_spoilt_is_an_error_or_a_picture_and_never_a_panic() {
        let mut noise = Noise::new(7);
        let image = colours(23, 17);
        let formats = [
            ImageFormat::Png,
            ImageFormat::Jpeg,
            ImageFormat::WebP,
            ImageFormat::Gif,
        ];
        for format in formats {
            let whole = encoded(&image, format);
            for length in 0..whole.len() {
                if let Ok(read) = decode(&whole[..length]) {
                    assert_eq!((read.width, read.height), (23, 17));
                }
            }
            for _ in 0..2_000 {
                let mut spoilt = whole.clone();
                for _ in 0..1 + noise.below(4) {
                    let at = noise.below(spoilt.len());
                    spoilt[at] = noise.below(256) as u8;
                }
                if let Ok(read) = decode(&spoilt) {
                    assert_eq!(read.pixels.len(), read.width * read.height * 3);
                }
            }
        }
        // Another file behind a whole one changes nothing.
        let mut polyglot = encoded(&image, ImageFormat::Png);
        polyglot.extend_from_slice(b"PK\x03\x04<script>alert(1)</script>");
        assert_eq!(decode(&polyglot).expect("read").pixels, waves(23, 17, 3));
    }
}
