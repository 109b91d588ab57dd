//! The kernels as their README has them.

use std::collections::HashMap;

use crate::compute::cuda::card::Argument;

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/README.md"));

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parameter {
    Pointer,
    Int,
    Long,
    Float,
}

impl From<&Argument> for Parameter {
    fn from(argument: &Argument) -> Self {
        match argument {
            Argument::Pointer(_) => Self::Pointer,
            Argument::Int(_) => Self::Int,
            Argument::Long(_) => Self::Long,
            Argument::Float(_) => Self::Float,
        }
    }
}

/// A line of the table.
#[derive(Clone, Debug)]
pub(super) struct Kernel {
    pub(super) parameters: Vec<Parameter>,
    pub(super) threads: u32,
    /// Bytes of shared memory, where they are the same in every launch.
    pub(super) shared: Option<u32>,
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn parameters(words: &str) -> Vec<Parameter> {
    let mut found = Vec::new();
    for word in words.split(',').map(str::trim) {
        let parameter = match word {
            // The pointers `s1` to `s6`.
            "…" => {
                found.extend([Parameter::Pointer; 6]);
                continue;
            }
            _ if word.contains('*') => Parameter::Pointer,
            _ if word.starts_with("int ") => Parameter::Int,
            _ if word.starts_with("uint64_t ") => Parameter::Long,
            _ if word.starts_with("float ") => Parameter::Float,
            other => panic!("no type: {other}"),
        };
        found.push(parameter);
    }
    found
}

/// All kernels by their names.
pub(super) fn kernels() -> HashMap<String, Kernel> {
    let mut kernels = HashMap::new();
    let (mut before, mut letters) = (Vec::new(), HashMap::<char, Vec<String>>::new());
    for line in README.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, words, _, threads, shared, _] = cells[..] else {
            continue;
        };
        let Ok(threads) = threads.parse() else {
            continue;
        };
        let (names, values) = names.split_once(" one of ").unwrap_or((names, ""));
        // `name_K`, K one of some words.
        if let Some(letter) = names.chars().last().filter(char::is_ascii_uppercase) {
            let values = values.split(|of: char| !of.is_alphanumeric() && of != '_');
            let values = values.filter(|value| !value.is_empty());
            letters.insert(letter, values.map(str::to_owned).collect());
        }
        if words != "the same" {
            before = quoted(words).next().map_or_else(Vec::new, parameters);
        }
        for name in quoted(names) {
            let letter = name.chars().find(char::is_ascii_uppercase);
            let values = letter.map_or_else(|| vec![String::new()], |of| letters[&of].clone());
            for value in values {
                let name = letter.map_or(name.to_owned(), |of| name.replace(of, &value));
                let kernel = Kernel {
                    parameters: before.clone(),
                    threads,
                    shared: shared.parse().ok(),
                };
                kernels.insert(name, kernel);
            }
        }
    }
    kernels
}
