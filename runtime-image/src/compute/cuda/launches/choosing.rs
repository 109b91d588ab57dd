//! Choosing tokens.

use super::{arguments, by_number, launch};
use crate::compute::cuda::card::{Address, Launch};

/// Words of an entry of [`adjust`] and of [`choose`].
pub const CHOICE_WORDS: usize = 8;

/// Changes single logits, as so many entries say.
#[must_use]
pub fn adjust(logits: Address, vocabulary: usize, entries: Address, count: usize) -> Launch {
    let arguments = arguments![logits, vocabulary, entries, count];
    by_number("adjust", count, 1, arguments)
}

/// Makes tokens impossible whose bits are not set: for each of some rows a mask of so many words.
#[must_use]
pub fn restrict(
    logits: Address,
    vocabulary: usize,
    (rows, count): (Address, usize),
    (masks, words): (Address, usize),
) -> Launch {
    let arguments = arguments![logits, vocabulary, rows, masks, words];
    by_number("restrict_to", vocabulary, count, arguments)
}

/// Chooses tokens, as so many entries say; the logits are lost.
#[must_use]
pub fn choose(
    logits: Address,
    vocabulary: usize,
    (entries, count): (Address, usize),
    tokens: Address,
) -> Launch {
    let arguments = arguments![logits, vocabulary, entries, logits, tokens];
    launch("choose", [count, 1, 1], 512, 16_656, arguments)
}

/// Takes so many tokens that were chosen, each into a row.
#[must_use]
pub fn take_tokens(tokens: Address, pairs: Address, chosen: Address, count: usize) -> Launch {
    let arguments = arguments![tokens, pairs, chosen, count];
    by_number("take_tokens", count, 1, arguments)
}
