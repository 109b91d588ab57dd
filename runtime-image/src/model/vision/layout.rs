//! Which rows a picture has in the tower, how often each counts, and what it sees.

use std::ops::Range;

use crate::compute::vision::{Look, Span};
use crate::weights::sight::Sight;

/// The rows of one picture: its tiles' rows, those of tiles that it lacks, then one filler for each tile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Each tile and how often it counts; the picture's own come first.
    pub(super) tiles: Vec<(usize, usize)>,
    /// Tiles that show something.
    shown: usize,
    /// Rows of a tile without fillers.
    pub(super) tile_rows: usize,
    /// Fillers of a tile.
    fillers: usize,
}

impl Layout {
    pub(super) fn new(sight: &Sight, shown: usize, lacks_equal: bool) -> Self {
        let lacking = sight.tiles - shown;
        let mut tiles: Vec<(usize, usize)> = (0..shown).map(|tile| (tile, 1)).collect();
        if lacks_equal && lacking > 0 {
            tiles.push((shown, lacking));
        } else {
            tiles.extend((shown..sight.tiles).map(|tile| (tile, 1)));
        }
        Self {
            tiles,
            shown,
            tile_rows: sight.tile_keys(),
            fillers: sight.fillers(),
        }
    }

    /// Rows that show something.
    pub(super) fn real(&self) -> usize {
        self.shown * self.tile_rows
    }

    /// Rows of tiles, without fillers.
    pub(super) fn of_tiles(&self) -> usize {
        self.tiles.len() * self.tile_rows
    }

    pub(super) fn all(&self) -> usize {
        self.of_tiles() + usize::from(self.fillers > 0) * self.tiles.len()
    }

    /// The tile of a row.
    pub(super) fn tile(&self, row: usize) -> usize {
        let index = match row.checked_sub(self.of_tiles()) {
            Some(filler) => filler,
            None => row / self.tile_rows,
        };
        self.tiles[index].0
    }

    /// What the rows of a chunk see: real ones everything, the others what is real.
    pub(super) fn looks(&self, chunk: Range<usize>, blocks: &[u32]) -> Vec<Look> {
        let mut everything: Vec<(Range<usize>, usize)> = Vec::new();
        let of_tiles = self.tiles.iter().enumerate().map(|(index, (_, count))| {
            let first = index * self.tile_rows;
            (first..first + self.tile_rows, *count)
        });
        let fillers = self.tiles.iter().enumerate().map(|(index, (_, count))| {
            let at = self.of_tiles() + index;
            (at..at + 1, count * self.fillers)
        });
        for (keys, count) in of_tiles.chain(fillers.filter(|(_, count)| *count > 0)) {
            match everything.last_mut() {
                Some((last, same)) if *same == count => last.end = keys.end,
                _ => everything.push((keys, count)),
            }
        }
        let spans = |keys: Vec<(Range<usize>, usize)>| {
            let span = |(keys, count)| Span {
                blocks: blocks.to_vec(),
                keys,
                repeats: u32::try_from(count).unwrap_or(u32::MAX),
            };
            keys.into_iter().map(span).collect()
        };
        let real = self.real().clamp(chunk.start, chunk.end);
        let all = [
            (chunk.start..real, everything),
            (real..chunk.end, vec![(0..self.real(), 1)]),
        ];
        all.into_iter()
            .filter(|(rows, _)| !rows.is_empty())
            .map(|(rows, keys)| Look {
                rows: rows.start - chunk.start..rows.end - chunk.start,
                spans: spans(keys),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the reference's rule, over all tiles with all their rows: only what stands for nothing does not see what stands
    /// for nothing.
    fn sees(layout: &Layout, all_tiles: usize, query: (usize, usize), key: (usize, usize)) -> bool {
        let stands = |(tile, row): (usize, usize)| tile < layout.shown && row < layout.tile_rows;
        assert!(query.0 < all_tiles && key.0 < all_tiles);
        stands(query) || stands(key)
    }

    #[test]
    fn ranges_with_counts_say_what_the_whole_mask_says() {
        for (tile_rows, fillers) in [(17, 7), (8, 0), (5, 3)] {
            for shown in 1..=4 {
                for tiles in [
                    (0..4).map(|tile| (tile, 1)).collect(),
                    (0..shown)
                        .map(|tile| (tile, 1))
                        .chain((shown < 4).then_some((shown, 4 - shown)))
                        .collect::<Vec<_>>(),
                ] {
                    let layout = Layout {
                        tiles,
                        shown,
                        tile_rows,
                        fillers,
                    };
                    check(&layout);
                }
            }
        }
    }

    fn check(layout: &Layout) {
        let (tile_rows, fillers) = (layout.tile_rows, layout.fillers);
        // The whole row (tile and place in it) that each row stands for first.
        let whole = |row: usize| match row.checked_sub(layout.of_tiles()) {
            Some(_) => (layout.tile(row), tile_rows),
            None => (layout.tile(row), row % tile_rows),
        };
        for chunk in [0..layout.all(), 3..layout.all().min(40)] {
            let mut covered = chunk.start;
            for look in layout.looks(chunk.clone(), &[]) {
                assert_eq!(look.rows.start + chunk.start, covered);
                covered = look.rows.end + chunk.start;
                for row in look.rows.clone() {
                    let query = whole(row + chunk.start);
                    let mut counts = vec![0; layout.all()];
                    for span in &look.spans {
                        for key in span.keys.clone() {
                            counts[key] += span.repeats as usize;
                        }
                    }
                    for (key, count) in counts.into_iter().enumerate() {
                        let times = layout
                            .tiles
                            .iter()
                            .find(|(tile, _)| *tile == layout.tile(key));
                        let times = times.expect("its tile").1;
                        let times = if key < layout.of_tiles() {
                            times
                        } else {
                            times * fillers
                        };
                        let expected = if sees(layout, 4, query, whole(key)) {
                            times
                        } else {
                            0
                        };
                        assert_eq!(count, expected, "{layout:?}: {row} sees {key}");
                    }
                }
            }
            assert_eq!(covered, chunk.end);
        }
    }
}
