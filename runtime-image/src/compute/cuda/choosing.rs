//! Choosing tokens on the card. They stay there for the next step's rows, and come to the host while that step is computed.

use std::collections::VecDeque;

use super::card::{Buffer, CardError, Pinned};
use super::launches::{self, CHOICE_WORDS};
use super::{Cuda, Rows};
use crate::step::{Change, Choice};

/// Steps whose tokens are on their way at most: one is computed, one waits.
const ON_THEIR_WAY: usize = 2;

/// Tokens that were chosen.
pub(super) struct Choosing {
    /// What tokens are chosen by.
    entries: Buffer,
    changes: Buffer,
    masks: Buffer,
    /// Of the last steps, in turn.
    tokens: [Buffer; ON_THEIR_WAY],
    host: Vec<Box<dyn Pinned>>,
    /// Which of them is the next step's.
    turn: usize,
    /// Those that nobody has asked for, and how many tokens they have.
    waiting: VecDeque<(usize, usize)>,
}

impl Choosing {
    /// Room for the tokens of so many rows.
    pub(super) fn new(
        card: &std::sync::Arc<dyn super::Card>,
        rows: usize,
    ) -> Result<Self, CardError> {
        let room = || Buffer::new(card, rows * 4);
        let host = (0..ON_THEIR_WAY).map(|_| card.pinned(rows * 4));
        Ok(Self {
            entries: Buffer::none(card),
            changes: Buffer::none(card),
            masks: Buffer::none(card),
            tokens: [room()?, room()?],
            host: host.collect::<Result<_, _>>()?,
            turn: 0,
            waiting: VecDeque::new(),
        })
    }

    /// Forgets what is on its way, after a fault.
    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}

/// The words of one choice.
fn entry(choice: &Choice) -> [u32; CHOICE_WORDS] {
    let uniform = choice.uniform.to_bits();
    [
        choice.temperature.to_bits(),
        choice.top_p.to_bits(),
        choice.min_p.to_bits(),
        u32::try_from(choice.top_k).unwrap_or(0),
        (uniform & u64::from(u32::MAX)) as u32,
        (uniform >> 32) as u32,
        row(choice),
        0,
    ]
}

fn row(choice: &Choice) -> u32 {
    u32::try_from(choice.row).unwrap_or(u32::MAX)
}

/// The words of what a choice changes.
fn changes(choice: &Choice) -> impl Iterator<Item = [u32; CHOICE_WORDS]> + '_ {
    let row = row(choice);
    let words = move |change: &Change| {
        let numbers = [change.bias, change.repetition, change.less];
        let [bias, repetition, less] = numbers.map(f32::to_bits);
        [row, change.token, bias, repetition, less, 0, 0, 0]
    };
    choice.changes.iter().map(words)
}

/// The words of what choices allow: their rows, then a mask of so many words for each; and how many there are.
fn masks(choices: &[Choice], words: usize) -> (Vec<u32>, usize) {
    let masks = choices.iter().filter_map(|choice| {
        let allowed = choice.allowed.as_ref()?;
        Some((row(choice), allowed))
    });
    let (rows, masks): (Vec<u32>, Vec<&Vec<u32>>) = masks.unzip();
    let (count, mut told) = (rows.len(), rows);
    for mask in masks {
        let missing = words.saturating_sub(mask.len());
        told.extend(mask.iter().take(words));
        told.extend(std::iter::repeat_n(0, missing));
    }
    (told, count)
}

impl Cuda {
    pub(super) fn choose_tokens(&mut self, logits: &Rows, choices: &[Choice]) {
        let entries: Vec<_> = choices.iter().map(entry).collect();
        let limit = u32::try_from(logits.width).unwrap_or(u32::MAX);
        let changes: Vec<_> = choices
            .iter()
            .flat_map(changes)
            .filter(|change| change[1] < limit)
            .collect();
        let mut choosing = self.choosing.take();
        let Some(held) = &mut choosing else {
            return;
        };
        self.write(entries.as_flattened(), &mut held.entries);
        let (at, vocabulary) = (logits.row(0), logits.width);
        if !changes.is_empty() {
            self.write(changes.as_flattened(), &mut held.changes);
            let entries = held.changes.address();
            self.launch(&launches::adjust(at, vocabulary, entries, changes.len()));
        }
        let words = vocabulary.div_ceil(32);
        let (told, restricted) = masks(choices, words);
        if restricted > 0 {
            self.write(&told, &mut held.masks);
            let rows = held.masks.address();
            let masks = (rows.after(restricted * 4), words);
            self.launch(&launches::restrict(
                at,
                vocabulary,
                (rows, restricted),
                masks,
            ));
        }
        let (turn, count) = (held.turn, choices.len());
        let tokens = held.tokens[turn].address();
        let entries = (held.entries.address(), count);
        self.launch(&launches::choose(at, vocabulary, entries, tokens));
        // Without tokens as well: it is this copy that is waited for.
        if self.sound() {
            self.note(held.host[turn].download(count * 4, tokens));
        }
        held.waiting.push_back((turn, count));
        held.turn = (turn + 1) % ON_THEIR_WAY;
        self.choosing = choosing;
    }

    /// Waits for the oldest tokens that nobody has asked for.
    pub(super) fn wait_for_tokens(&mut self) -> Vec<u32> {
        let Some(mut held) = self.choosing.take() else {
            return Vec::new();
        };
        let mut tokens = Vec::new();
        if let Some((turn, count)) = held.waiting.pop_front()
            && self.sound()
            && self.note(held.host[turn].wait()).is_some()
        {
            let bytes = &held.host[turn].bytes()[..count * 4];
            let words = bytes.chunks_exact(4);
            tokens.extend(words.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        }
        self.choosing = Some(held);
        tokens
    }

    /// Puts tokens that the step before chose into the words of this one.
    pub(super) fn take_open(&self) {
        let open = self.told.open;
        if let Some(held) = &self.choosing
            && open.count > 0
        {
            let before = (held.turn + ON_THEIR_WAY - 1) % ON_THEIR_WAY;
            let (tokens, pairs) = (self.word(self.told.tokens), self.word(open.at));
            let chosen = held.tokens[before].address();
            self.launch(&launches::take_tokens(tokens, pairs, chosen, open.count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_as_long_as_the_vocabulary() {
        let choice = |row, allowed| Choice {
            allowed,
            ..Choice::greedy(row)
        };
        let choices = [
            choice(4, Some(vec![1, 2, 3])),
            choice(1, None),
            choice(0, Some(vec![7])),
        ];
        assert_eq!(masks(&choices, 2), (vec![4, 0, 1, 2, 7, 0], 2));
        assert_eq!(masks(&choices[1..2], 2), (Vec::new(), 0));
    }
}
