//! What a model tells on its way through a case, and how far it is from the reference.

use std::sync::{Arc, Mutex, PoisonError};

use super::largest_difference;
use crate::model::{Model, Station};

/// What has been told so far.
#[derive(Default)]
pub(super) struct Told {
    /// Pixels as the tower reads them, `[tile][channel][row][column]`, of the pictures in order.
    pub(super) pixels: Vec<f32>,
    pub(super) vision: Vec<f32>,
    pub(super) projected: Vec<f32>,
    pub(super) layers: Vec<Vec<f32>>,
}

/// Listens to a model.
#[derive(Clone, Default)]
pub(super) struct Listener(Arc<Mutex<Told>>);

impl Listener {
    /// Has `model` tell its stations from now on.
    pub(super) fn listen(model: &mut dyn Model) -> Self {
        let listener = Self::default();
        let told = listener.clone();
        model.trace(Some(Box::new(move |station, _, rows| {
            let mut told = told.0.lock().unwrap_or_else(PoisonError::into_inner);
            match station {
                Station::Vision => told.vision.extend_from_slice(rows),
                Station::Projected => told.projected.extend_from_slice(rows),
                Station::Layer(number) => {
                    let layers = told.layers.len().max(number + 1);
                    told.layers.resize_with(layers, Vec::new);
                    told.layers[number].extend_from_slice(rows);
                }
            }
        })));
        listener
    }

    /// Notes pixels that the model is given.
    pub(super) fn note_pixels(&self, pixels: impl Iterator<Item = f32>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.pixels.extend(pixels);
    }

    /// What was told since the last time.
    pub(super) fn take(&self) -> Told {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Compares what was told of the tiles that show something with a reference that has `most` tiles for each picture.
pub(super) fn of_tiles(ours: &[f32], expected: &[f32], tiles: &[usize], most: usize) -> f32 {
    let pictures = tiles.len().max(1);
    let tile = expected.len() / (pictures * most).max(1);
    let shown = tiles.iter().enumerate().flat_map(|(picture, tiles)| {
        let first = picture * most * tile;
        &expected[first..first + tiles * tile]
    });
    let shown: Vec<f32> = shown.copied().collect();
    if shown.len() == ours.len() {
        largest_difference(ours, &shown)
    } else {
        f32::INFINITY
    }
}
