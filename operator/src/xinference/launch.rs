//! `xinference launch …` as typed → options. Pure.
//!
//! Dashes and underscores are the same, `--option value` and `--option=value` too, and an option that nobody knows may have a value or none.

use thiserror::Error;

/// More than any command line of a launch has, in bytes.
const MAX_LENGTH: usize = 64 * 1024;

/// The longest value that is repeated in a comment, in characters.
const MAX_SHOWN: usize = 200;

/// Why a launch cannot become a manifest.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// No model.
    #[error("the launch names no model; add --model-name")]
    NoModel,
    /// A word that belongs to no option.
    #[error(
        "{0:?} stands where an option is expected; write --OPTION in front of it, or remove it"
    )]
    NoOption(String),
    /// An option without what it needs.
    #[error(
        "{option} has {given} of its {wanted} values; add what is missing, or remove the option"
    )]
    Incomplete {
        /// The option as typed.
        option: String,
        /// How many values follow it.
        given: usize,
        /// How many it needs.
        wanted: usize,
    },
    /// A value that cannot be used.
    #[error("{given}: {problem}")]
    Value {
        /// The option and its value as typed.
        given: String,
        /// What is wrong, and what is possible.
        problem: String,
    },
    /// Not a command line.
    #[error("the launch has more than 64 KiB; give only what follows `xinference`")]
    TooLong,
    /// The manifest cannot be written.
    #[error("failed to write the manifest as YAML")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// An option that was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Given {
    /// Its long name, with dashes.
    pub name: String,
    /// As typed.
    pub written: String,
    /// What follows it.
    pub values: Vec<String>,
}

/// What follows an option.
#[derive(Clone, Copy)]
enum Takes {
    Nothing,
    Values(usize),
    /// An option of an engine: a value, or none where it is a switch.
    Maybe,
}

/// The options of `launch` itself in release 3.2.1: name, short name, what follows. All others go to the engine.
const OPTIONS: [(&str, &str, Takes); 26] = [
    ("endpoint", "-e", Takes::Values(1)),
    ("model-name", "-n", Takes::Values(1)),
    ("model-type", "-t", Takes::Values(1)),
    ("model-engine", "-en", Takes::Values(1)),
    ("model-uid", "-u", Takes::Values(1)),
    ("size-in-billions", "-s", Takes::Values(1)),
    ("model-format", "-f", Takes::Values(1)),
    ("quantization", "-q", Takes::Values(1)),
    ("replica", "-r", Takes::Values(1)),
    ("n-worker", "", Takes::Values(1)),
    ("n-gpu", "", Takes::Values(1)),
    ("lora-modules", "-lm", Takes::Values(2)),
    ("image-lora-load-kwargs", "-ld", Takes::Values(2)),
    ("image-lora-fuse-kwargs", "-fd", Takes::Values(2)),
    ("quantization-config", "-qc", Takes::Values(2)),
    ("worker-ip", "", Takes::Values(1)),
    ("gpu-idx", "", Takes::Values(1)),
    ("trust-remote-code", "", Takes::Values(1)),
    ("api-key", "-ak", Takes::Values(1)),
    ("model-path", "-mp", Takes::Values(1)),
    ("enable-thinking", "", Takes::Nothing),
    ("enable-virtual-env", "", Takes::Nothing),
    ("disable-virtual-env", "", Takes::Nothing),
    ("virtual-env-package", "-vp", Takes::Values(1)),
    ("virtual-env-find-link", "", Takes::Values(1)),
    ("env", "-ev", Takes::Values(2)),
];

/// The names that the REST API has for the same things.
const OTHER_NAMES: [(&str, &str); 2] = [
    ("model-size-in-billions", "size-in-billions"),
    ("worker", "worker-ip"),
];

/// Reads a launch as typed, with or without the words `xinference launch` in front.
///
/// # Errors
///
/// When a word belongs to no option or an option lacks its value.
pub fn parse(arguments: &[String]) -> Result<Vec<Given>, LaunchError> {
    if arguments.iter().map(String::len).sum::<usize>() > MAX_LENGTH {
        return Err(LaunchError::TooLong);
    }
    let mut words = arguments.iter().map(String::as_str).peekable();
    words.next_if_eq(&"xinference");
    words.next_if_eq(&"launch");
    let mut all = Vec::new();
    while let Some(word) = words.next() {
        if !is_option(word) {
            return Err(LaunchError::NoOption(shorten(word)));
        }
        let (written, attached) = match word.split_once('=') {
            Some((written, value)) => (written, Some(value.to_owned())),
            None => (word, None),
        };
        let (name, takes) = meaning(written);
        let mut values: Vec<String> = attached.into_iter().collect();
        let wanted = match takes {
            Takes::Nothing => 0,
            Takes::Values(count) => count,
            Takes::Maybe => 1,
        };
        // `KEY=VALUE` is as good as `KEY VALUE`.
        if wanted == 2 && values.is_empty() {
            values.extend(words.next_if(|word| !is_option(word)).map(str::to_owned));
        }
        if wanted == 2
            && let Some((key, value)) = values.first().and_then(|pair| pair.split_once('='))
        {
            values = vec![key.to_owned(), value.to_owned()];
        }
        while values.len() < wanted
            && let Some(value) = words.next_if(|word| !is_option(word))
        {
            values.push(value.to_owned());
        }
        if matches!(takes, Takes::Values(_)) && values.len() < wanted {
            return Err(LaunchError::Incomplete {
                option: written.to_owned(),
                given: values.len(),
                wanted,
            });
        }
        all.push(Given {
            name,
            written: written.to_owned(),
            values,
        });
    }
    Ok(all)
}

/// A number below zero is a value, not an option.
fn is_option(word: &str) -> bool {
    word.strip_prefix('-').is_some_and(|rest| {
        rest.starts_with(|letter: char| letter == '-' || letter.is_ascii_alphabetic())
    })
}

fn meaning(written: &str) -> (String, Takes) {
    let long = written.trim_start_matches('-').replace('_', "-");
    let long = OTHER_NAMES
        .iter()
        .find(|(other, _)| *other == long)
        .map_or(long.as_str(), |(_, name)| *name);
    let known = OPTIONS
        .iter()
        .find(|(name, short, _)| *name == long || *short == written);
    match known {
        Some((name, _, takes)) => ((*name).to_owned(), *takes),
        None => (long.to_owned(), Takes::Maybe),
    }
}

impl Given {
    /// The value; empty for a switch.
    #[must_use]
    pub fn value(&self) -> &str {
        self.values.first().map_or("", String::as_str)
    }

    /// The option for a comment or a message: on one line, and without what should stay secret.
    #[must_use]
    pub fn shown(&self) -> String {
        const SECRET: [&str; 5] = ["key", "token", "secret", "password", "envs"];
        let mut text = self.written.clone();
        if self.name.split('-').any(|word| SECRET.contains(&word)) {
            text.push_str(" …");
        } else {
            // The second word of `--env` may be a secret, too; its name says enough.
            let shown = if self.name == "env" {
                1
            } else {
                self.values.len()
            };
            for value in self.values.iter().take(shown) {
                text.push(' ');
                text.push_str(value);
            }
        }
        one_line(&shorten(&text))
    }

    /// The error for a value that cannot be used.
    #[must_use]
    pub fn refuse(&self, problem: impl Into<String>) -> LaunchError {
        LaunchError::Value {
            given: self.shown(),
            problem: one_line(&problem.into()),
        }
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A line break would end the comment and begin a line of the manifest.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|letter| match letter {
            '\u{2028}' | '\u{2029}' => ' ',
            letter if letter.is_control() => ' ',
            letter => letter,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    fn check(line: &str) -> Vec<(String, String)> {
        let given = parse(&words(line)).unwrap();
        given
            .into_iter()
            .map(|given| (given.name.clone(), given.values.join(" ")))
            .collect()
    }

    #[test]
    fn every_way_of_writing_an_option_is_read() {
        for line in [
            "launch --model-name x",
            "xinference launch --model_name=x",
            "-n x",
            "--model-name=x",
        ] {
            assert_eq!(
                check(line),
                [("model-name".to_owned(), "x".to_owned())],
                "{line}"
            );
        }
        let found = check(
            "-n x --enforce_eager --seed -1 --env A B --limit a=b --enable-thinking -en vLLM",
        );
        let wanted = [
            ("model-name", "x"),
            ("enforce-eager", ""),
            ("seed", "-1"),
            ("env", "A B"),
            ("limit", "a=b"),
            ("enable-thinking", ""),
            ("model-engine", "vLLM"),
        ];
        assert_eq!(found, wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn what_belongs_to_no_option_or_lacks_a_value_is_an_error() {
        for (line, text) in [
            ("launch x", "\"x\" stands where an option is expected"),
            (
                "--model-name --replica 2",
                "--model-name has 0 of its 1 values",
            ),
            ("--env A --replica 2", "--env has 1 of its 2 values"),
            ("--enable-thinking true", "\"true\" stands where"),
        ] {
            let error = parse(&words(line)).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(matches!(
            parse(&["x".repeat(70_000)]),
            Err(LaunchError::TooLong)
        ));
    }

    #[test]
    fn comments_stay_on_one_line_and_tell_no_secret() {
        for (line, text) in [
            ("--api-key sk-1", "--api-key …"),
            ("--hf_token=t", "--hf_token …"),
            ("--env HF_TOKEN t", "--env HF_TOKEN"),
            ("--env HF_TOKEN=t", "--env HF_TOKEN"),
            ("--env=HF_TOKEN=t", "--env HF_TOKEN"),
            ("--note a\nb", "--note a b"),
            ("--max_num_batched_tokens 9", "--max_num_batched_tokens 9"),
        ] {
            assert_eq!(parse(&words(line)).unwrap()[0].shown(), text);
        }
    }
    #[test]
    fn the_guide_has_every_option() {
        let guide = include_str!("../../../docs/from-xinference.md");
        let of_launch = OPTIONS.iter().map(|(name, _, _)| name);
        let without = super::super::no_counterpart::WITHOUT_COUNTERPART.iter();
        for name in of_launch.chain(without.map(|(name, _)| name)) {
            let there = ["`", " "].map(|end| guide.contains(&format!("`--{name}{end}")));
            assert!(there.contains(&true), "--{name} is not in the guide");
        }
    }
}
