//! `check` on the tiny model: right results pass, a spoilt logit, a wrong token and a broken folder do not.

use std::path::Path;

use chandler_runtime::check::{CheckArgs, check};
use chandler_runtime::compute::Arithmetic;
use chandler_runtime::config::{CudaArgs, Device};

use crate::laid_out::lay_out;

fn run(folder: &Path, tolerance: f32) -> (bool, String) {
    let args = CheckArgs {
        folder: folder.to_owned(),
        tolerance,
        threads: Some(2),
        device: Device::Cpu,
        dtype: Arithmetic::Float32,
        cuda: CudaArgs::default(),
    };
    let mut out = Vec::new();
    let passed = check(&args, &mut out).unwrap();
    (passed, String::from_utf8(out).unwrap())
}

#[test]
fn a_right_result_passes_and_a_wrong_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path(), 0.0);
    let (passed, text) = run(folder.path(), 1e-4);
    assert!(passed && text.lines().count() == 8, "{text}");
    assert!(!text.contains("different"), "{text}");
    // Nothing is exact to the last bit of another library.
    assert!(!run(folder.path(), 0.0).0);

    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path(), 0.01);
    let (passed, text) = run(folder.path(), 1e-4);
    let line = text
        .lines()
        .find(|line| line.contains("past the tolerance"))
        .unwrap();
    assert!(!passed && line.starts_with("raw_text"), "{text}");
}

#[test]
fn a_folder_that_lacks_a_case_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    lay_out(folder.path(), 0.0);
    std::fs::remove_file(folder.path().join("cases/long.safetensors")).unwrap();
    let args = CheckArgs {
        folder: folder.path().to_owned(),
        tolerance: 1e-4,
        threads: None,
        device: Device::Cpu,
        dtype: Arithmetic::Float32,
        cuda: CudaArgs::default(),
    };
    let error = check(&args, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("long.safetensors"), "{error}");
}

#[test]
fn a_model_that_looks_at_pictures_is_compared_at_every_station() {
    let args = CheckArgs {
        folder: crate::vision::fixture(""),
        tolerance: 1e-4,
        threads: Some(2),
        device: Device::Cpu,
        dtype: Arithmetic::Float32,
        cuda: CudaArgs::default(),
    };
    let mut out = Vec::new();
    let passed = check(&args, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(passed, "{text}");
    assert!(
        !text.contains("different") && !text.contains("not run"),
        "{text}"
    );
    // Eleven cases with six layers and two kinds of logits, nine of them with pixels, tower and projector.
    assert_eq!(text.lines().count(), 1 + 11 * 8 + 9 * 3, "{text}");
}
