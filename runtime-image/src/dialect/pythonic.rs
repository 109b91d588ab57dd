//! Calls written as Python: `[get_weather(city="Paris", days=3), now()]`.
//!
//! The beginning of a call is recognised, its arguments are cut apart as they come, and each literal becomes JSON.
//! What is no literal that JSON knows, such as a bare word, is taken for text: models forget quotes.

use serde_json::{Map, Value};

use super::reader::Head;

/// How deep literals may be nested.
const DEEPEST: usize = 64;

/// Reads `[f(`, or `f(` after another call, as far as it takes to know that it is a call of a known function.
/// The byte of [`Head::Streams`] is that after the bracket.
pub(super) fn head(text: &str, names: &[String]) -> Head {
    let trimmed = text.trim_start();
    let rest = trimmed.strip_prefix('[').unwrap_or(trimmed).trim_start();
    let (name, after) = rest.split_at(word(rest));
    let after = after.trim_start();
    if after.is_empty() {
        let open = names.iter().any(|known| known.starts_with(name));
        return if open { Head::Open } else { Head::Wrong };
    }
    let Some(arguments) = after.strip_prefix('(') else {
        return Head::Wrong;
    };
    if !names.iter().any(|known| known == name) {
        return Head::Wrong;
    }
    let streams = || Head::Streams(name.to_owned(), text.len() - arguments.len());
    let first = arguments.trim_start();
    if first.starts_with(')') {
        return streams();
    }
    let equals = first[word(first)..].trim_start();
    match (word(first), equals.as_bytes()) {
        // A letter more tells whether it compares.
        (1.., [] | [b'=']) => Head::Open,
        (1.., [b'=', next, ..]) if *next != b'=' => streams(),
        (0, []) => Head::Open,
        _ => Head::Wrong,
    }
}

/// Bytes of the name at the beginning of a text.
fn word(text: &str) -> usize {
    text.find(|letter: char| !(letter.is_alphanumeric() || "_-.".contains(letter)))
        .unwrap_or(text.len())
}

/// Where in the arguments of a call a reader is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scan {
    /// Bytes of the argument that have been looked at.
    seen: usize,
    depth: usize,
    quote: Option<char>,
    escaped: bool,
    /// Arguments told so far.
    told: usize,
}

/// What ends an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Another argument follows.
    Argument,
    /// The call is over.
    Call,
}

impl Scan {
    /// Finds the end of the argument at the beginning of `held`: its bytes, and what ends it.
    pub(super) fn end(&mut self, held: &str) -> Option<(usize, End)> {
        for (at, letter) in held.char_indices() {
            if at < self.seen {
                continue;
            }
            self.seen = at + letter.len_utf8();
            if let Some(quote) = self.quote {
                match letter {
                    _ if self.escaped => self.escaped = false,
                    '\\' => self.escaped = true,
                    _ if letter == quote => self.quote = None,
                    _ => {}
                }
                continue;
            }
            match letter {
                '"' | '\'' => self.quote = Some(letter),
                ',' if self.depth == 0 => return Some((at, End::Argument)),
                ')' if self.depth == 0 => return Some((at, End::Call)),
                '(' | '[' | '{' => self.depth += 1,
                ')' | ']' | '}' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        None
    }

    /// Turns one argument into a member of a JSON object, and is ready for the next.
    /// What has no name is passed over: Python knows none after those with names.
    pub(super) fn member(&mut self, argument: &str) -> String {
        let told = self.told;
        *self = Self::default();
        self.told = told;
        let Some((name, value)) = argument.split_once('=') else {
            return String::new();
        };
        self.told += 1;
        let before = if told == 0 { "" } else { ", " };
        let name = Value::String(name.trim().to_owned());
        format!("{before}{name}: {}", value_of(value.trim()))
    }
}

/// A literal as JSON, or its letters as a text.
fn value_of(text: &str) -> Value {
    let mut literal = Literal(text);
    match literal.value(0) {
        Some(value) if literal.0.trim_start().is_empty() => value,
        _ => Value::String(text.to_owned()),
    }
}

/// What is left of a literal.
struct Literal<'a>(&'a str);

impl Literal<'_> {
    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        match self.peek()? {
            '"' | '\'' => self.string().map(Value::String),
            '[' => self.list(']', depth).map(Value::Array),
            '(' => self.list(')', depth).map(Value::Array),
            '{' => self.dictionary(depth).map(Value::Object),
            _ => self.word(),
        }
    }

    /// The next letter that is no blank.
    fn peek(&mut self) -> Option<char> {
        self.0 = self.0.trim_start();
        self.0.chars().next()
    }

    fn take(&mut self, letter: char) -> bool {
        self.peek();
        match self.0.strip_prefix(letter) {
            Some(rest) => {
                self.0 = rest;
                true
            }
            None => false,
        }
    }

    fn list(&mut self, closing: char, depth: usize) -> Option<Vec<Value>> {
        self.0 = &self.0[1..];
        let mut values = Vec::new();
        while !self.take(closing) {
            values.push(self.value(depth + 1)?);
            if !self.take(',') {
                return self.take(closing).then_some(values);
            }
        }
        Some(values)
    }

    fn dictionary(&mut self, depth: usize) -> Option<Map<String, Value>> {
        self.0 = &self.0[1..];
        let mut members = Map::new();
        while !self.take('}') {
            // JSON has texts for names only; Python's own writer of JSON turns the others into text, too.
            let name = match self.value(depth + 1)? {
                Value::String(name) => name,
                Value::Array(_) | Value::Object(_) => return None,
                other => other.to_string(),
            };
            if !self.take(':') {
                return None;
            }
            members.insert(name, self.value(depth + 1)?);
            if !self.take(',') {
                return self.take('}').then_some(members);
            }
        }
        Some(members)
    }

    /// A number or a name that stands for a value, in Python's words or JSON's.
    fn word(&mut self) -> Option<Value> {
        let end = self
            .0
            .find([',', ':', ']', '}', ')'])
            .unwrap_or(self.0.len());
        let (text, rest) = self.0.split_at(end);
        self.0 = rest;
        match text.trim_end() {
            "True" | "true" => Some(Value::Bool(true)),
            "False" | "false" => Some(Value::Bool(false)),
            "None" | "null" => Some(Value::Null),
            number => number_of(number),
        }
    }

    fn string(&mut self) -> Option<String> {
        let mut letters = self.0.chars();
        let quote = letters.next()?;
        let mut text = String::new();
        loop {
            match letters.next()? {
                '\\' => escape(&mut letters, &mut text)?,
                letter if letter == quote => break,
                letter => text.push(letter),
            }
        }
        self.0 = letters.as_str();
        Some(text)
    }
}

/// What stands after a backslash.
fn escape(letters: &mut std::str::Chars<'_>, text: &mut String) -> Option<()> {
    let letter = letters.next()?;
    let digits = match letter {
        'x' => 2,
        'u' => 4,
        'U' => 8,
        _ => 0,
    };
    if digits > 0 {
        let first = code(letters, digits)?;
        // Half of a letter beyond 16 bits: its other half follows.
        let whole = if (0xd800..0xdc00).contains(&first) && letters.as_str().starts_with("\\u") {
            letters.nth(1);
            let second = code(letters, 4)?;
            0x1_0000 + (first - 0xd800) * 0x400 + second.checked_sub(0xdc00)?
        } else {
            first
        };
        text.push(char::from_u32(whole)?);
        return Some(());
    }
    match letter {
        'n' => text.push('\n'),
        't' => text.push('\t'),
        'r' => text.push('\r'),
        'b' => text.push('\u{8}'),
        'f' => text.push('\u{c}'),
        'a' => text.push('\u{7}'),
        'v' => text.push('\u{b}'),
        '0' => text.push('\0'),
        '\\' | '\'' | '"' => text.push(letter),
        '\n' => {}
        // Python keeps the backslash before a letter that it gives no meaning.
        other => text.extend(['\\', other]),
    }
    Some(())
}

fn code(letters: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    let digits = letters.as_str().get(..digits)?;
    let code = u32::from_str_radix(digits, 16).ok()?;
    letters.nth(digits.len() - 1);
    Some(code)
}

/// A number of Python's that JSON has, too.
fn number_of(text: &str) -> Option<Value> {
    let plain: String = text.chars().filter(|letter| *letter != '_').collect();
    let plain = plain.strip_prefix('+').unwrap_or(&plain);
    let begins = plain.starts_with(|first: char| first.is_ascii_digit() || "-.".contains(first));
    if !begins || text.starts_with('_') {
        return None;
    }
    if let Ok(whole) = plain.parse::<i64>() {
        return Some(whole.into());
    }
    if let Ok(whole) = plain.parse::<u64>() {
        return Some(whole.into());
    }
    plain
        .parse::<f64>()
        .ok()
        .filter(|number| number.is_finite())
        .map(Value::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_become_json() {
        for (python, expected) in [
            ("\"Paris\"", json!("Paris")),
            ("'it\\'s \"so\"'", json!("it's \"so\"")),
            ("'a\\n\\t\\\\\\x41\\u00e9\\U0001F600'", json!("a\n\t\\Aé😀")),
            ("'\\ud83d\\ude00'", json!("😀")),
            ("'\\d'", json!("\\d")),
            ("3", json!(3)),
            ("-3", json!(-3)),
            ("1_000", json!(1000)),
            ("18446744073709551615", json!(u64::MAX)),
            ("2.5e3", json!(2500.0)),
            (".5", json!(0.5)),
            ("True", json!(true)),
            ("false", json!(false)),
            ("None", json!(null)),
            ("[1, 'a', [True,],]", json!([1, "a", [true]])),
            ("(1, 2)", json!([1, 2])),
            ("[]", json!([])),
            (
                "{'a': {\"b\": None}, 2: 'x'}",
                json!({"a": {"b": null}, "2": "x"}),
            ),
            ("{}", json!({})),
            // No literals: text as it stands.
            ("Paris", json!("Paris")),
            ("x + 1", json!("x + 1")),
            ("now()", json!("now()")),
            ("'a' 'b'", json!("'a' 'b'")),
            ("nan", json!("nan")),
            ("{[]: 1}", json!("{[]: 1}")),
            ("'\\x4'", json!("'\\x4'")),
            ("", json!("")),
        ] {
            assert_eq!(value_of(python), expected, "{python}");
        }
        let deep = "[".repeat(10_000) + &"]".repeat(10_000);
        assert_eq!(value_of(&deep), json!(deep));
    }

    #[test]
    fn a_call_is_known_by_its_name_and_its_first_argument() {
        let names = ["f".to_owned(), "get.it".to_owned()];
        let streams = |name: &str, at: usize| Head::Streams(name.to_owned(), at);
        for (text, expected) in [
            ("", Head::Open),
            ("[", Head::Open),
            ("[f", Head::Open),
            ("[f(", Head::Open),
            ("[f(city", Head::Open),
            ("[f(city=", Head::Open),
            ("[f(city='", streams("f", 3)),
            ("[ f ( city = '", streams("f", 5)),
            ("[f()", streams("f", 3)),
            ("[get.it(a=1", streams("get.it", 8)),
            (" f(a=1", streams("f", 3)),
            ("[g", Head::Open),
            ("[go", Head::Wrong),
            ("[1, 2]", Head::Wrong),
            ("[f, g]", Head::Wrong),
            ("[f(1)", Head::Wrong),
            ("[f(a==1", Head::Wrong),
            ("[f(a, b)", Head::Wrong),
            ("[f('a')", Head::Wrong),
        ] {
            assert_eq!(head(text, &names), expected, "{text}");
        }
    }
}
