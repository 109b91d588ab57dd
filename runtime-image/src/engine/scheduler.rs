//! Who is computed next. Facts in, decision out: no tensors, no clock, no channels.
//!
//! Sequences that only wait for their next token come first, then prompts in the order of arrival, cut to what a step holds,
//! then guessed tokens where rows are left.
//! When blocks run out, the youngest running sequence gives its blocks back and is computed again later;
//! the oldest is never put off, so every sequence ends.

use crate::step::BLOCK_TOKENS;

/// What is known of one sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Tokens of prompt and answer so far.
    pub tokens: usize,
    /// Tokens whose keys and values are in the arena; fewer than `tokens`. Of a waiting one, those that it would find there.
    pub computed: usize,
    /// Of the tokens to be computed, those at the end that wait for a picture.
    pub held_back: usize,
    /// Blocks that hold them.
    pub blocks: usize,
    /// Of a running one, the blocks that nobody else holds.
    pub own: usize,
    /// Of a waiting one, the blocks that nobody holds: they count as free until it does.
    pub idle: usize,
    /// Of a waiting one, the blocks that its pictures take when it begins; a running one has them.
    pub pages: usize,
    /// The next token goes into a block that others hold too, so the block is copied.
    pub copies: bool,
    /// An older one is computing the same block at present; it is shared when it is there.
    pub follows: bool,
    /// Logits of every row are wanted.
    pub every_logit: bool,
    /// Guessed tokens after `tokens`.
    pub guessed: usize,
}

/// What a step and the engine hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows in a step, at least `sequences`: the token budget.
    pub rows: usize,
    /// Rows in a step whose logits can be wanted, at least `sequences`.
    pub logits: usize,
    /// Sequences that run at once.
    pub sequences: usize,
}

/// The part of one sequence in a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Index among the running, those admitted now appended.
    pub sequence: usize,
    /// Tokens from `computed` on.
    pub count: usize,
    /// Guessed tokens after them.
    pub guessed: usize,
    /// Blocks to take for them at most, the one for a copy included.
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

impl View {
    /// Tokens that can be computed now.
    fn ready(&self) -> usize {
        self.tokens - self.computed - self.held_back
    }

    /// Blocks to take for `count` tokens more.
    fn needed(&self, count: usize) -> usize {
        blocks_for(self.computed + count).saturating_sub(self.blocks) + usize::from(self.copies)
    }

    /// Tokens, at most `most`, that `free` blocks more have room for.
    fn fitting(&self, most: usize, free: usize) -> usize {
        match free.checked_sub(usize::from(self.copies)) {
            Some(free) => ((self.blocks + free) * BLOCK_TOKENS)
                .saturating_sub(self.computed)
                .min(most),
            None => 0,
        }
    }
}

/// What is left of a step while it is planned.
struct Room {
    free: usize,
    rows: usize,
    /// Logits beyond the one that each sequence has.
    logits: usize,
    slices: Vec<Slice>,
}

impl Room {
    /// How many tokens of this sequence a step can hold, blocks aside.
    fn most(&self, view: &View) -> usize {
        let count = view.ready().min(self.rows);
        if view.every_logit {
            count.min(self.logits + 1)
        } else {
            count
        }
    }

    fn put(&mut self, sequence: usize, view: &View, count: usize) {
        let blocks = view.needed(count);
        self.free -= blocks;
        self.rows -= count;
        if view.every_logit {
            self.logits -= count - 1;
        }
        self.slices.push(Slice {
            sequence,
            count,
            guessed: 0,
            blocks,
        });
    }

    /// Gives back what a sequence held and what was planned for it.
    fn withdraw(&mut self, sequence: usize, view: &View) {
        self.free += view.own;
        if let Some(at) = self
            .slices
            .iter()
            .position(|slice| slice.sequence == sequence)
        {
            let slice = self.slices.swap_remove(at);
            self.free += slice.blocks;
            self.rows += slice.count;
            if view.every_logit {
                self.logits += slice.count - 1;
            }
        }
    }

    /// Guessed tokens get what nobody else wants.
    fn guess(&mut self, running: &[View]) {
        for slice in &mut self.slices {
            let Some(view) = running.get(slice.sequence) else {
                continue;
            };
            if view.computed + slice.count < view.tokens {
                continue;
            }
            let most = slice.count + view.guessed.min(self.rows).min(self.logits);
            let guessed = view.fitting(most, slice.blocks + self.free) - slice.count;
            let blocks = view.needed(slice.count + guessed);
            self.free -= blocks - slice.blocks;
            self.rows -= guessed;
            self.logits -= guessed;
            (slice.guessed, slice.blocks) = (guessed, blocks);
        }
    }
}

/// Decides one step. `running` and `waiting` are in the order of arrival, `free` is the number of free blocks.
#[must_use]
pub fn plan(running: &[View], waiting: &[View], free: usize, limits: Limits) -> Decision {
    let mut alive = running.len();
    let mut room = Room {
        free,
        rows: limits.rows,
        logits: limits.logits - limits.sequences,
        slices: Vec::new(),
    };
    let decoding = |view: &View| view.tokens - view.computed == 1;
    let order = (0..running.len())
        .filter(|index| decoding(&running[*index]))
        .chain((0..running.len()).filter(|index| !decoding(&running[*index])));
    for index in order {
        let view = &running[index];
        if index >= alive || room.rows == 0 || view.follows || view.ready() == 0 {
            continue;
        }
        let mut count = room.most(view);
        while view.needed(count) > room.free && alive > index + 1 {
            alive -= 1;
            room.withdraw(alive, &running[alive]);
        }
        if view.needed(count) > room.free {
            count = view.fitting(count, room.free);
        }
        if count > 0 {
            room.put(index, view, count);
        } else if index > 0 {
            // The youngest itself lacks a block: it gives way. The oldest gets its block at the next step, when those
            // who shared blocks among themselves have given them back.
            alive = index;
            room.withdraw(index, view);
        }
    }
    let preempt = running.len() - alive;
    let mut admit = 0;
    while preempt == 0 && alive + admit < limits.sequences && room.rows > 0 {
        let Some(view) = waiting.get(admit) else {
            break;
        };
        // The whole prompt must fit, so that a newcomer does not at once push itself out.
        let all = view.needed(view.tokens - view.computed) + view.idle + view.pages;
        if all > room.free {
            break;
        }
        room.free -= view.idle + view.pages;
        if !view.follows && view.ready() > 0 {
            let count = room.most(view);
            room.put(alive + admit, view, count);
        }
        admit += 1;
    }
    room.guess(running);
    let mut slices = room.slices;
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
    use crate::noise::Noise;

    const LIMITS: Limits = Limits {
        rows: 64,
        logits: 6,
        sequences: 4,
    };

    fn view(tokens: usize, computed: usize) -> View {
        View {
            tokens,
            computed,
            blocks: blocks_for(computed),
            own: blocks_for(computed),
            ..View::default()
        }
    }

    fn shown(decision: &Decision) -> Vec<(usize, usize, usize)> {
        decision
            .slices
            .iter()
            .map(|slice| (slice.sequence, slice.count, slice.blocks))
            .collect()
    }

    #[test]
    fn prompts_are_cut_and_decoding_goes_on_beside_them() {
        let decision = plan(&[view(300, 0), view(41, 40)], &[], 20, LIMITS);
        assert_eq!(shown(&decision), [(0, 63, 2), (1, 1, 0)]);
        assert_eq!((decision.preempt, decision.admit), (0, 0));
    }

    #[test]
    fn the_queue_is_served_in_order_and_only_as_far_as_places_and_blocks_go() {
        let waiting = [view(20, 0), view(33, 0), view(5, 0), view(5, 0)];
        let decision = plan(&[view(10, 9)], &waiting, 9, LIMITS);
        assert_eq!((decision.preempt, decision.admit), (0, 3));
        // The second in the queue does not fit: the third must not overtake it.
        let decision = plan(&[view(10, 9)], &waiting[..3], 2, LIMITS);
        assert_eq!(decision.admit, 1);
    }

    #[test]
    fn the_youngest_gives_way() {
        let running = [view(33, 32), view(64, 63), view(32, 31)];
        let decision = plan(&running, &[view(1, 0)], 0, LIMITS);
        assert_eq!((decision.preempt, decision.admit), (1, 0));
        assert_eq!(shown(&decision), [(0, 1, 1), (1, 1, 0)]);
    }

    #[test]
    fn what_is_found_in_the_arena_is_not_computed_and_what_is_being_computed_is_waited_for() {
        let found = View {
            idle: 2,
            ..view(100, 64)
        };
        let follower = View {
            follows: true,
            ..view(100, 0)
        };
        // 4 blocks: two that nobody holds and two to be taken; the follower would need 4 more.
        let decision = plan(&[], &[found, follower], 4, LIMITS);
        assert_eq!((decision.admit, shown(&decision)), (1, vec![(0, 36, 2)]));
        let decision = plan(&[], &[found, follower], 8, LIMITS);
        assert_eq!((decision.admit, shown(&decision)), (2, vec![(0, 36, 2)]));
        let decision = plan(&[], &[found], 3, LIMITS);
        assert_eq!(decision.admit, 0);
    }

    #[test]
    fn guesses_take_only_what_is_left() {
        let guessing = View {
            guessed: 5,
            ..view(41, 40)
        };
        let decision = plan(&[guessing, view(30, 0)], &[], 9, LIMITS);
        let guessed: Vec<usize> = decision.slices.iter().map(|slice| slice.guessed).collect();
        // Two logits are left beyond one for each sequence that may run.
        assert_eq!(guessed, [2, 0]);
        let crowded = plan(&[guessing, view(300, 0)], &[], 9, LIMITS);
        assert_eq!(crowded.slices[0].guessed, 0);
    }

    /// One sequence of a played history; blocks by number, so that sharing is real.
    struct Played {
        tokens: usize,
        computed: usize,
        end: usize,
        held: Vec<usize>,
        guesses: bool,
    }

    /// Plays random histories with shared prefixes, copies and guesses: every sequence ends, no block is lost, no step is
    /// too large, no plan takes a block that is not free.
    #[test]
    fn everybody_ends_and_no_block_is_lost() {
        for seed in 0..400 {
            let mut noise = Noise::new(seed);
            let total = 4 + noise.below(12);
            let sequences = 1 + noise.below(4);
            let limits = Limits {
                rows: 4 + noise.below(60),
                logits: sequences + noise.below(5),
                sequences,
            };
            let mut holders = vec![0_usize; total];
            // Any one of them fits the arena alone.
            let mut waiting: Vec<Played> = (0..1 + noise.below(8))
                .map(|_| {
                    let end = 2 + noise.below(total * BLOCK_TOKENS - 2);
                    Played {
                        tokens: 1 + noise.below(end - 1),
                        computed: 0,
                        end,
                        held: Vec::new(),
                        guesses: noise.below(2) == 0,
                    }
                })
                .collect();
            let mut running: Vec<Played> = Vec::new();
            let (mut steps, mut splits) = (0, 6);
            while !(waiting.is_empty() && running.is_empty()) {
                steps += 1;
                assert!(steps < 100_000, "somebody starves");
                let views = |list: &[Played], holders: &[usize]| -> Vec<View> {
                    list.iter()
                        .map(|played| View {
                            tokens: played.tokens,
                            computed: played.computed,
                            blocks: played.held.len(),
                            own: played.held.iter().filter(|b| holders[**b] == 1).count(),
                            copies: played.computed % BLOCK_TOKENS > 0
                                && holders[played.held[played.computed / BLOCK_TOKENS]] > 1,
                            guessed: if played.guesses { 3 } else { 0 },
                            ..View::default()
                        })
                        .collect()
                };
                let free = holders.iter().filter(|holders| **holders == 0).count();
                let decision = plan(
                    &views(&running, &holders),
                    &views(&waiting, &holders),
                    free,
                    limits,
                );
                for mut played in running
                    .split_off(running.len() - decision.preempt)
                    .into_iter()
                    .rev()
                {
                    for block in played.held.drain(..) {
                        holders[block] -= 1;
                    }
                    played.computed = 0;
                    waiting.insert(0, played);
                }
                running.extend(waiting.drain(..decision.admit));
                assert!(running.len() <= limits.sequences);
                assert!(
                    !decision.slices.is_empty() || decision.preempt > 0,
                    "nobody advances"
                );
                let rows = |slice: &Slice| slice.count + slice.guessed;
                assert!(decision.slices.iter().map(rows).sum::<usize>() <= limits.rows);
                let logits = decision.slices.iter().map(|slice| 1 + slice.guessed);
                assert!(logits.sum::<usize>() <= limits.logits);
                for slice in &decision.slices {
                    let played = &mut running[slice.sequence];
                    let mut taken = 0;
                    let mut take = |holders: &mut Vec<usize>| {
                        let block = holders.iter().position(|holders| *holders == 0);
                        let block = block.expect("a planned block is free");
                        holders[block] = 1;
                        taken += 1;
                        block
                    };
                    let first = played.computed / BLOCK_TOKENS;
                    if !played.computed.is_multiple_of(BLOCK_TOKENS)
                        && holders[played.held[first]] > 1
                    {
                        holders[played.held[first]] -= 1;
                        played.held[first] = take(&mut holders);
                    }
                    let reached = played.computed + rows(slice);
                    while played.held.len() < blocks_for(reached) {
                        let block = take(&mut holders);
                        played.held.push(block);
                    }
                    assert!(taken <= slice.blocks);
                    played.computed += slice.count;
                    assert!(played.computed <= played.tokens);
                    if played.computed == played.tokens {
                        // The next token, and some of the guesses came true.
                        let confirmed = noise.below(slice.guessed + 1);
                        played.computed += confirmed;
                        played.tokens += confirmed + 1;
                        for block in played.held.drain(blocks_for(played.computed)..) {
                            holders[block] -= 1;
                        }
                    }
                }
                // Sometimes a sequence splits in two that share all blocks.
                let place = !running.is_empty() && running.len() < limits.sequences;
                if place && splits > 0 && noise.below(4) == 0 {
                    splits -= 1;
                    let at = noise.below(running.len());
                    let parent = &running[at];
                    let child = Played {
                        held: parent.held.clone(),
                        ..*parent
                    };
                    for block in &child.held {
                        holders[*block] += 1;
                    }
                    running.insert(at + 1, child);
                }
                running.retain_mut(|played| {
                    let done = played.tokens > played.end;
                    if done {
                        for block in played.held.drain(..) {
                            holders[block] -= 1;
                        }
                    }
                    !done
                });
                let held: usize = running.iter().map(|played| played.held.len()).sum();
                assert_eq!(holders.iter().sum::<usize>(), held);
            }
        }
    }
}
