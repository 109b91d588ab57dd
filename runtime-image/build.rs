//! With the feature `cuda`: tells where the kernels lie that are built into the program.

use std::path::Path;

/// Names the fat binary.
const VARIABLE: &str = "CHANDLER_KERNELS_FATBIN";

fn main() {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let Some(path) = std::env::var(VARIABLE)
        .ok()
        .filter(|path| Path::new(path).is_file())
    else {
        println!(
            "cargo:error=the feature `cuda` builds the kernels in: run `export {VARIABLE}=$(hack/cuda-kernels)` first, \
             or `make runtime-cuda`, which does both"
        );
        return;
    };
    println!("cargo:rerun-if-changed={path}");
    println!("cargo:rustc-env=CHANDLER_FATBIN={path}");
}
