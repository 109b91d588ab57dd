//! Writes random weights in the layout of Llama 3.2 Vision, without a tokenizer's files:
//! `random_mllama FOLDER [--size 11b|90b] [--layers TEXT VISION GLOBAL] [--vocabulary TOKENS] [--float32|--holes] [--list]`.
//!
//! Widths are the published ones, and so are the numbers of layers unless others are asked for. `--float32`
//! writes single precision instead of BF16, `--holes` zeros that take no room; `--list` prints names and shapes of all
//! tensors and writes nothing.

#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program for people"
)]

use std::process::ExitCode;

use checkpoint::{Content, Sizes};

mod checkpoint;

/// Files, each of which is written by a thread of its own.
const FILES: usize = 16;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut folder, mut content, mut lists) = (None, Content::Random, false);
    let mut sizes = Sizes::published_11b();
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match argument.as_str() {
            "--size" => match arguments.next().as_deref() {
                Some("11b") => sizes = Sizes::published_11b(),
                Some("90b") => sizes = Sizes::published_90b(),
                other => return fail(&format!("--size is {other:?}, expected 11b or 90b")),
            },
            "--layers" => match (number(), number(), number()) {
                (Some(text), Some(vision), Some(global)) => {
                    sizes = sizes.with_layers(text, vision, global);
                }
                _ => return fail("--layers takes three numbers"),
            },
            "--vocabulary" => match number() {
                Some(tokens) => sizes.vocabulary = tokens,
                None => return fail("--vocabulary takes a number"),
            },
            "--float32" => content = Content::RandomF32,
            "--holes" => content = Content::Holes,
            "--list" => lists = true,
            _ => folder = Some(argument),
        }
    }
    if lists {
        for tensor in checkpoint::tensors(&sizes) {
            println!("{} {:?} {}", tensor.name, tensor.shape, tensor.count());
        }
        return ExitCode::SUCCESS;
    }
    let Some(folder) = folder else {
        return fail("name a folder");
    };
    match checkpoint::write(folder.as_ref(), &sizes, FILES, content) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("failed to write {folder}: {error}")),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::FAILURE
}
