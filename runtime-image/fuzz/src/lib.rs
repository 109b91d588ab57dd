//! Everything in the runtime that reads what others wrote, as functions of bytes: files of weights, chat templates,
//! requests, pictures and where they lie, forms of answers, and the model's own text.
//!
//! A target panics where the runtime would, or where a property that must hold for every input does not.
//! It returns whether the input was taken as valid.

mod answer;
mod pictures;
mod request;
mod template;
mod weights;

/// One reader.
#[derive(Clone, Copy)]
pub struct Target {
    /// What `FUZZ_TARGET` calls it.
    pub name: &'static str,
    /// Reads an input; true where it is valid.
    pub run: fn(&[u8]) -> bool,
    /// Valid inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: [Target; 10] = [
    Target {
        name: "gguf",
        run: weights::gguf,
        seeds: weights::gguf_seeds,
    },
    Target {
        name: "safetensors",
        run: weights::safetensors,
        seeds: weights::safetensors_seeds,
    },
    Target {
        name: "description",
        run: weights::description,
        seeds: weights::description_seeds,
    },
    Target {
        name: "template",
        run: template::template,
        seeds: template::seeds,
    },
    Target {
        name: "request",
        run: request::request,
        seeds: request::seeds,
    },
    Target {
        name: "pictures",
        run: pictures::picture,
        seeds: pictures::seeds,
    },
    Target {
        name: "picture-url",
        run: pictures::url,
        seeds: pictures::url_seeds,
    },
    Target {
        name: "form",
        run: request::form,
        seeds: request::form_seeds,
    },
    Target {
        name: "stop",
        run: answer::stop,
        seeds: answer::stop_seeds,
    },
    Target {
        name: "calls",
        run: answer::calls,
        seeds: answer::calls_seeds,
    },
];

/// The input's first part and its rest: two bytes say how long the first is, as far as there are so many.
fn split(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else {
        return (bytes, &[]);
    };
    rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()))
}

/// What [`split`] takes apart.
fn join(first: &[u8], rest: &[u8]) -> Vec<u8> {
    let length = u16::try_from(first.len()).expect("a seed's first part is short");
    [&length.to_le_bytes(), first, rest].concat()
}

/// A file of the tiny model that tests have.
fn fixture(name: &str) -> Vec<u8> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/llama-tiny/model/"
    );
    std::fs::read(format!("{folder}{name}")).expect("the tiny model's files are there")
}
