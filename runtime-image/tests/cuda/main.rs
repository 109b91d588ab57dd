//! The CUDA backend on a card that is played on the host, with the very kernels that a card gets, against the reference's
//! results. `make cuda-test` builds the kernels and names them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use chandler_runtime::compute::cuda::Settings;
use chandler_runtime::compute::cuda::emulated::Emulated;
use chandler_runtime::compute::cuda::matrix::Floats;
use chandler_runtime::model::{self, Capacity, Model};
use chandler_runtime::weights::folder;

mod bits;
mod demo;
mod engine;
mod golden;
#[path = "../it/laid_out.rs"]
mod laid_out;
mod memory;
mod products;
mod recording;
mod reference;
mod serving;

/// More than any of these models takes.
const MEMORY: usize = 1 << 30;

/// A card with the kernels of this checkout.
fn card() -> Emulated {
    Emulated::new(MEMORY).unwrap()
}

/// Settings with so little scratch that everything large is done in parts.
fn settings(floats: Floats) -> Settings {
    Settings {
        floats,
        invariant: false,
        graphs: true,
        rows: 256,
        scratch: 1 << 16,
    }
}

fn load(card: &Emulated, settings: Settings, path: &Path, capacity: Capacity) -> Box<dyn Model> {
    let mut weights = folder::open(path).unwrap().weights;
    let card = Arc::new(card.clone());
    let room = &mut |_| Ok(capacity.blocks);
    model::load_on(card, settings, weights.as_mut(), capacity, room).unwrap()
}
