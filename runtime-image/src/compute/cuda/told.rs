//! What a step's kernels are told beside numbers: tokens, places, rotation, and which keys each row sees. Written as words of
//! 32 bits by the host and uploaded at once; where each part begins depends on numbers of rows alone, so that a recorded
//! decode step finds the next one's words in the same places.

use list::{List, TILE_WORDS};

use super::launches::has_width;
use crate::compute::backend::{Heads, Rotation};
use crate::compute::vision::{Look, Span};
use crate::step::{BLOCK_TOKENS, OpenRow, StepPlan};

mod list;

/// A place, row or token that is nobody's.
const NOBODY: u32 = u32::MAX;

/// How attention is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attending {
    /// Every row by itself in plain floats.
    Plain,
    /// Every row by itself, split over its keys: the same bits whatever is beside it.
    Split,
    /// Few rows split over their keys, many together.
    Mixed,
}

impl Attending {
    /// What heads of this width allow, in an arena of halves or not, where every row is to have the same bits always or not.
    #[must_use]
    pub fn new(width: usize, halves: bool, invariant: bool) -> Self {
        match (halves && has_width(width), invariant) {
            (false, _) => Self::Plain,
            (true, true) => Self::Split,
            (true, false) => Self::Mixed,
        }
    }
}

/// Where entries of one sort begin, and how many there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// The first word.
    pub at: usize,
    /// Entries.
    pub count: usize,
}

/// What attention is told. Blocks are counted from the first word of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attended {
    /// Rows by themselves.
    pub rows: Entries,
    /// Splits that each of them needs, rounded up to a power of two so that they change seldom.
    pub splits: usize,
    /// Rows together.
    pub tiles: Entries,
    /// The first word of the spans.
    pub spans: usize,
}

/// The words of a step, and where what begins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// Everything.
    pub words: Vec<u32>,
    /// One a row.
    pub tokens: usize,
    /// One a row.
    pub places: usize,
    /// Rows that see pictures.
    pub sighted: usize,
    /// Rows whose logits are wanted.
    pub wanted: usize,
    /// `[row][pair]` of f32.
    pub cosines: usize,
    /// `[row][pair]` of f32.
    pub sines: usize,
    /// Self-attention.
    pub attended: Attended,
    /// Pairs: a row, and the number of the token that it takes of those that the step before chose. They come last.
    pub open: Entries,
}

fn word(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(NOBODY)
}

/// Pages that keys of a span lie in.
fn pages(span: &Span) -> usize {
    (span.keys.end - 1) / BLOCK_TOKENS - span.keys.start / BLOCK_TOKENS + 1
}

impl Told {
    /// Writes down a step.
    #[must_use]
    pub fn step(
        plan: &StepPlan,
        rotation: &Rotation,
        (sighted, wanted, open): (&[usize], &[usize], &[OpenRow]),
        heads: Heads,
        attending: Attending,
    ) -> Self {
        let rows = plan.tokens.len();
        let mut told = Self::default();
        told.tokens = told.put(&plan.tokens);
        let places: Vec<u32> = places(plan);
        told.places = told.put(&places);
        told.sighted = told.put_numbers(sighted);
        told.wanted = told.put_numbers(wanted);
        let turns = rows * rotation.pairs;
        let bits = |floats: &[f32]| floats.iter().map(|number| number.to_bits()).collect();
        let (cosines, sines): (Vec<u32>, Vec<u32>) = (
            bits(&rotation.cosines[..turns]),
            bits(&rotation.sines[..turns]),
        );
        told.cosines = told.put(&cosines);
        told.sines = told.put(&sines);
        told.attend(plan, heads, attending);
        let pairs = open.iter().flat_map(|open| [open.row, open.choice]);
        let pairs: Vec<usize> = pairs.collect();
        told.open = Entries {
            at: told.put_numbers(&pairs),
            count: open.len(),
        };
        told
    }

    /// Begins a part on a line of 32 bytes.
    fn put(&mut self, words: &[u32]) -> usize {
        self.words
            .resize(self.words.len().next_multiple_of(TILE_WORDS), 0);
        let at = self.words.len();
        self.words.extend_from_slice(words);
        at
    }

    fn put_numbers(&mut self, numbers: &[usize]) -> usize {
        let words: Vec<u32> = numbers.iter().map(|number| word(*number)).collect();
        self.put(&words)
    }

    fn attend(&mut self, plan: &StepPlan, heads: Heads, attending: Attending) {
        let mut list = List::new(heads, attending);
        let mut blocks = Vec::new();
        for run in &plan.runs {
            let first = plan.positions[run.rows.start] as usize;
            let at = blocks.len();
            blocks.extend_from_slice(&run.blocks);
            list.causal(run.rows.clone(), first, at);
        }
        self.attended = list.write(self, &blocks);
    }
}

/// The place of each row in the arena.
fn places(plan: &StepPlan) -> Vec<u32> {
    let runs = plan.runs.iter();
    runs.flat_map(|run| {
        run.rows.clone().map(|row| {
            let position = plan.positions[row] as usize;
            run.blocks[position / BLOCK_TOKENS] * word(BLOCK_TOKENS) + word(position % BLOCK_TOKENS)
        })
    })
    .collect()
}

/// The words of what rows see in pictures, or in each other inside one.
#[must_use]
pub fn told_looks(looks: &[Look], heads: Heads, attending: Attending) -> (Vec<u32>, Attended) {
    let mut list = List::new(heads, attending);
    let mut blocks: Vec<u32> = Vec::new();
    let mut last: Option<(&[u32], usize)> = None;
    for look in looks {
        let first = list.spans.len();
        let mut all = 0;
        for span in &look.spans {
            let at = match last {
                Some((same, at)) if same == span.blocks => at,
                _ => blocks.len(),
            };
            if at == blocks.len() {
                blocks.extend_from_slice(&span.blocks);
            }
            last = Some((&span.blocks, at));
            all += pages(span);
            list.spans
                .push([at, span.keys.start, span.keys.end, span.repeats as usize]);
        }
        list.seeing(look.rows.clone(), (first, look.spans.len()), all);
    }
    let mut told = Told::default();
    let attended = list.write(&mut told, &blocks);
    (told.words, attended)
}

#[cfg(test)]
mod tests {
    use super::list::SPAN_WORDS;
    use super::*;
    use crate::step::Run;

    const HEADS: Heads = Heads {
        queries: 8,
        keys: 2,
        width: 64,
        layers: 3,
    };

    fn plan(runs: &[(usize, usize, &[u32])]) -> StepPlan {
        let mut plan = StepPlan::default();
        for (rows, first, blocks) in runs {
            let start = plan.tokens.len();
            for position in *first..first + rows {
                plan.tokens.push(word(100 + position));
                plan.positions.push(word(position));
            }
            plan.runs.push(Run {
                rows: start..start + rows,
                blocks: blocks.to_vec(),
                ..Run::default()
            });
        }
        plan
    }

    fn rotation(rows: usize) -> Rotation {
        Rotation {
            cosines: (0..rows * 2).map(|index| index as f32).collect(),
            sines: vec![-1.0; rows * 2],
            pairs: 2,
            neighbours: false,
        }
    }

    fn step(plan: &StepPlan, attending: Attending) -> Told {
        let turns = rotation(plan.tokens.len());
        Told::step(plan, &turns, (&[1], &[0, 1], &[]), HEADS, attending)
    }

    /// Which keys each row sees: (block, slot) in order.
    fn seen(words: &[u32], attended: &Attended, row: u32) -> Vec<(u32, u32)> {
        let span = |number: u32| -> [u32; 4] {
            let at = attended.spans + number as usize * SPAN_WORDS;
            words[at..at + SPAN_WORDS].try_into().unwrap()
        };
        let keys = |number: u32, most: u32| {
            let [at, begin, end, repeats] = span(number);
            let all = (begin..end.min(most)).flat_map(move |key| {
                let block = words[(at + key / 32) as usize];
                std::iter::repeat_n((block, key % 32), repeats as usize)
            });
            all.collect::<Vec<_>>()
        };
        let mut found = Vec::new();
        for entry in words[attended.rows.at..][..attended.rows.count * 4].chunks_exact(4) {
            if entry[0] == row {
                found.extend((entry[1]..entry[1] + entry[2]).flat_map(|span| keys(span, NOBODY)));
                let pages = |number| (span(number)[2] - 1) / 32 - span(number)[1] / 32 + 1;
                let pages: u32 = (entry[1]..entry[1] + entry[2]).map(pages).sum();
                assert_eq!(entry[3], pages, "row {row}");
            }
        }
        for entry in words[attended.tiles.at..][..attended.tiles.count * 8].chunks_exact(8) {
            if (entry[0]..entry[0] + entry[1]).contains(&row) {
                let most = match entry[4] {
                    1 => entry[5] + row - entry[0] + 1,
                    _ => NOBODY,
                };
                found.extend((entry[2]..entry[2] + entry[3]).flat_map(|span| keys(span, most)));
            }
        }
        found
    }

    #[test]
    fn every_row_sees_its_sequence_up_to_itself_by_itself_or_in_a_tile() {
        let plan = plan(&[(1, 40, &[7, 9]), (37, 30, &[4, 3, 5]), (3, 0, &[8])]);
        for attending in [Attending::Plain, Attending::Split, Attending::Mixed] {
            let told = step(&plan, attending);
            let together = attending == Attending::Mixed;
            // Tiles of 128 queries, four a row.
            assert_eq!(told.attended.tiles.count, if together { 2 } else { 0 });
            assert_eq!(told.attended.rows.count, if together { 4 } else { 41 });
            for run in &plan.runs {
                for row in run.rows.clone() {
                    let expected: Vec<(u32, u32)> = (0..=plan.positions[row])
                        .map(|key| (run.blocks[key as usize / 32], key % 32))
                        .collect();
                    let found = seen(&told.words, &told.attended, word(row));
                    assert_eq!(found, expected, "{attending:?}: row {row}");
                }
            }
            let places = &told.words[told.places..];
            assert_eq!(places[..2], [9 * 32 + 8, 4 * 32 + 30]);
            assert_eq!(places[3], 3 * 32);
            assert_eq!(told.words[told.wanted..][..2], [0, 1]);
            assert_eq!(told.words[told.cosines + 5], 5_f32.to_bits());
        }
    }

    #[test]
    fn the_words_of_decode_steps_of_as_many_rows_begin_at_the_same_places() {
        let short = step(&plan(&[(1, 4, &[1]), (1, 9, &[2])]), Attending::Mixed);
        let long = plan(&[(1, 230, &[1, 2, 3, 4, 5, 6, 7, 8]), (1, 40, &[9, 11])]);
        let long = step(&long, Attending::Mixed);
        let bare = |told: &Told| Told {
            words: Vec::new(),
            open: Entries::default(),
            ..told.clone()
        };
        assert_eq!(bare(&short), bare(&long));
        assert_ne!(short.words, long.words);
        // A ninth page takes another split.
        let blocks: Vec<u32> = (0..9).collect();
        let longer = step(&plan(&[(1, 256, &blocks), (1, 0, &[9])]), Attending::Mixed);
        assert_eq!((long.attended.splits, longer.attended.splits), (1, 2));
    }

    #[test]
    fn looks_share_blocks_and_count_keys_as_often_as_they_say() {
        let blocks = vec![6, 2, 4];
        let span = |keys, repeats| Span {
            blocks: blocks.clone(),
            keys,
            repeats,
        };
        let looks = [
            Look {
                rows: 0..40,
                spans: vec![span(0..70, 1), span(70..71, 3)],
            },
            Look {
                rows: 40..42,
                spans: vec![span(33..66, 1)],
            },
        ];
        for attending in [Attending::Plain, Attending::Split, Attending::Mixed] {
            let (words, attended) = told_looks(&looks, HEADS, attending);
            assert_eq!(
                words
                    .iter()
                    .rev()
                    .take(3)
                    .rev()
                    .copied()
                    .collect::<Vec<_>>(),
                blocks
            );
            for row in [0, 39] {
                let found = seen(&words, &attended, row);
                assert_eq!(found.len(), 73, "{attending:?}");
                assert_eq!(found[32], (2, 0));
                assert_eq!(found[70..], [(4, 6); 3]);
            }
            let found = seen(&words, &attended, 41);
            assert_eq!((found.len(), found[0], found[32]), (33, (2, 1), (4, 1)));
        }
    }

    #[test]
    fn attention_is_computed_as_kernels_and_settings_allow() {
        assert_eq!(Attending::new(128, true, false), Attending::Mixed);
        assert_eq!(Attending::new(128, true, true), Attending::Split);
        assert_eq!(Attending::new(96, true, false), Attending::Plain);
        assert_eq!(Attending::new(128, false, false), Attending::Plain);
    }
}
