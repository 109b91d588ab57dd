//! An answer's text to thoughts, content and calls, piece by piece: whatever the pieces, the parts are the same.
//!
//! What looks like a call and is none (broken JSON, a function that nobody offered) is content, letter by letter as it came.

use serde_json::Value;

use super::pythonic::{self, End, Scan};
use super::{Dialect, Notation, THOUGHTS_BEGIN, THOUGHTS_END};

/// Before a call in Hermes' notation.
const OPENING: &str = "<tool_call>";

/// After it.
const CLOSING: &str = "</tool_call>";

/// Bytes of a call that is held back until it is known to be one: name and arguments in an unusual order.
const LONGEST_HELD: usize = 1 << 20;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// More thoughts.
    Thought(String),
    /// More of the answer proper.
    Content(String),
    /// A call begins.
    Call {
        /// Of the function.
        name: String,
    },
    /// More of the last call's arguments, which are JSON when all have come.
    Arguments(String),
}

/// What is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing but white space has come: thoughts may begin.
    Start,
    /// Thoughts have begun, their first letter has not come.
    Pause,
    Thoughts,
    /// After thoughts, before the first letter of the answer.
    Gap,
    /// Content; a call may begin.
    Content,
    /// Inside a call, nothing of which is told yet.
    Head,
    /// Inside the arguments of a call.
    Arguments(Json),
    /// Inside the arguments of a call in Python.
    Named(Scan),
    /// After the arguments: what closes the call, or separates it from the next.
    Tail,
}

/// Reads one answer.
pub struct Reader {
    dialect: Dialect,
    /// Functions that count; without any, nothing is a call.
    names: Vec<String>,
    place: Place,
    /// Came, but is not told yet.
    held: String,
    calls: usize,
    /// Whether any content was told.
    spoke: bool,
    /// Whether a call was the last that was told.
    after_call: bool,
}

/// How far a JSON value has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Json {
    depth: usize,
    quoted: bool,
    escaped: bool,
}

impl Json {
    /// Takes a character; true with the one that ends the outermost object.
    fn ends(&mut self, character: char) -> bool {
        if self.quoted {
            match character {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.quoted = false,
                _ => {}
            }
            return false;
        }
        match character {
            '"' => self.quoted = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// What the beginning of a call tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Head {
    /// Not enough.
    Open,
    /// It is no call.
    Wrong,
    /// A call whose arguments begin at this byte.
    Streams(String, usize),
    /// A whole call, its arguments, and the byte after it.
    Whole(String, String, usize),
}

impl Reader {
    /// A reader of an answer. `thinking`: the prompt has begun the thoughts already.
    #[must_use]
    pub fn new(dialect: Dialect, names: Vec<String>, thinking: bool) -> Self {
        let place = match (thinking, dialect.thinks) {
            (true, _) => Place::Pause,
            (false, true) => Place::Start,
            (false, false) => Place::Content,
        };
        Self {
            dialect,
            names,
            place,
            held: String::new(),
            calls: 0,
            spoke: false,
            after_call: false,
        }
    }

    /// Calls begun so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Takes more of the answer.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held.push_str(text);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// Takes the end of the answer.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = self.push("");
        let rest = std::mem::take(&mut self.held);
        match self.place {
            Place::Thoughts => tell(&mut parts, Part::Thought(rest)),
            Place::Start | Place::Gap | Place::Content | Place::Head => {
                self.content(&mut parts, rest);
            }
            // An answer that was cut inside a call keeps what came of it.
            Place::Arguments(_) => tell(&mut parts, Part::Arguments(rest)),
            // Half a literal is no JSON, so only those before it are kept.
            Place::Named(_) => {}
            Place::Pause | Place::Tail => {}
        }
        parts
    }

    /// Tells what can be told; true if there may be more to tell.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.place {
            Place::Start => {
                let trimmed = self.held.trim_start();
                if let Some(rest) = trimmed.strip_prefix(THOUGHTS_BEGIN) {
                    self.held = rest.to_owned();
                    self.place = Place::Pause;
                    return true;
                }
                if THOUGHTS_BEGIN.starts_with(trimmed) {
                    return false;
                }
                self.place = Place::Content;
                true
            }
            Place::Pause => {
                self.held = self.held.trim_start_matches('\n').to_owned();
                if !self.held.is_empty() {
                    self.place = Place::Thoughts;
                }
                self.place == Place::Thoughts
            }
            Place::Thoughts => match self.held.split_once(THOUGHTS_END) {
                Some((thoughts, rest)) => {
                    tell(
                        parts,
                        Part::Thought(thoughts.trim_end_matches('\n').to_owned()),
                    );
                    self.held = rest.to_owned();
                    self.place = Place::Gap;
                    true
                }
                None => {
                    // Line feeds before the end belong to it.
                    let certain = self.held.len() - beginning(&self.held, THOUGHTS_END);
                    let certain = self.held[..certain].trim_end_matches('\n').len();
                    let rest = self.held.split_off(certain);
                    tell(
                        parts,
                        Part::Thought(std::mem::replace(&mut self.held, rest)),
                    );
                    false
                }
            },
            Place::Gap => {
                self.held = self.held.trim_start().to_owned();
                self.place = if self.held.is_empty() {
                    Place::Gap
                } else {
                    Place::Content
                };
                self.place == Place::Content
            }
            Place::Content => self.step_content(parts),
            Place::Head => self.step_head(parts),
            Place::Arguments(json) => self.step_arguments(json, parts),
            Place::Named(scan) => self.step_named(scan, parts),
            Place::Tail => match self.dialect.notation {
                Notation::Hermes | Notation::Llama => self.step_tail(),
                Notation::Pythonic => self.step_python_tail(),
            },
        }
    }

    fn step_content(&mut self, parts: &mut Vec<Part>) -> bool {
        if self.held.is_empty() {
            return false;
        }
        if self.names.is_empty() {
            let text = std::mem::take(&mut self.held);
            self.content(parts, text);
            return false;
        }
        match self.dialect.notation {
            Notation::Hermes => {
                if let Some(at) = self.held.find(OPENING) {
                    let rest = self.held.split_off(at);
                    let text = std::mem::replace(&mut self.held, rest);
                    self.before_call(parts, text);
                    self.place = Place::Head;
                    return true;
                }
                // White space before a call belongs to it.
                let certain = self.held.len() - beginning(&self.held, OPENING);
                let certain = self.held[..certain].trim_end().len();
                let rest = self.held.split_off(certain);
                let text = std::mem::replace(&mut self.held, rest);
                self.content(parts, text);
                false
            }
            Notation::Llama | Notation::Pythonic => {
                let trimmed = self.held.trim_start();
                if !self.spoke && trimmed.is_empty() {
                    return false;
                }
                let python = self.dialect.notation == Notation::Pythonic;
                if !self.spoke && trimmed.starts_with('{') {
                    // What a required call is held to.
                    self.dialect.notation = Notation::Llama;
                    self.place = Place::Head;
                    return true;
                }
                if !self.spoke && python && trimmed.starts_with('[') {
                    self.place = Place::Head;
                    return true;
                }
                let text = std::mem::take(&mut self.held);
                self.content(parts, text);
                false
            }
        }
    }

    fn step_head(&mut self, parts: &mut Vec<Part>) -> bool {
        let opening = match self.dialect.notation {
            Notation::Hermes => OPENING.len(),
            Notation::Llama | Notation::Pythonic => 0,
        };
        let head = match self.dialect.notation {
            Notation::Hermes | Notation::Llama => head(&self.held[opening..], &self.names),
            Notation::Pythonic => pythonic::head(&self.held, &self.names),
        };
        match head {
            Head::Open if self.held.len() <= LONGEST_HELD => false,
            Head::Open | Head::Wrong => {
                // At least the first letter is no beginning of a call.
                let first = self.held.chars().next().map_or(0, char::len_utf8);
                let rest = self.held.split_off(opening.max(first));
                let text = std::mem::replace(&mut self.held, rest);
                self.content(parts, text);
                self.place = Place::Content;
                true
            }
            Head::Streams(name, at) => {
                self.calls += 1;
                self.after_call = true;
                parts.push(Part::Call { name });
                self.held.drain(..opening + at);
                self.place = match self.dialect.notation {
                    Notation::Hermes | Notation::Llama => Place::Arguments(Json::default()),
                    Notation::Pythonic => {
                        tell(parts, Part::Arguments("{".to_owned()));
                        Place::Named(Scan::default())
                    }
                };
                true
            }
            Head::Whole(name, arguments, at) => {
                self.calls += 1;
                self.after_call = true;
                parts.push(Part::Call { name });
                tell(parts, Part::Arguments(arguments));
                self.held.drain(..opening + at);
                self.place = Place::Tail;
                true
            }
        }
    }

    fn step_arguments(&mut self, mut json: Json, parts: &mut Vec<Part>) -> bool {
        let end = self
            .held
            .char_indices()
            .find(|(_, character)| json.ends(*character));
        match end {
            Some((at, character)) => {
                let rest = self.held.split_off(at + character.len_utf8());
                tell(
                    parts,
                    Part::Arguments(std::mem::replace(&mut self.held, rest)),
                );
                self.place = Place::Tail;
                true
            }
            None => {
                tell(parts, Part::Arguments(std::mem::take(&mut self.held)));
                self.place = Place::Arguments(json);
                false
            }
        }
    }

    fn step_named(&mut self, mut scan: Scan, parts: &mut Vec<Part>) -> bool {
        let end = scan.end(&self.held);
        let Some((at, end)) = end else {
            self.place = Place::Named(scan);
            return false;
        };
        let rest = self.held.split_off(at + 1);
        let argument = std::mem::replace(&mut self.held, rest);
        let mut text = scan.member(&argument[..at]);
        self.place = match end {
            End::Argument => Place::Named(scan),
            End::Call => {
                text.push('}');
                Place::Tail
            }
        };
        tell(parts, Part::Arguments(text));
        true
    }

    /// Passes over what stands between calls in Python or closes their list.
    fn step_python_tail(&mut self) -> bool {
        let text = self.held.trim_start();
        let (rest, place) = if let Some(rest) = text.strip_prefix(',') {
            (rest, Place::Head)
        } else if text.is_empty() {
            return false;
        } else {
            (text.strip_prefix(']').unwrap_or(text), Place::Content)
        };
        self.held = rest.to_owned();
        self.place = place;
        true
    }

    /// Passes over what closes a call.
    fn step_tail(&mut self) -> bool {
        let text = self.held.trim_start();
        let text = text.strip_prefix('}').unwrap_or(text).trim_start();
        let (skipped, open) = match self.dialect.notation {
            Notation::Hermes => match text.strip_prefix(CLOSING) {
                Some(rest) => (rest.trim_start(), false),
                None => (text, CLOSING.starts_with(text)),
            },
            Notation::Llama | Notation::Pythonic => {
                let rest = text.trim_start_matches([';', ' ', '\n', '\r', '\t']);
                (rest, rest.is_empty())
            }
        };
        if open {
            return false;
        }
        self.held = skipped.to_owned();
        self.place = match self.dialect.notation {
            Notation::Llama if self.held.starts_with('{') => Place::Head,
            Notation::Hermes | Notation::Llama | Notation::Pythonic => Place::Content,
        };
        !self.held.is_empty()
    }

    /// White space between calls is nobody's.
    fn before_call(&mut self, parts: &mut Vec<Part>, text: String) {
        let text = text.trim_end();
        self.content(parts, text.to_owned());
    }

    /// Tells content; blanks after a call are nobody's.
    fn content(&mut self, parts: &mut Vec<Part>, text: String) {
        let text = if self.after_call {
            text.trim_start().to_owned()
        } else {
            text
        };
        if text.is_empty() {
            return;
        }
        self.spoke = true;
        self.after_call = false;
        tell(parts, Part::Content(text));
    }
}

/// Adds a part that is not empty.
fn tell(parts: &mut Vec<Part>, part: Part) {
    let (Part::Thought(text)
    | Part::Content(text)
    | Part::Arguments(text)
    | Part::Call { name: text }) = &part;
    if !text.is_empty() {
        parts.push(part);
    }
}

/// Length of the longest end of `text` with which `word` begins.
fn beginning(text: &str, word: &str) -> usize {
    (1..word.len().min(text.len() + 1))
        .rev()
        .find(|length| text.ends_with(&word[..*length]))
        .unwrap_or(0)
}

/// What JSON takes for blanks; Unicode knows more.
const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];

/// Reads `{"name": "f", "arguments": {` or a whole call with its members in any order.
fn head(text: &str, names: &[String]) -> Head {
    let known = |name: &str| names.iter().any(|known| known == name);
    let mut rest = text.trim_start_matches(BLANKS);
    match rest.strip_prefix('{') {
        Some(after) => rest = after.trim_start_matches(BLANKS),
        None if rest.is_empty() => return Head::Open,
        None => return Head::Wrong,
    }
    // The usual order: what comes first is the name.
    let mut usual = || -> Option<(String, usize)> {
        rest = rest
            .strip_prefix("\"name\"")?
            .trim_start_matches(BLANKS)
            .strip_prefix(':')?
            .trim_start_matches(BLANKS);
        let (name, after) = string(rest)?;
        rest = after
            .trim_start_matches(BLANKS)
            .strip_prefix(',')?
            .trim_start_matches(BLANKS);
        rest = rest
            .strip_prefix("\"arguments\"")
            .or_else(|| rest.strip_prefix("\"parameters\""))?;
        rest = rest
            .trim_start_matches(BLANKS)
            .strip_prefix(':')?
            .trim_start_matches(BLANKS);
        rest.starts_with('{')
            .then(|| (name, text.len() - rest.len()))
    };
    if let Some((name, at)) = usual() {
        return if known(&name) {
            Head::Streams(name, at)
        } else {
            Head::Wrong
        };
    }
    whole(text, known)
}

/// A JSON string at the start of a text, and what follows it.
fn string(text: &str) -> Option<(String, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<String>();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

fn whole(text: &str, known: impl Fn(&str) -> bool) -> Head {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) if !error.is_eof() => return Head::Wrong,
        Some(Err(_)) | None => return Head::Open,
    };
    let end = values.byte_offset();
    let name = value
        .get("name")
        .and_then(Value::as_str)
        .filter(|name| known(name));
    let arguments = match value.get("arguments").or_else(|| value.get("parameters")) {
        Some(Value::Object(members)) => Some(Value::Object(members.clone()).to_string()),
        // Some models write the arguments as text.
        Some(Value::String(text)) => {
            let object = serde_json::from_str::<serde_json::Map<String, Value>>(text).is_ok();
            object.then(|| text.clone())
        }
        None | Some(Value::Null) => Some("{}".to_owned()),
        Some(_) => None,
    };
    match (name, arguments) {
        (Some(name), Some(arguments)) => Head::Whole(name.to_owned(), arguments, end),
        _ => Head::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(notation: Notation, thinks: bool) -> Dialect {
        Dialect {
            notation,
            tells_of_tools: true,
            thinks,
        }
    }

    /// Neighbours of one kind put together.
    fn joined(parts: Vec<Part>) -> Vec<Part> {
        let mut all: Vec<Part> = Vec::new();
        for part in parts {
            match (all.last_mut(), part) {
                (Some(Part::Thought(text)), Part::Thought(more))
                | (Some(Part::Content(text)), Part::Content(more))
                | (Some(Part::Arguments(text)), Part::Arguments(more)) => text.push_str(&more),
                (_, part) => all.push(part),
            }
        }
        all
    }

    /// Reads a text in pieces of every length; all give the same.
    fn read(dialect: Dialect, thinking: bool, text: &str) -> Vec<Part> {
        let characters: Vec<char> = text.chars().collect();
        let in_pieces = |length: usize| {
            let mut reader = Reader::new(dialect, vec!["f".to_owned(), "g".to_owned()], thinking);
            let mut parts = Vec::new();
            for piece in characters.chunks(length) {
                parts.extend(reader.push(&piece.iter().collect::<String>()));
            }
            parts.extend(reader.finish());
            joined(parts)
        };
        let once = in_pieces(characters.len().max(1));
        for length in 1..characters.len() {
            assert_eq!(in_pieces(length), once, "{text:?} in pieces of {length}");
        }
        once
    }

    fn content(text: &str) -> Part {
        Part::Content(text.to_owned())
    }

    fn call(name: &str, arguments: &str) -> [Part; 2] {
        [
            Part::Call {
                name: name.to_owned(),
            },
            Part::Arguments(arguments.to_owned()),
        ]
    }

    #[test]
    fn calls_of_hermes_are_read_among_content() {
        let hermes = dialect(Notation::Hermes, false);
        let one = r#"<tool_call>
{"name": "f", "arguments": {"a": "x}\"{", "b": [1, {}]}}
</tool_call>"#;
        let arguments = r#"{"a": "x}\"{", "b": [1, {}]}"#;
        assert_eq!(read(hermes, false, one), call("f", arguments));
        let two = format!(
            "Let me see.\n{one}\n<tool_call>{{\"arguments\": {{}}, \"name\": \"g\"}}</tool_call>"
        );
        let expected = [
            vec![content("Let me see.")],
            call("f", arguments).to_vec(),
            call("g", "{}").to_vec(),
        ]
        .concat();
        assert_eq!(read(hermes, false, &two), expected);
    }

    #[test]
    fn what_json_does_not_take_for_a_blank_makes_no_call() {
        let text = "{\"name\": \"f\", \"parameters\"\u{c}: {\"a\": 1}}";
        let parts = read(dialect(Notation::Llama, false), false, text);
        assert_eq!(parts, [Part::Content(text.to_owned())]);
    }

    #[test]
    fn blanks_around_calls_are_nobody_s() {
        let hermes = dialect(Notation::Hermes, false);
        let text = "a \n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call> \n b ";
        let expected = [
            vec![content("a")],
            call("f", "{}").to_vec(),
            vec![content("b ")],
        ];
        assert_eq!(read(hermes, false, text), expected.concat());
    }

    #[test]
    fn what_is_no_call_is_content() {
        let hermes = dialect(Notation::Hermes, false);
        for text in [
            "a < b <tool",
            "<tool_call>\nno JSON\n</tool_call>",
            "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": 7}</tool_call>",
            "<tool_call>{\"name\": \"f\", \"arg",
            "",
        ] {
            let expected: Vec<Part> = if text.is_empty() {
                Vec::new()
            } else {
                vec![content(text)]
            };
            assert_eq!(read(hermes, false, text), expected, "{text}");
        }
        let llama = dialect(Notation::Llama, false);
        for text in [
            "{\"name\": \"Bob\", \"parameters\": {}}",
            "{1}",
            "\u{a0}{1}",
            "text {\"name\": \"f\", \"parameters\": {}}",
        ] {
            assert_eq!(read(llama, false, text), [content(text)], "{text}");
        }
    }

    #[test]
    fn calls_of_llama_are_the_whole_answer() {
        let llama = dialect(Notation::Llama, false);
        let one = "{\"name\": \"f\", \"parameters\": {\"x\": 1}}";
        assert_eq!(read(llama, false, one), call("f", "{\"x\": 1}"));
        let two = format!("{one}; {{\"name\": \"g\", \"parameters\": \"{{}}\"}}");
        assert_eq!(
            read(llama, false, &two),
            [call("f", "{\"x\": 1}"), call("g", "{}")].concat()
        );
    }

    #[test]
    fn calls_in_python_are_the_whole_answer() {
        let pythonic = dialect(Notation::Pythonic, false);
        for (text, expected) in [
            ("[f(a=1)]", call("f", "{\"a\": 1}").to_vec()),
            (
                " [ f(city = 'Pa)r]i\\'s, (x', days=[1, 2]) , g() ]\n",
                [
                    call("f", "{\"city\": \"Pa)r]i's, (x\", \"days\": [1,2]}"),
                    call("g", "{}"),
                ]
                .concat(),
            ),
            (
                "[f(a={\"b\": (None, True)}, c=Paris,)] done",
                [
                    call("f", "{\"a\": {\"b\":[null,true]}, \"c\": \"Paris\"}").to_vec(),
                    vec![content("done")],
                ]
                .concat(),
            ),
            // Held to JSON because a call was required.
            (
                "{\"name\": \"f\", \"parameters\": {\"x\": 1}}",
                call("f", "{\"x\": 1}").to_vec(),
            ),
            // An answer that was cut keeps its whole arguments.
            ("[f(a=1, b='x", call("f", "{\"a\": 1").to_vec()),
            (
                "[f(),é",
                [call("f", "{}").to_vec(), vec![content("é")]].concat(),
            ),
            // The list goes on with something else.
            (
                "[f(), h()]",
                [call("f", "{}").to_vec(), vec![content("h()]")]].concat(),
            ),
        ] {
            assert_eq!(read(pythonic, false, text), expected, "{text}");
        }
        for text in [
            "[1, 2, 3]",
            "[h(a=1)]",
            "[f, g]",
            "[f(1)]",
            "\u{a0}[1]",
            "See [f(a=1)]",
            "f(a=1)",
            "[f(a",
        ] {
            assert_eq!(read(pythonic, false, text), [content(text)], "{text}");
        }
    }

    #[test]
    fn arguments_in_python_are_told_one_by_one() {
        let names = vec!["f".to_owned()];
        let mut reader = Reader::new(dialect(Notation::Pythonic, false), names, false);
        let arguments = |text: &str| Part::Arguments(text.to_owned());
        assert_eq!(reader.push("[f(a="), []);
        let call = Part::Call {
            name: "f".to_owned(),
        };
        assert_eq!(reader.push("'x"), [call, arguments("{")]);
        assert_eq!(reader.push("y"), []);
        assert_eq!(reader.push("', b"), [arguments("\"a\": \"xy\"")]);
        assert_eq!(reader.push("=2)"), [arguments(", \"b\": 2}")]);
        assert_eq!(reader.push("]"), []);
        assert_eq!(reader.finish(), []);
    }

    #[test]
    fn an_answer_that_was_cut_keeps_what_came_of_its_call() {
        let hermes = dialect(Notation::Hermes, false);
        let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"x\": \"ab";
        assert_eq!(read(hermes, false, text), call("f", "{\"x\": \"ab"));
    }

    #[test]
    fn thoughts_come_apart_from_the_answer() {
        let hermes = dialect(Notation::Hermes, true);
        let thought = |text: &str| Part::Thought(text.to_owned());
        assert_eq!(
            read(hermes, false, "<think>\nHm < 3.\n\nSo.\n</think>\n\nYes."),
            [thought("Hm < 3.\n\nSo."), content("Yes.")]
        );
        assert_eq!(
            read(hermes, true, "Hm.</think>Yes."),
            [thought("Hm."), content("Yes.")]
        );
        assert_eq!(read(hermes, true, "Hm."), [thought("Hm.")]);
        assert_eq!(
            read(hermes, false, "Yes. </think>"),
            [content("Yes. </think>")]
        );
        let then_call =
            "<think>x</think>\n<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        assert_eq!(
            read(hermes, false, then_call),
            [vec![thought("x")], call("f", "{}").to_vec()].concat()
        );
    }
}
