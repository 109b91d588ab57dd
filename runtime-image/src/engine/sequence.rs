//! The life of one generation: tokens to text, held back while a stop text may be in the making, and when it ends.

use crate::request::Ending;
use crate::tokenizer::Tokenizer;

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// By an end token or a stop text.
    Stop,
    /// By the number of tokens.
    Length,
}

/// What one more token brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advance {
    /// Text that is certain now; whole characters only.
    pub text: String,
    /// Set with the last token.
    pub finish: Option<Finish>,
}

/// Text of one answer, in the making.
pub struct Sequence {
    ending: Ending,
    generated: usize,
    /// Bytes of a character that is not whole yet.
    partial: Vec<u8>,
    /// Text that may be the start of a stop text.
    held: String,
}

impl Sequence {
    /// An answer without a token.
    #[must_use]
    pub fn new(ending: Ending) -> Self {
        Self {
            ending,
            generated: 0,
            partial: Vec::new(),
            held: String::new(),
        }
    }

    /// Tokens generated so far, an end token included.
    #[must_use]
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Tokens that it may have.
    #[must_use]
    pub fn most_tokens(&self) -> usize {
        self.ending.most_tokens
    }

    /// Takes the next token.
    pub fn advance(&mut self, token: u32, tokenizer: &Tokenizer) -> Advance {
        self.generated += 1;
        let ends = !self.ending.ignores_end_tokens && tokenizer.stops().contains(&token);
        if ends || self.ending.tokens.contains(&token) {
            return Advance {
                text: self.rest(),
                finish: Some(Finish::Stop),
            };
        }
        self.partial.extend_from_slice(tokenizer.bytes(token));
        take_whole_characters(&mut self.partial, &mut self.held);
        if let Some(at) = self
            .ending
            .texts
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min()
        {
            self.held.truncate(at);
            return Advance {
                text: std::mem::take(&mut self.held),
                finish: Some(Finish::Stop),
            };
        }
        if self.generated >= self.ending.most_tokens {
            return Advance {
                text: self.rest(),
                finish: Some(Finish::Length),
            };
        }
        let certain = self.held.len() - longest_beginning(&self.held, &self.ending.texts);
        let kept = self.held.split_off(certain);
        Advance {
            text: std::mem::replace(&mut self.held, kept),
            finish: None,
        }
    }

    /// All that was held back; a character that never became whole is shown as U+FFFD.
    fn rest(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&String::from_utf8_lossy(&self.partial));
        self.partial.clear();
        text
    }
}

/// Moves whole characters to `text`; bytes that can never become one are shown as U+FFFD.
fn take_whole_characters(bytes: &mut Vec<u8>, text: &mut String) {
    let mut from = 0;
    while from < bytes.len() {
        match std::str::from_utf8(&bytes[from..]) {
            Ok(whole) => {
                text.push_str(whole);
                from = bytes.len();
            }
            Err(error) => {
                let valid = from + error.valid_up_to();
                text.push_str(&String::from_utf8_lossy(&bytes[from..valid]));
                from = valid;
                match error.error_len() {
                    Some(broken) => {
                        text.push(char::REPLACEMENT_CHARACTER);
                        from += broken;
                    }
                    None => break,
                }
            }
        }
    }
    bytes.drain(..from);
}

/// Length of the longest end of `text` with which one of `stops` begins.
fn longest_beginning(text: &str, stops: &[String]) -> usize {
    let longest = stops
        .iter()
        .map(String::len)
        .max()
        .unwrap_or(0)
        .saturating_sub(1)
        .min(text.len());
    (1..=longest)
        .rev()
        .find(|length| {
            let end = &text.as_bytes()[text.len() - length..];
            text.is_char_boundary(text.len() - length)
                && stops.iter().any(|stop| stop.as_bytes().starts_with(end))
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::bytes_only;

    /// Feeds one token a byte; returns the pieces and how it ended.
    fn run(text: &[u8], stops: &[&str], most: usize) -> (Vec<String>, Option<Finish>) {
        let tokenizer = bytes_only(&["<|end|>"]);
        let mut sequence = Sequence::new(Ending {
            most_tokens: most,
            texts: stops.iter().map(|stop| (*stop).to_owned()).collect(),
            tokens: vec![u32::from(b'#')],
            ignores_end_tokens: false,
        });
        let mut pieces = Vec::new();
        for byte in text.iter().map(|byte| u32::from(*byte)).chain([256]) {
            let Advance { text, finish } = sequence.advance(byte, &tokenizer);
            pieces.push(text);
            if finish.is_some() {
                return (pieces, finish);
            }
        }
        (pieces, None)
    }

    #[test]
    fn characters_are_never_split() {
        let (pieces, finish) = run("aä€😀".as_bytes(), &[], 99);
        assert_eq!(pieces, ["a", "", "ä", "", "", "€", "", "", "", "😀", ""]);
        assert_eq!(finish, Some(Finish::Stop));
    }

    #[test]
    fn bytes_that_are_no_text_show_as_replacement_characters() {
        let (pieces, _) = run(b"a\xffb\xe2\x82", &[], 99);
        assert_eq!(pieces.concat(), "a\u{fffd}b\u{fffd}");
    }

    #[test]
    fn a_stop_token_ends_the_answer_and_shows_no_text() {
        let (pieces, finish) = run(b"ab#cd", &[], 99);
        assert_eq!(
            (pieces.concat().as_str(), finish),
            ("ab", Some(Finish::Stop))
        );
    }

    #[test]
    fn a_stop_text_is_held_back_and_left_out() {
        let (pieces, finish) = run(b"one STOx STOP two", &["STOP"], 99);
        assert_eq!(pieces.concat(), "one STOx ");
        assert_eq!(finish, Some(Finish::Stop));
        assert!(
            pieces
                .iter()
                .all(|piece| !piece.ends_with(['S', 'T', 'O']) || piece == "STOx")
        );
    }

    #[test]
    fn the_earliest_of_several_stop_texts_wins() {
        let (pieces, _) = run(b"abcdef", &["de", "cdx", "bcd"], 99);
        assert_eq!(pieces.concat(), "a");
    }

    #[test]
    fn what_was_held_comes_when_the_answer_ends_otherwise() {
        let (pieces, finish) = run(b"xST", &["STOP"], 3);
        assert_eq!(
            (pieces.concat().as_str(), finish),
            ("xST", Some(Finish::Length))
        );
        let (pieces, finish) = run(b"xST", &["STOP"], 99);
        assert_eq!(
            (pieces.concat().as_str(), finish),
            ("xST", Some(Finish::Stop))
        );
    }

    #[test]
    fn every_text_and_stop_gives_the_text_before_the_first_stop() {
        let words = ["", "a", "ab", "aba", "abab", "äb", "b\u{20ac}"];
        for text in ["abaabab", "bbäbaä", "aaaa€b", "ab\u{20ac}ab"] {
            for stop in words.iter().filter(|word| !word.is_empty()) {
                let expected = text.split(stop).next().unwrap_or_default();
                assert_eq!(
                    run(text.as_bytes(), &[stop], 99).0.concat(),
                    expected,
                    "{text} until {stop}"
                );
            }
        }
    }
}
