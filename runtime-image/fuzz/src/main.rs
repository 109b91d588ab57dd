//! The entry of LLVM's fuzzer: it calls the target named by `FUZZ_TARGET` with one input after another. `hack/fuzz` builds and runs it.
//!
//! With `FUZZ_SEEDS` naming a folder it writes each target's first inputs there and ends.

#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use chandler_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(
    init: prepare(),
    |bytes: &[u8]| {
        if let Some(target) = TARGET.get() {
            (target.run)(bytes);
        }
    }
);

fn prepare() {
    if let Some(folder) = std::env::var_os("FUZZ_SEEDS") {
        for target in TARGETS {
            write_seeds(target, &Path::new(&folder).join(target.name));
        }
        std::process::exit(0);
    }
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let known = TARGETS.map(|target| target.name).join(", ");
    let target = TARGETS.into_iter().find(|target| target.name == name);
    TARGET.get_or_init(|| {
        target.unwrap_or_else(|| panic!("FUZZ_TARGET is {name:?}, expected one of {known}"))
    });
}

/// A seed that its target does not take would leave the search at the door.
fn write_seeds(target: Target, folder: &Path) {
    std::fs::create_dir_all(folder).expect("seeds need a folder");
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let name = target.name;
        assert!((target.run)(seed), "{name} refuses its seed {number}");
        let file = folder.join(format!("seed-{number}"));
        std::fs::write(file, seed).expect("a seed can be written");
    }
}
