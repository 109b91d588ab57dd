//! One step, as plain data: no tensor type and no HTTP type. The scheduler's side writes it, models and backends read it.

use std::ops::Range;
use std::sync::Arc;

use crate::pictures::Picture;

/// Tokens in one block of the arena of keys and values.
pub const BLOCK_TOKENS: usize = 32;

/// One step over some tokens of some sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// Blocks that are copied whole before any row is computed.
    pub copies: Vec<BlockCopy>,
    /// One token a row.
    pub tokens: Vec<u32>,
    /// The row's place in its sequence, from 0.
    pub positions: Vec<u32>,
    /// The sequences, each with its rows; together they cover all rows in order.
    pub runs: Vec<Run>,
    /// Rows whose logits are wanted, ascending and apart: the last row of a sequence that gets its next token, guessed
    /// tokens that are to be confirmed, all rows of a prompt whose log probabilities are asked for.
    pub logits: Vec<Range<usize>>,
}

impl StepPlan {
    /// The rows whose logits are wanted, one by one.
    pub fn logits_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.logits.iter().cloned().flatten()
    }
}

/// A block that two sequences hold, and the place of the copy for the one that goes on writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// What is read.
    pub from: u32,
    /// What is written.
    pub to: u32,
}

/// What the next token of a row is chosen by, where the device that computes the logits chooses too.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The row's number among those whose logits are wanted.
    pub row: usize,
    /// 0 takes the likeliest token; otherwise logits are divided by this.
    pub temperature: f32,
    /// Only so many of the likeliest tokens; 0 means all.
    pub top_k: usize,
    /// Only the likeliest tokens that together reach this probability; 1 means all.
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the likeliest; 0 means all.
    pub min_p: f32,
    /// Which of the tokens that are left, as a part of their probability, from 0 to below 1.
    pub uniform: f64,
    /// What is done to the logits of single tokens before, each of which stands here once.
    pub changes: Vec<Change>,
    /// A bit for each token that may come, the lowest first; absent: any may.
    pub allowed: Option<Vec<u32>>,
}

impl Choice {
    /// The likeliest token of a row.
    #[must_use]
    pub fn greedy(row: usize) -> Self {
        Self {
            row,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            uniform: 0.0,
            changes: Vec::new(),
            allowed: None,
        }
    }
}

/// What is done to the logit of one token, in this order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// The token.
    pub token: u32,
    /// Added.
    pub bias: f32,
    /// Divides a logit that is positive, multiplies others.
    pub repetition: f32,
    /// Subtracted.
    pub less: f32,
}

/// A row whose token the device chose in the step before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenRow {
    /// Row of this step.
    pub row: usize,
    /// Number among the choices of the step before.
    pub choice: usize,
}

/// The rows of one sequence in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Rows of the step; their positions follow one another.
    pub rows: Range<usize>,
    /// The blocks that hold the sequence's keys and values, up to its last row's position.
    pub blocks: Vec<u32>,
    /// What its rows see in cross-attention layers, ascending by rows; rows in none of them see no picture.
    pub cross: Vec<CrossRun>,
    /// The adapter whose weights are added to the model's; absent: the model as it is.
    pub adapter: Option<u32>,
}

/// Rows of one sequence that see the same pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrossRun {
    /// Rows of the step, inside the run's.
    pub rows: Range<usize>,
    /// The pictures, in the order of the prompt; at least one.
    pub pictures: Vec<SeenPicture>,
}

/// A picture whose keys and values are in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenPicture {
    /// Blocks of the arena that hold the picture's keys and values of the cross-attention layers.
    pub pages: Vec<u32>,
    /// Keys in those pages, counted from the first page's start.
    pub length: usize,
}

/// A picture to be encoded: its keys and values of the cross-attention layers go into the pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoding {
    /// What is encoded.
    pub picture: Arc<Picture>,
    /// Blocks of the arena, as many as the picture needs.
    pub pages: Vec<u32>,
}

/// Which of a sequence's pictures a row sees: those of the last group of adjacent pictures that begins at or before it, up
/// to its own place. `places` are the pictures' positions, ascending.
#[must_use]
pub fn seen(places: &[usize], position: usize) -> Range<usize> {
    let end = places.partition_point(|place| *place <= position);
    let mut start = end.saturating_sub(1);
    while start > 0 && places[start - 1] + 1 == places[start] {
        start -= 1;
    }
    start..end
}

/// What the rows of these positions see, the first of which is row `first` of the step; `picture` tells where a picture's
/// keys and values lie.
pub fn cross_runs(
    places: &[usize],
    positions: Range<usize>,
    first: usize,
    picture: impl Fn(usize) -> SeenPicture,
) -> Vec<CrossRun> {
    let mut last = 0..0;
    let mut runs: Vec<CrossRun> = Vec::new();
    for (row, position) in (first..).zip(positions) {
        let seen = seen(places, position);
        if seen.is_empty() {
            continue;
        }
        match runs.last_mut().filter(|_| last == seen) {
            Some(run) => run.rows.end = row + 1,
            None => runs.push(CrossRun {
                rows: row..row + 1,
                pictures: seen.clone().map(&picture).collect(),
            }),
        }
        last = seen;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sees_the_last_group_up_to_itself() {
        // Text, picture, text, two pictures side by side, text.
        let places = [1, 3, 4];
        let all: Vec<Range<usize>> = (0..6).map(|position| seen(&places, position)).collect();
        assert_eq!(all, [0..0, 0..1, 0..1, 1..2, 1..3, 1..3]);
        let picture = |index: usize| SeenPicture {
            pages: Vec::new(),
            length: index,
        };
        let runs: Vec<(Range<usize>, Vec<usize>)> = cross_runs(&places, 0..6, 10, picture)
            .into_iter()
            .map(|run| {
                (
                    run.rows,
                    run.pictures.iter().map(|seen| seen.length).collect(),
                )
            })
            .collect();
        assert_eq!(
            runs,
            [(11..13, vec![0]), (13..14, vec![1]), (14..16, vec![1, 2])]
        );
        assert!(seen(&[], 7).is_empty());
    }
}
