//! The first keys of a GGUF file, from the bytes at its beginning.
//!
//! The layout is that of the GGUF specification: magic, version, two counts, then key, type and value of each pair, little-endian.
//! What is read is kept up to the first thing that is not understood or not there; nothing here allocates more than the bytes given.

use std::collections::HashMap;

/// What a key holds, as far as it matters before a model is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A whole number that is not negative.
    Whole(u64),
    /// Text.
    Text(String),
    /// A list of so many elements. It counts from its first bytes on, wherever it ends.
    List(u64),
    /// Anything else.
    Other,
}

/// The keys at the beginning of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Header(HashMap<String, Value>);

impl Header {
    /// Reads the keys that the bytes hold; none if they are no GGUF file's.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut header = Self::default();
        // Ending early is the usual case: the tokens' list is longer than any beginning.
        let _ = header.fill(Bytes(bytes));
        header
    }

    fn fill(&mut self, mut bytes: Bytes<'_>) -> Option<()> {
        if bytes.take(4)? != b"GGUF" || !matches!(bytes.number(4)?, 2 | 3) {
            return None;
        }
        let _tensors = bytes.number(8)?;
        let pairs = bytes.number(8)?;
        for _ in 0..pairs {
            let key = String::from_utf8_lossy(bytes.text()?).into_owned();
            let kind = bytes.number(4)?;
            if kind == LIST {
                let element = bytes.number(4)?;
                let count = bytes.number(8)?;
                self.0.insert(key, Value::List(count));
                bytes.skip_elements(element, count)?;
            } else {
                self.0.insert(key, bytes.value(kind)?);
            }
        }
        Some(())
    }

    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key)? {
            Value::Text(text) => Some(text),
            Value::Whole(_) | Value::List(_) | Value::Other => None,
        }
    }

    pub(super) fn whole(&self, key: &str) -> Option<u64> {
        match self.value(key)? {
            Value::Whole(number) => Some(*number),
            Value::Text(_) | Value::List(_) | Value::Other => None,
        }
    }
}

const TEXT: u64 = 8;
const LIST: u64 = 9;

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count.try_into().ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, width: u64) -> Option<u64> {
        Some(
            self.take(width)?
                .iter()
                .rev()
                .fold(0, |number, &byte| number << 8 | u64::from(byte)),
        )
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.number(8)?;
        self.take(length)
    }

    /// A value that is no list, by its type's number.
    fn value(&mut self, kind: u64) -> Option<Value> {
        if kind == TEXT {
            let text = String::from_utf8(self.text()?.to_vec());
            return Some(text.map_or(Value::Other, Value::Text));
        }
        let width = width(kind)?;
        let number = self.number(width)?;
        let negative = number >> (width * 8 - 1) == 1;
        Some(match kind {
            0 | 2 | 4 | 10 => Value::Whole(number),
            1 | 3 | 5 | 11 if !negative => Value::Whole(number),
            _ => Value::Other,
        })
    }

    fn skip_elements(&mut self, kind: u64, count: u64) -> Option<()> {
        if kind == TEXT {
            // Each text takes at least its length's eight bytes, so the beginning's end bounds this.
            return (0..count).try_for_each(|_| self.text().map(drop));
        }
        self.take(count.checked_mul(width(kind)?)?).map(drop)
    }
}

/// Bytes of a plain value, by its type's number: small whole numbers, 32-bit and 64-bit ones, floats and truth values.
fn width(kind: u64) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The bytes of a header, for tests.
#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::hub) fn text(value: &str) -> Vec<u8> {
        [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat()
    }

    pub(in crate::hub) fn header(pairs: &[(&str, u32, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = [
            b"GGUF".as_slice(),
            &3u32.to_le_bytes(),
            &0u64.to_le_bytes(),
            &(pairs.len() as u64).to_le_bytes(),
        ]
        .concat();
        for (key, kind, value) in pairs {
            bytes.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        bytes
    }

    /// The beginning of a list: type and number of its elements.
    pub(in crate::hub) fn list(kind: u32, count: u64) -> Vec<u8> {
        [kind.to_le_bytes().as_slice(), &count.to_le_bytes()].concat()
    }

    #[test]
    fn finds_a_key_behind_others_and_none_in_a_cut_header() {
        let texts = [list(8, 2), text("a"), text("bc")].concat();
        let numbers = [list(6, 2), vec![0; 8]].concat();
        let bytes = header(&[
            ("general.alignment", 4, vec![32, 0, 0, 0]),
            ("tokens", 9, texts),
            ("scores", 9, numbers),
            ("flag", 7, vec![1]),
            ("general.architecture", 8, text("llama")),
        ]);
        let whole = Header::read(&bytes);
        assert_eq!(whole.text("general.architecture"), Some("llama"));
        assert_eq!(whole.whole("general.alignment"), Some(32));
        assert_eq!(whole.value("tokens"), Some(&Value::List(2)));
        for end in 0..bytes.len() {
            let cut = Header::read(&bytes[..end]);
            assert_eq!(cut.text("general.architecture"), None, "cut at {end}");
        }
    }

    #[test]
    fn keeps_what_came_before_a_length_beyond_the_bytes() {
        for list in [list(8, u64::MAX), list(12, u64::MAX), list(99, 1)] {
            let header = Header::read(&header(&[
                ("a", 0, vec![7]),
                ("tokens", 9, list),
                ("b", 0, vec![7]),
            ]));
            assert_eq!((header.whole("a"), header.whole("b")), (Some(7), None));
        }
        assert_eq!(
            Header::read(&header(&[("x", 99, vec![0; 8])])),
            Header::default()
        );
        assert_eq!(Header::read(b"<html>"), Header::default());
    }

    #[test]
    fn takes_whole_numbers_of_every_width_and_no_negative_ones() {
        let bytes = header(&[
            ("small", 3, vec![2, 1]),
            ("large", 10, vec![1, 0, 0, 0, 1, 0, 0, 0]),
            ("negative", 5, vec![0xff; 4]),
            ("float", 6, vec![0, 0, 128, 63]),
        ]);
        let header = Header::read(&bytes);
        assert_eq!(header.whole("small"), Some(0x102));
        assert_eq!(header.whole("large"), Some(0x1_0000_0001));
        assert_eq!(header.whole("negative"), None);
        assert_eq!(header.whole("float"), None);
    }
}
