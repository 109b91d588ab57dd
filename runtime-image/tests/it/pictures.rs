//! Pictures against the reference: tiles and sizes, pixels to the last bit, formats, and what is refused.

use chandler_runtime::pictures::tiles::{Fit, canvases, fit};
use chandler_runtime::pictures::{Preparation, decode};
use chandler_runtime::weights::folder;
use safetensors::SafeTensors;
use serde::Deserialize;

use crate::vision::{cases, fixture, floats};

#[derive(Deserialize)]
struct Tiling {
    tile: usize,
    width: usize,
    height: usize,
    tiles_h: usize,
    tiles_w: usize,
    resized_w: usize,
    resized_h: usize,
    aspect_ratio_id: usize,
}

#[test]
fn tiles_and_sizes_are_the_reference_s() {
    let text = std::fs::read(fixture("tiling.json")).unwrap();
    let all: Vec<Tiling> = serde_json::from_slice(&text).unwrap();
    assert!(all.len() > 80, "{}", all.len());
    for case in all {
        let expected = Fit {
            rows: case.tiles_h,
            columns: case.tiles_w,
            width: case.resized_w,
            height: case.resized_h,
        };
        let (width, height) = (case.width, case.height);
        let found = fit(width, height, case.tile, 4);
        assert_eq!(found, expected, "{width}x{height} on {}", case.tile);
        let number = canvases(4)
            .iter()
            .position(|canvas| *canvas == (found.rows, found.columns));
        assert_eq!(number, Some(case.aspect_ratio_id - 1));
    }
    // In single precision these would be 1960 and 455 wide.
    assert_eq!(fit(3703, 1058, 560, 4).width, 1959);
    assert_eq!(fit(325, 400, 560, 4).width, 454);
}

pub(crate) fn preparation() -> Preparation {
    let opened = folder::open(&fixture("model")).unwrap();
    opened.preparation.unwrap()
}

#[test]
fn pixels_are_the_reference_s() {
    let preparation = preparation();
    let mut compared = 0;
    for case in cases() {
        let bytes = std::fs::read(case.tensors()).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        for (index, name) in case.images.iter().enumerate() {
            let expected = floats(&golden, "pixel_values");
            let file = std::fs::read(fixture("images").join(name)).unwrap();
            let picture = preparation.read_picture(&file).unwrap();
            assert_eq!(picture.tiles, case.tiles[index], "{name}");
            assert_eq!(picture.arrangement, case.aspect_ratio_ids[index], "{name}");
            let side = preparation.side;
            let room = 4 * 3 * side * side;
            let expected = &expected[index * room..][..room];
            for (at, expected) in expected.iter().enumerate() {
                let channel = at / (side * side) % 3;
                let found = picture
                    .pixels
                    .get(at)
                    .map_or(0.0, |byte| picture.values[channel][usize::from(*byte)]);
                // A step of a byte is 0.014; what is left is the order in which the reference scales.
                assert!(
                    (found - expected).abs() < 1e-6,
                    "{name} at {at}: {found}, not {expected}"
                );
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 13 * 4 * 3 * 56 * 56);
}

#[test]
fn what_is_no_picture_is_refused_with_a_fixed_text() {
    let square = std::fs::read(fixture("images/square.png")).unwrap();
    let refused = |bytes: &[u8]| decode::decode(bytes).unwrap_err().to_string();
    assert_eq!(refused(b""), "it is empty");
    assert_eq!(refused(b"%PDF-1.7"), "it is no PNG, JPEG, WebP or GIF");
    for length in 8..square.len() - 24 {
        let text = refused(&square[..length]);
        assert!(text.starts_with("it is damaged"), "{length}: {text}");
    }
}

#[test]
fn every_kind_of_picture_has_the_pixels_that_pillow_reads() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pictures");
    let mut compared = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let pictures = ["jpg", "png", "gif", "webp"];
        if !pictures.iter().any(|kind| name.ends_with(kind)) {
            continue;
        }
        let read = |path: &std::path::Path| decode::decode(&std::fs::read(path).unwrap());
        let found = read(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = path.with_file_name(format!("expected/{name}.png"));
        let expected = read(&expected).unwrap();
        let sides = (found.width, found.height);
        assert_eq!(sides, (expected.width, expected.height), "{name}");
        assert!(found.pixels == expected.pixels, "{name} has other pixels");
        compared += 1;
    }
    assert!(compared >= 40, "{compared}");
}
