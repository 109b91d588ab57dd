//! A step on its way: the plan, and what each sequence has of it.

use std::ops::Range;

use super::active::Active;
use super::cache::Blocks;
use super::scheduler::Slice;
use crate::step::{BLOCK_TOKENS, BlockCopy, Run, StepPlan};

/// A step that has been planned.
#[derive(Default)]
pub(super) struct Flight {
    pub(super) plan: StepPlan,
    pub(super) parts: Vec<Part>,
    /// Rows whose tokens were on their way when it was planned.
    pub(super) open: Vec<Open>,
}

/// A row that computes a token which the step before brings.
pub(super) struct Open {
    pub(super) row: usize,
    pub(super) stay: u64,
    /// The token's place in its sequence.
    pub(super) position: usize,
}

/// A sequence's part of a step under way.
pub(super) struct Part {
    pub(super) stay: u64,
    pub(super) guessed: Vec<u32>,
    /// Whether its next token comes of it.
    pub(super) completes: bool,
    /// Whether that is the first one of the answer.
    pub(super) begins: bool,
    /// Its rows among those whose logits were wanted; the last `guessed + 1` of them tell the next tokens.
    pub(super) logits: Range<usize>,
}

/// Writes one sequence's part into the plan and takes its blocks.
pub(super) fn write_down(
    active: &mut Active,
    slice: &Slice,
    blocks: &mut Blocks,
    Flight { plan, parts, open }: &mut Flight,
    wanted: &mut usize,
) {
    let range = active.computed..active.computed + slice.count;
    let completes = range.end == active.length();
    let guessed = active.guess()[..slice.guessed].to_vec();
    if !active.computed.is_multiple_of(BLOCK_TOKENS) {
        let held = &mut active.blocks[active.computed / BLOCK_TOKENS];
        if blocks.holders(*held) > 1 {
            let copy = BlockCopy {
                from: *held,
                to: blocks.take(),
            };
            blocks.give(*held);
            *held = copy.to;
            plan.copies.push(copy);
        }
    }
    let end = range.end + guessed.len();
    while active.blocks.len() < end.div_ceil(BLOCK_TOKENS) {
        active.blocks.push(blocks.take());
    }
    let first = plan.tokens.len();
    for position in range.clone() {
        let token = active.tokens.get(position).copied();
        if token.is_none() {
            open.push(Open {
                row: plan.tokens.len(),
                stay: active.stay,
                position,
            });
        }
        plan.tokens.push(token.unwrap_or_default());
    }
    plan.tokens.extend_from_slice(&guessed);
    let last = plan.tokens.len();
    plan.positions
        .extend((range.start..end).map(|position| u32::try_from(position).unwrap_or(u32::MAX)));
    plan.runs.push(Run {
        rows: first..last,
        blocks: active.blocks.clone(),
        cross: active.pictures.cross(range.start..end, first),
        adapter: None,
    });
    let rows = if active.wants_every_logit() {
        first..last
    } else if completes {
        last - 1 - guessed.len()..last
    } else {
        last..last
    };
    let logits = *wanted..*wanted + rows.len();
    *wanted = logits.end;
    if !rows.is_empty() {
        plan.logits.push(rows);
    }
    parts.push(Part {
        stay: active.stay,
        guessed,
        completes,
        begins: active.begins_answer(range.end),
        logits,
    });
    active.computed = range.end;
    active.tell_blocks(blocks);
}
