//! Guessing the next tokens by what followed the same few tokens before (prompt lookup): answers that copy from their
//! prompt take fewer steps. Guesses are only computed beside the next token; the sampler decides whether they were true, so
//! no answer changes.

/// Tokens that must have stood there before.
const ALIKE: usize = 3;

/// How far back is looked, in tokens; bounds the time of one guess to some microseconds.
const FAR: usize = 8_192;

/// Tokens after which a sequence whose guesses were wrong guesses again.
const PAUSE: usize = 16;

/// Guesses for one sequence, fewer where they turn out wrong.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guesser {
    most: usize,
    length: usize,
    /// Tokens until it tries again.
    pause: usize,
}

impl Guesser {
    /// At most `most` tokens at a time; 0 never guesses.
    pub(super) fn new(most: usize) -> Self {
        Self {
            most,
            length: most.min(2),
            pause: 0,
        }
    }

    /// The tokens that may come next, at most `room`.
    pub(super) fn guess<'a>(&self, tokens: &'a [u32], room: usize) -> &'a [u32] {
        if self.pause > 0 {
            return &[];
        }
        continuation(tokens, self.length.min(room))
    }

    /// Learns how many of the guessed tokens came true, of one step that brought `confirmed + 1` tokens.
    pub(super) fn learn(&mut self, guessed: usize, confirmed: usize) {
        if guessed == 0 {
            self.pause = self.pause.saturating_sub(1);
        } else if confirmed == guessed {
            self.length = (self.length * 2).min(self.most);
        } else if confirmed == 0 {
            self.length = (self.length / 2).max(1);
            if self.length == 1 {
                self.pause = PAUSE;
            }
        }
    }
}

/// What followed the last place where the last [`ALIKE`] tokens stood before.
fn continuation(tokens: &[u32], most: usize) -> &[u32] {
    let Some(end) = tokens.len().checked_sub(ALIKE) else {
        return &[];
    };
    if most == 0 {
        return &[];
    }
    let wanted = &tokens[end..];
    let from = end.saturating_sub(FAR);
    let found = tokens[from..tokens.len() - 1]
        .windows(ALIKE)
        .rposition(|window| window == wanted);
    match found {
        Some(at) => {
            let next = &tokens[from + at + ALIKE..];
            &next[..next.len().min(most)]
        }
        None => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continues_as_the_last_time() {
        let tokens = [1, 2, 3, 4, 1, 2, 3, 5, 6, 1, 2, 3];
        assert_eq!(continuation(&tokens, 2), [5, 6]);
        assert_eq!(continuation(&tokens, 9), [5, 6, 1, 2, 3]);
        assert_eq!(continuation(&tokens[..9], 9), [0; 0]);
        assert_eq!(continuation(&[7, 7, 7, 7], 4), [7]);
        assert_eq!(continuation(&[7, 7], 4), [0; 0]);
    }

    #[test]
    fn wrong_guesses_become_rare_and_true_ones_long() {
        let mut guesser = Guesser::new(8);
        let tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1, 2, 3];
        assert_eq!(guesser.guess(&tokens, 99).len(), 2);
        guesser.learn(2, 2);
        guesser.learn(4, 4);
        assert_eq!(guesser.guess(&tokens, 99).len(), 8);
        assert_eq!(guesser.guess(&tokens, 3).len(), 3);
        for _ in 0..3 {
            guesser.learn(8, 0);
        }
        assert_eq!(guesser.guess(&tokens, 99), [0; 0]);
        for _ in 0..PAUSE {
            guesser.learn(0, 0);
        }
        assert_eq!(guesser.guess(&tokens, 99).len(), 1);
    }
}
