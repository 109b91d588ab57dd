//! Every case of the fixtures through `check`: in F32 within 1e-4 of the reference at every station, in fewer bits within
//! what these bits allow.

use std::path::Path;
use std::sync::Arc;

use chandler_runtime::check::{CheckArgs, check_with};
use chandler_runtime::compute::Arithmetic;
use chandler_runtime::compute::cuda::Settings;
use chandler_runtime::compute::cuda::matrix::Floats;
use chandler_runtime::config::{CudaArgs, Device};
use chandler_runtime::model;

use crate::golden::sighted;
use crate::laid_out::lay_out;
use crate::{card, settings};

/// What `check` prints, and whether all greedy tokens are equal.
fn compared(folder: &Path, settings: Settings) -> (String, bool) {
    let args = CheckArgs {
        folder: folder.to_owned(),
        tolerance: 1e-4,
        threads: None,
        device: Device::Cuda,
        dtype: Arithmetic::Float32,
        cuda: CudaArgs::default(),
    };
    let card = card();
    let mut out = Vec::new();
    check_with(&args, &mut out, |weights, setup, _| {
        let blocks = setup.capacity.blocks;
        let card = Arc::new(card.clone());
        model::load_on(card, settings, weights, setup.capacity, &mut |_| Ok(blocks))
    })
    .unwrap();
    let text = String::from_utf8(out).unwrap();
    let equal = !text.contains("different");
    (text, equal)
}

/// The largest error of all stations whose names have this in them.
fn largest(text: &str, station: &str) -> f32 {
    let lines = text.lines().skip(1).filter(|line| line.contains(station));
    let errors: Vec<f32> = lines
        .map(|line| {
            let words = line.split_whitespace().rev();
            let number = words.map(str::parse::<f32>).find_map(Result::ok);
            number.unwrap_or_else(|| panic!("{line}"))
        })
        .collect();
    assert!(!errors.is_empty(), "{station}: {text}");
    errors.into_iter().fold(0.0, f32::max)
}

fn variants(floats: Floats) -> [Settings; 3] {
    let plain = settings(floats);
    [
        plain,
        Settings {
            invariant: true,
            ..plain
        },
        Settings {
            graphs: false,
            scratch: 1 << 24,
            ..plain
        },
    ]
}

#[test]
fn text_is_the_reference_s_in_f32() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path(), 0.0);
    for settings in variants(Floats::F32) {
        let (text, equal) = compared(folder.path(), settings);
        let error = largest(&text, "");
        assert!(text.lines().count() == 8, "{text}");
        assert!(error <= 1e-4 && equal, "{settings:?}\n{text}");
    }
}

#[test]
fn pictures_are_the_reference_s_in_f32_at_every_station() {
    for settings in variants(Floats::F32) {
        let (text, equal) = compared(&sighted(""), settings);
        let error = largest(&text, "");
        assert!(
            text.contains("vision_hidden") && text.contains("text layer"),
            "{text}"
        );
        assert!(error <= 1e-4 && equal, "{settings:?}\n{text}");
    }
}

/// How far PyTorch's own BF16 is from its F32 in those logits of the fixtures of text and of pictures that `check` compares,
/// as `hack/gpu.d/torch_error.py FIXTURE cpu` prints it (PyTorch 2.15.0).
const TORCH: [f32; 2] = [0.348, 0.192];
/// So much further off we may be; in the batch-invariant mode, whose order of sums is another, a little more.
const RATIO: [f32; 2] = [1.2, 1.35];

#[test]
fn fewer_bits_are_hardly_further_off_than_pytorch_s_own() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path(), 0.0);
    let folders = [folder.path(), &sighted("")];
    // With F16 weights keys and values are BF16 all the same; E4M3 has its own bound, which tells how coarse it is.
    for (floats, eight_bits) in [
        (Floats::Bf16, None),
        (Floats::F16, None),
        (Floats::Fp8, Some(6.0)),
    ] {
        for (folder, torch) in folders.into_iter().zip(TORCH) {
            for settings in variants(floats) {
                let bound = eight_bits.unwrap_or(RATIO[usize::from(settings.invariant)] * torch);
                let (text, _) = compared(folder, settings);
                let error = largest(&text, "logits");
                let fits = error <= bound && error > 1e-4;
                assert!(fits, "{settings:?}: {error} of {bound}\n{text}");
            }
        }
    }
}
