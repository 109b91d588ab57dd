//! Which tiles a picture is laid on, and to which size it is brought first.

/// Where a picture goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Rows of tiles.
    pub rows: usize,
    /// Columns of tiles.
    pub columns: usize,
    /// Width of the picture on them, in pixels.
    pub width: usize,
    /// Height of the picture on them, in pixels.
    pub height: usize,
}

/// All arrangements (rows, columns) of at most so many tiles.
#[must_use]
pub fn canvases(most: usize) -> Vec<(usize, usize)> {
    (1..=most)
        .flat_map(|rows| (1..=most / rows).map(move |columns| (rows, columns)))
        .collect()
}

/// Chooses tiles of `side` pixels for a picture: those that it fills without being enlarged past them, or else those that
/// shrink it least; the fewest of equally good ones.
///
/// Scales are doubles in the reference's order of operations: single precision gives other sizes for some pictures.
///
/// # Panics
/// When there are no tiles; descriptions are checked for that.
#[must_use]
pub fn fit(width: usize, height: usize, side: usize, most_tiles: usize) -> Fit {
    let (w, h) = (width as f64, height as f64);
    let scales: Vec<(f64, (usize, usize))> = canvases(most_tiles)
        .into_iter()
        .map(|(rows, columns)| {
            let across = (columns * side) as f64 / w;
            let down = (rows * side) as f64 / h;
            (across.min(down), (rows, columns))
        })
        .collect();
    let enlarging = scales.iter().map(|(scale, _)| *scale);
    let enlarging = enlarging.filter(|scale| *scale >= 1.0).reduce(f64::min);
    let largest = scales.iter().map(|(scale, _)| *scale).reduce(f64::max);
    let chosen = enlarging.or(largest);
    let (rows, columns) = scales
        .iter()
        .filter(|(scale, _)| Some(*scale) == chosen)
        .map(|(_, canvas)| *canvas)
        .min_by_key(|(rows, columns)| rows * columns)
        .expect("there is at least one tile");

    let target_width = width.clamp(side, columns * side);
    let target_height = height.clamp(side, rows * side);
    let (across, down) = (target_width as f64 / w, target_height as f64 / h);
    let scaled = |length: f64, scale: f64, most: usize| {
        // A float that is too large becomes the largest whole number.
        ((length * scale).floor() as usize).clamp(1, most)
    };
    let (width, height) = if across < down {
        (target_width, scaled(h, across, target_height))
    } else {
        (scaled(w, down, target_width), target_height)
    };
    Fit {
        rows,
        columns,
        width,
        height,
    }
}
