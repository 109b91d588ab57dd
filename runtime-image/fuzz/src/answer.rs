//! What becomes of the model's own text, which users can steer: stop texts, calls and thoughts.

use chandler_runtime::dialect::reader::{Part, Reader};
use chandler_runtime::dialect::{Dialect, Notation};
use chandler_runtime::engine::Finish;
use chandler_runtime::engine::sequence::{Advance, Sequence};
use chandler_runtime::request::Ending;
use chandler_runtime::tokenizer::bytes_only;

use crate::{join, split};

/// The text of an answer ends where the first stop text does, whatever the tokens; without one it is all that came.
pub(crate) fn stop(bytes: &[u8]) -> bool {
    let (stops, text) = split(bytes);
    let Ok(stops) = std::str::from_utf8(stops) else {
        return false;
    };
    let stops: Vec<String> = stops
        .split('\0')
        .filter(|stop| !stop.is_empty())
        .take(16)
        .map(str::to_owned)
        .collect();
    // What stands for bytes that are no text is told only when no more can come: too late to stop there.
    if stops
        .iter()
        .any(|stop| stop.contains(char::REPLACEMENT_CHARACTER))
    {
        return false;
    }
    let tokenizer = bytes_only(&["<|end|>"]);
    let mut sequence = Sequence::new(Ending {
        most_tokens: text.len() + 1,
        texts: stops.clone(),
        tokens: Vec::new(),
        ignores_end_tokens: false,
    });
    let mut told = String::new();
    let mut finish = None;
    // A token a byte, and then the end token.
    for token in text.iter().copied().map(u32::from).chain([256]) {
        let Advance { text, finish: end } = sequence.advance(token, &tokenizer);
        told.push_str(&text);
        finish = end;
        if end.is_some() {
            break;
        }
    }
    let whole = String::from_utf8_lossy(text);
    assert_eq!(told, until_stop(&whole, &stops), "{stops:?}");
    assert_eq!(finish, Some(Finish::Stop));
    true
}

/// The text before the stop text that is complete first; before the longest of those that are complete at once.
fn until_stop<'a>(text: &'a str, stops: &[String]) -> &'a str {
    let ends = text
        .char_indices()
        .map(|(at, character)| at + character.len_utf8());
    for end in ends {
        let begun = &text[..end];
        let found = stops.iter().filter(|stop| begun.ends_with(stop.as_str()));
        if let Some(longest) = found.map(String::len).max() {
            return &begun[..end - longest];
        }
    }
    text
}

/// An answer has the same parts in whatever pieces it comes, and nothing of its content is lost.
pub(crate) fn calls(bytes: &[u8]) -> bool {
    let (cuts, text) = split(bytes);
    let (Ok(text), Some((&kind, cuts))) = (std::str::from_utf8(text), cuts.split_first()) else {
        return false;
    };
    let dialect = Dialect {
        notation: if kind & 1 == 0 {
            Notation::Hermes
        } else {
            Notation::Llama
        },
        tells_of_tools: true,
        thinks: kind & 2 != 0,
    };
    let reader = || Reader::new(dialect, vec!["f".to_owned(), "g".to_owned()], kind & 4 != 0);
    let whole = parts(reader(), [text].into_iter());
    let mut pieces = Vec::new();
    let mut rest = text;
    for cut in cuts {
        let at = rest.floor_char_boundary(usize::from(*cut).min(rest.len()));
        let (piece, after) = rest.split_at(at);
        pieces.push(piece);
        rest = after;
    }
    pieces.push(rest);
    assert_eq!(parts(reader(), pieces.into_iter()), whole, "{dialect:?}");
    let one = text
        .char_indices()
        .map(|(at, one)| &text[at..at + one.len_utf8()]);
    assert_eq!(parts(reader(), one), whole, "{dialect:?} letter by letter");
    true
}

/// The parts of an answer, neighbours of one kind joined.
fn parts<'a>(mut reader: Reader, pieces: impl Iterator<Item = &'a str>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    let mut told: Vec<Part> = pieces.flat_map(|piece| reader.push(piece)).collect();
    told.extend(reader.finish());
    for part in told {
        match (all.last_mut(), part) {
            (Some(Part::Thought(before)), Part::Thought(more))
            | (Some(Part::Content(before)), Part::Content(more))
            | (Some(Part::Arguments(before)), Part::Arguments(more)) => before.push_str(&more),
            (_, part) => all.push(part),
        }
    }
    all
}

pub(crate) fn stop_seeds() -> Vec<Vec<u8>> {
    [
        ("STOP", "one STOx STOP two".as_bytes()),
        ("de\0cdx\0bcd", b"abcdef"),
        ("\u{20ac}\0aba", "b\u{20ac}abab\u{1f600}".as_bytes()),
        ("b", b"a\xff\xe2\x82"),
    ]
    .map(|(stops, text)| join(stops.as_bytes(), text))
    .to_vec()
}

pub(crate) fn calls_seeds() -> Vec<Vec<u8>> {
    [
        (0, "Sure. <tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"}\\\"\"}}\n</tool_call>\n<tool_call>\n{\"arguments\": {}, \"name\": \"g\"}\n</tool_call> done"),
        (1, "{\"name\": \"f\", \"parameters\": {\"a\": [1, {}]}}; {\"name\": \"g\", \"parameters\": {}}"),
        (2, "<think>\nperhaps <tool_call>\n</think>\n\n4 < 5"),
        (6, "thoughts</think>\n<tool_call>{\"name\": \"h\", \"arguments\": {}}</tool_call>"),
    ]
    .map(|(kind, text): (u8, &str)| join(&[kind, 3, 1, 7, 11, 2], text.as_bytes()))
    .to_vec()
}
