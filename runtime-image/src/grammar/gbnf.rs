//! Grammars in GBNF, the notation of llama.cpp and of most of vLLM's backends, as the same grammar in Lark's notation.
//!
//! Rules are `name ::= …` with texts in quotes, classes of characters in brackets, `.`, groups, `|`, `*`, `+`, `?` and `{m,n}`;
//! the answer is what `root` derives. A class is one character: where a text could begin instead of it, the longer match counts.

use std::collections::HashMap;
use std::fmt::Write as _;

/// Whether a grammar is written in this notation: its first rule is.
pub(super) fn is_gbnf(source: &str) -> bool {
    let mut tokens = Tokens::new(source);
    matches!(tokens.next(), Ok(Some(Token::Name(_))))
        && matches!(tokens.next(), Ok(Some(Token::Define)))
}

/// The same grammar in Lark's notation, whose rule `start` is the rule `root`.
///
/// # Errors
/// With the line and what is wrong there.
pub(super) fn to_lark(source: &str) -> Result<String, String> {
    let mut tokens = Tokens::new(source);
    let mut all = Vec::new();
    while let Some(token) = tokens.next().map_err(|what| tokens.refuse(&what))? {
        all.push((token, tokens.begun));
    }
    // A rule begins where a name is defined; everything up to the next one is its body, whatever lines it takes.
    let mut names: HashMap<&str, usize> = HashMap::new();
    for pair in all.windows(2) {
        if let [(Token::Name(name), line), (Token::Define, _)] = pair {
            let number = names.len();
            if names.insert(name, number).is_some() {
                return Err(format!("line {line}: the rule {name} stands twice"));
            }
        }
    }
    let root = names.get("root").ok_or("there is no rule root")?;
    let mut lark = format!("start: r{root}");
    let mut rest = all.iter().peekable();
    let mut begun = false;
    while let Some((token, line)) = rest.next() {
        let defines = matches!(rest.peek(), Some((Token::Define, _)));
        if !begun && !defines {
            return Err(format!("line {line}: expected a rule, NAME ::= …"));
        }
        // Writing to a string cannot fail.
        let _ = match token {
            Token::Name(name) => {
                let Some(number) = names.get(name.as_str()) else {
                    return Err(format!("line {line}: there is no rule {name}"));
                };
                if defines {
                    begun = true;
                    rest.next();
                    write!(lark, "\nr{number}:")
                } else {
                    write!(lark, " r{number}")
                }
            }
            Token::Define => return Err(format!("line {line}: ::= without a name before it")),
            Token::Text(text) => write!(lark, " {}", serde_json::Value::from(text.as_str())),
            Token::Class(class) => write!(lark, " /{class}/"),
            // Belongs to what stands before it.
            Token::Repeat(repeat) => write!(lark, "{repeat}"),
            Token::Mark(mark) => write!(lark, " {mark}"),
        };
    }
    lark.push('\n');
    Ok(lark)
}

#[derive(Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    Define,
    Text(String),
    /// A regular expression of one character.
    Class(String),
    /// `*`, `+`, `?` or `{m,n}`.
    Repeat(String),
    /// `(`, `)` or `|`.
    Mark(char),
}

struct Tokens<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
    /// The line in which the last token began.
    begun: usize,
}

impl<'a> Tokens<'a> {
    fn new(source: &'a str) -> Self {
        Self {
            rest: source.chars().peekable(),
            line: 1,
            begun: 1,
        }
    }

    fn refuse(&self, what: &str) -> String {
        format!("line {}: {what}", self.line)
    }

    fn take(&mut self) -> Option<char> {
        let character = self.rest.next();
        self.line += usize::from(character == Some('\n'));
        character
    }

    fn take_while(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(character) = self.rest.next_if(|character| belongs(*character)) {
            taken.push(character);
        }
        taken
    }

    /// The next token, or none at the end.
    fn next(&mut self) -> Result<Option<Token>, String> {
        loop {
            match self.rest.peek() {
                Some('#') => {
                    self.take_while(|character| character != '\n');
                }
                Some(character) if character.is_whitespace() => {
                    self.take();
                }
                _ => break,
            }
        }
        self.begun = self.line;
        let Some(character) = self.rest.peek().copied() else {
            return Ok(None);
        };
        let is_name =
            |character: char| character.is_ascii_alphanumeric() || "_-".contains(character);
        if is_name(character) {
            return Ok(Some(Token::Name(self.take_while(is_name))));
        }
        self.take();
        Ok(Some(match character {
            '"' => Token::Text(self.text()?),
            '[' => Token::Class(self.class()?),
            '.' => Token::Class("[\\u{0}-\\u{10FFFF}]".to_owned()),
            '(' | ')' | '|' => Token::Mark(character),
            '*' | '+' | '?' => Token::Repeat(character.to_string()),
            '{' => {
                let bounds = self.take_while(|character| character != '}' && character != '\n');
                self.take();
                let bounds: String = bounds.split_whitespace().collect();
                let valid = bounds
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b',');
                if !valid || bounds.starts_with(',') || bounds.is_empty() {
                    return Err(format!(
                        "expected {{m}}, {{m,}} or {{m,n}}, found {{{bounds}}}"
                    ));
                }
                Token::Repeat(format!("{{{bounds}}}"))
            }
            ':' if self.take() == Some(':') && self.take() == Some('=') => Token::Define,
            other => return Err(format!("unexpected {other:?}")),
        }))
    }

    /// The rest of a text in quotes.
    fn text(&mut self) -> Result<String, String> {
        let mut text = String::new();
        loop {
            match self.take() {
                Some('"') => return Ok(text),
                Some('\\') => text.push(self.escaped()?),
                Some('\n') | None => return Err("a text without its closing quote".to_owned()),
                Some(character) => text.push(character),
            }
        }
    }

    /// The rest of a class, as a regular expression in which every character is a number.
    fn class(&mut self) -> Result<String, String> {
        let mut class = "[".to_owned();
        if self.rest.next_if_eq(&'^').is_some() {
            class.push('^');
        }
        let mut empty = true;
        loop {
            let character = match self.take() {
                Some(']') if empty => return Err("an empty class".to_owned()),
                Some(']') => {
                    class.push(']');
                    return Ok(class);
                }
                Some('\\') => self.escaped()?,
                // Between two characters it makes a range of them, elsewhere it is one.
                Some('-') if !empty && self.rest.peek().is_some_and(|next| *next != ']') => {
                    class.push('-');
                    continue;
                }
                Some('\n') | None => return Err("a class without its closing bracket".to_owned()),
                Some(character) => character,
            };
            empty = false;
            // Writing to a string cannot fail.
            let _ = write!(class, "\\u{{{:X}}}", u32::from(character));
        }
    }

    /// What stands behind a backslash.
    fn escaped(&mut self) -> Result<char, String> {
        let digits = match self.take() {
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            Some(character) if !character.is_alphanumeric() => return Ok(character),
            other => return Err(format!("\\{} means nothing", other.unwrap_or(' '))),
        };
        let number = (0..digits).try_fold(0_u32, |number, _| {
            let digit = self.rest.next_if(char::is_ascii_hexdigit)?.to_digit(16)?;
            Some(number << 4 | digit)
        });
        number
            .and_then(char::from_u32)
            .ok_or_else(|| format!("expected {digits} hexadecimal digits of a character"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_the_same_rules_in_lark_s_words() {
        let source = r#"# a comment
root   ::= "SELECT " column (", " column){0,2}
           | "\"\x41\u00e9\n" .? # and another
column ::= [a-z_]+ | [^"\]\\0-9-]
"#;
        let lark = "start: r0\nr0: \"SELECT \" r1 ( \", \" r1 ){0,2} | \"\\\"Aé\\n\" /[\\u{0}-\\u{10FFFF}]/?\
                    \nr1: /[\\u{61}-\\u{7A}\\u{5F}]/+ | /[^\\u{22}\\u{5D}\\u{5C}\\u{30}-\\u{39}\\u{2D}]/\n";
        assert!(is_gbnf(source));
        assert_eq!(to_lark(source).as_deref(), Ok(lark));
    }

    #[test]
    fn lark_s_own_notation_is_not_taken_for_it() {
        for source in [
            "start: \"::=\"",
            "",
            "# root ::= x\nstart: /a/",
            "%import json",
            "root",
        ] {
            assert!(!is_gbnf(source), "{source}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (source, words) in [
            ("a ::= \"x\"", "root"),
            (
                "root ::= \"x\"\nroot ::= \"y\"",
                "line 2: the rule root stands twice",
            ),
            ("root ::= x", "line 1: there is no rule x"),
            ("root ::= \"x\n\"", "closing quote"),
            ("root ::= [a", "closing bracket"),
            ("root ::= []", "empty class"),
            ("root ::= \"\\q\"", "means nothing"),
            ("root ::= \"\\uD800\"", "hexadecimal"),
            ("root ::= \"x\"{,2}", "{m,n}"),
            ("root ::= \"x\" ;", "unexpected"),
            ("root ::= ::= \"x\"", "without a name"),
            ("\"x\" root ::= \"y\"", "expected a rule"),
        ] {
            let error = to_lark(source).expect_err(source);
            assert!(error.contains(words), "{source}: {error}");
        }
    }
}
