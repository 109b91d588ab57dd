//! Who is computed next. Facts in, decision out: no tensors, no clock, no channels.
//!
//! Sequences that only wait for their next token come first, then prompts in the order of arrival, cut to what a step holds.
//! When blocks run out, the youngest running sequence gives its blocks back and is computed again later;
//! the oldest is never put off, so every sequence ends.

use crate::model::BLOCK_TOKENS;

/// What is known of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Tokens of prompt and answer so far.
    pub tokens: usize,
    /// Tokens whose keys and values are in the cache; fewer than `tokens`.
    pub computed: usize,
    /// Blocks held.
    pub blocks: usize,
}

/// What a step and the engine hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows in a step, at least `sequences`.
    pub rows: usize,
    /// Sequences that run at once.
    pub sequences: usize,
}

/// The part of one sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index among the running, those admitted now appended.
    pub sequence: usize,
    /// Tokens from `computed` on.
    pub count: usize,
    /// Blocks to take for them.
    pub blocks: usize,
}

/// What to do in this step, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// How many of the youngest running sequences go back to the front of the queue, their blocks freed.
    pub preempt: usize,
    /// How many of the queue's front begin to run.
    pub admit: usize,
    /// Who is computed, ascending.
    pub slices: Vec<Slice>,
}

fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Decides one step. `running` and `waiting` are in the order of arrival, `free` is the number of free blocks.
#[must_use]
pub fn plan(running: &[View], waiting: &[View], free: usize, limits: Limits) -> Decision {
    let mut alive = running.len();
    let mut free = free;
    let mut rows = limits.rows;
    let mut slices: Vec<Slice> = Vec::new();
    let decoding = |view: &View| view.tokens - view.computed == 1;
    let order = (0..running.len())
        .filter(|index| decoding(&running[*index]))
        .chain((0..running.len()).filter(|index| !decoding(&running[*index])));
    for index in order {
        if index >= alive || rows == 0 {
            continue;
        }
        let view = running[index];
        let mut count = (view.tokens - view.computed).min(rows);
        let needed = |count: usize| blocks_for(view.computed + count).saturating_sub(view.blocks);
        while needed(count) > free && alive > index + 1 {
            alive -= 1;
            free += running[alive].blocks;
            if let Some(at) = slices.iter().position(|slice| slice.sequence == alive) {
                let dropped = slices.swap_remove(at);
                free += dropped.blocks;
                rows += dropped.count;
            }
        }
        if needed(count) > free {
            count = ((view.blocks + free) * BLOCK_TOKENS)
                .saturating_sub(view.computed)
                .min(count);
        }
        if count == 0 {
            // The youngest itself lacks a block: it waits, unless nobody older could make room either.
            if index > 0 {
                alive = index;
                free += view.blocks;
            }
            continue;
        }
        free -= needed(count);
        rows -= count;
        slices.push(Slice {
            sequence: index,
            count,
            blocks: needed(count),
        });
    }
    let preempt = running.len() - alive;
    let mut admit = 0;
    while preempt == 0 && alive + admit < limits.sequences && rows > 0 {
        let Some(view) = waiting.get(admit) else {
            break;
        };
        // The whole prompt must fit, so that a newcomer does not at once push itself out.
        if blocks_for(view.tokens) > free {
            break;
        }
        let count = view.tokens.min(rows);
        let blocks = blocks_for(count);
        free -= blocks;
        rows -= count;
        slices.push(Slice {
            sequence: alive + admit,
            count,
            blocks,
        });
        admit += 1;
    }
    slices.sort_unstable_by_key(|slice| slice.sequence);
    Decision {
        preempt,
        admit,
        slices,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        rows: 64,
        sequences: 4,
    };

    fn view(tokens: usize, computed: usize) -> View {
        View {
            tokens,
            computed,
            blocks: blocks_for(computed),
        }
    }

    #[test]
    fn prompts_are_cut_and_decoding_goes_on_beside_them() {
        let decision = plan(&[view(300, 0), view(41, 40)], &[], 20, LIMITS);
        let slices = [
            Slice {
                sequence: 0,
                count: 63,
                blocks: 2,
            },
            Slice {
                sequence: 1,
                count: 1,
                blocks: 0,
            },
        ];
        assert_eq!(
            decision,
            Decision {
                preempt: 0,
                admit: 0,
                slices: slices.to_vec()
            }
        );
    }

    #[test]
    fn the_queue_is_served_in_order_and_only_as_far_as_places_and_blocks_go() {
        let decision = plan(
            &[view(10, 9)],
            &[view(20, 0), view(33, 0), view(5, 0), view(5, 0)],
            9,
            LIMITS,
        );
        assert_eq!((decision.preempt, decision.admit), (0, 3));
        // The second in the queue does not fit: the third must not overtake it.
        let decision = plan(
            &[view(10, 9)],
            &[view(20, 0), view(33, 0), view(5, 0)],
            2,
            LIMITS,
        );
        assert_eq!(decision.admit, 1);
    }

    #[test]
    fn the_youngest_gives_way() {
        let decision = plan(
            &[view(33, 32), view(64, 63), view(32, 31)],
            &[view(1, 0)],
            0,
            LIMITS,
        );
        assert_eq!((decision.preempt, decision.admit), (1, 0));
        let rows: Vec<_> = decision
            .slices
            .iter()
            .map(|slice| (slice.sequence, slice.count, slice.blocks))
            .collect();
        assert_eq!(rows, [(0, 1, 1), (1, 1, 0)]);
    }

    /// Plays random histories: every sequence ends, no block is lost, no step is too large.
    #[test]
    fn everybody_ends_and_no_block_is_lost() {
        let mut seed = 1_u64;
        let mut next = |below: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for _ in 0..300 {
            let total = 4 + next(12);
            let limits = Limits {
                rows: 4 + next(60),
                sequences: 1 + next(4),
            };
            // (view, tokens at the end); any one of them fits the cache alone.
            let mut waiting: Vec<(View, usize)> = (0..1 + next(8))
                .map(|_| {
                    let end = 2 + next(total * BLOCK_TOKENS - 2);
                    (view(1 + next(end - 1), 0), end)
                })
                .collect();
            let (mut running, mut free): (Vec<(View, usize)>, usize) = (Vec::new(), total);
            let mut steps = 0;
            while !(waiting.is_empty() && running.is_empty()) {
                steps += 1;
                assert!(steps < 100_000, "somebody starves");
                let views =
                    |list: &[(View, usize)]| list.iter().map(|(view, _)| *view).collect::<Vec<_>>();
                let decision = plan(&views(&running), &views(&waiting), free, limits);
                for (mut view, end) in running
                    .split_off(running.len() - decision.preempt)
                    .into_iter()
                    .rev()
                {
                    free += view.blocks;
                    (view.blocks, view.computed) = (0, 0);
                    waiting.insert(0, (view, end));
                }
                running.extend(waiting.drain(..decision.admit));
                assert!(running.len() <= limits.sequences);
                assert!(!decision.slices.is_empty(), "nobody advances");
                assert!(
                    decision
                        .slices
                        .iter()
                        .map(|slice| slice.count)
                        .sum::<usize>()
                        <= limits.rows
                );
                for Slice {
                    sequence,
                    count,
                    blocks,
                } in decision.slices
                {
                    let (view, _) = &mut running[sequence];
                    assert!(blocks <= free);
                    free -= blocks;
                    view.blocks += blocks;
                    view.computed += count;
                    assert!(
                        view.computed <= view.tokens && view.computed <= view.blocks * BLOCK_TOKENS
                    );
                    if view.computed == view.tokens {
                        view.tokens += 1;
                    }
                }
                running.retain(|(view, end)| {
                    let done = view.tokens > *end;
                    free += if done { view.blocks } else { 0 };
                    !done
                });
                assert_eq!(
                    free + running.iter().map(|(view, _)| view.blocks).sum::<usize>(),
                    total
                );
            }
        }
    }
}
