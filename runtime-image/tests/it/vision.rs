//! A tiny model that looks at pictures, with the reference's results at every station: pixels to tower to text to tokens,
//! in one piece, in chunks of any size, and decoded from the cache.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use chandler_runtime::compute::{Arithmetic, multiplies_bf16};
use chandler_runtime::model::{self, Capacity, Model, Setup, Station};
use chandler_runtime::prompt::{Conversation, Message, Template};
use chandler_runtime::step::{BLOCK_TOKENS, CrossRun, Encoding, Run, SeenPicture, StepPlan};
use chandler_runtime::tokenizer::Prompt;
use chandler_runtime::weights::folder;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::checkpoint::{self, Content, Sizes};
use crate::engine::arithmetics;
use crate::pictures::preparation;

/// The reference's own two ways to compute differ by 1e-5.
const TOLERANCE: f32 = 1e-4;

/// How far logits may be off with rounded inputs.
const ROUNDED_TOLERANCE: f32 = 0.5;

/// The token that stands for a picture.
pub(crate) const PICTURE: u32 = 768;

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) images: Vec<String>,
    pub(crate) tiles: Vec<usize>,
    pub(crate) aspect_ratio_ids: Vec<usize>,
    pub(crate) prompt_tokens: Vec<u32>,
    pub(crate) greedy_ids: Vec<u32>,
    prompt: String,
    messages: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: Vec<Part>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Part {
    Text { text: String },
    Image {},
}

impl Case {
    pub(crate) fn tensors(&self) -> PathBuf {
        fixture("cases").join(format!("{}.safetensors", self.name))
    }
}

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/mllama-tiny"
    ))
    .join(name)
}

pub(crate) fn cases() -> Vec<Case> {
    let text = std::fs::read(fixture("cases.json")).unwrap();
    serde_json::from_slice::<Cases>(&text).unwrap().cases
}

pub(crate) fn floats(tensors: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    let floats = tensor.data().chunks_exact(4);
    floats
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect()
}

fn largest_difference(ours: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(ours.len(), expected.len());
    ours.iter()
        .zip(expected)
        .map(|(one, other)| (one - other).abs())
        .fold(0.0, |largest, error| {
            if error.is_nan() {
                f32::INFINITY
            } else {
                largest.max(error)
            }
        })
}

/// A case under way in a model.
struct Played<'a> {
    model: &'a mut dyn Model,
    tokens: Vec<u32>,
    computed: usize,
    /// Each with its place in the prompt.
    pictures: Vec<(usize, SeenPicture)>,
}

impl<'a> Played<'a> {
    fn new(model: &'a mut dyn Model, case: &Case) -> Self {
        let facts = model.pictures().unwrap();
        let preparation = preparation();
        let places = (0..case.prompt_tokens.len()).filter(|at| case.prompt_tokens[*at] == PICTURE);
        // Text has the even blocks, pictures the odd ones, neither in order.
        let mut next = 0;
        let pictures = places
            .zip(&case.images)
            .map(|(place, name)| {
                let file = std::fs::read(fixture("images").join(name)).unwrap();
                let picture = preparation.read_picture(&file).unwrap();
                let length = picture.tiles * facts.tile_keys;
                let pages: Vec<u32> = (0..facts.page_count(picture.tiles))
                    .map(|_| {
                        next += 1;
                        (next * 5 % 32) * 2 + 1
                    })
                    .collect();
                let work = Arc::new(Encoding {
                    picture,
                    pages: pages.clone(),
                });
                while !model.encode(&work).unwrap() {}
                (place, SeenPicture { pages, length })
            })
            .collect();
        Self {
            model,
            tokens: case.prompt_tokens.clone(),
            computed: 0,
            pictures,
        }
    }

    /// The pictures that a position sees: those of the last group that begins at or before it, up to it.
    fn seen(&self, position: usize) -> Vec<SeenPicture> {
        let mut last: Option<usize> = None;
        let mut seen = Vec::new();
        for (place, picture) in &self.pictures {
            if *place > position {
                break;
            }
            if last.is_none_or(|last| last + 1 < *place) {
                seen.clear();
            }
            last = Some(*place);
            seen.push(picture.clone());
        }
        seen
    }

    /// Computes the next `count` tokens; the logits of each.
    fn advance(&mut self, count: usize) -> Vec<f32> {
        let range = self.computed..self.computed + count;
        let cross = range
            .clone()
            .filter(|position| !self.seen(*position).is_empty())
            .map(|position| CrossRun {
                rows: position - range.start..position - range.start + 1,
                pictures: self.seen(position),
            })
            .collect();
        let plan = StepPlan {
            tokens: self.tokens[range.clone()].to_vec(),
            positions: (range.start as u32..range.end as u32).collect(),
            runs: vec![Run {
                rows: 0..count,
                blocks: (0..range.end.div_ceil(BLOCK_TOKENS) as u32)
                    .map(|block| (block * 7 + 3) % 32 * 2)
                    .collect(),
                cross,
                ..Run::default()
            }],
            logits: std::iter::once(0..count).collect(),
            ..StepPlan::default()
        };
        let logits = self.model.forward(&plan).unwrap();
        self.computed = range.end;
        (0..count)
            .flat_map(|row| logits.row(row))
            .copied()
            .collect()
    }
}

#[test]
fn prompts_have_the_reference_s_text_and_tokens() {
    let opened = folder::open(&fixture("model")).unwrap();
    let (tokenizer, template) = (opened.tokenizer, opened.template.unwrap());
    let template = Template::new(&template.text, &tokenizer, &template.path).unwrap();
    for case in cases() {
        let messages = case.messages.into_iter().map(|said| {
            let mut message = Message::text(&said.role, "");
            for part in said.content {
                match part {
                    Part::Text { text } => message.content.push_str(&text),
                    Part::Image {} => message.pictures.push(message.content.len()),
                }
            }
            message
        });
        let conversation = Conversation {
            messages: messages.collect(),
            ..Conversation::default()
        };
        let Prompt { text, guard } = template.render(&conversation, &tokenizer).unwrap();
        let plain = guard.map_or(text.clone(), |guard| text.replace(guard, ""));
        assert_eq!(plain, case.prompt, "{}", case.name);
        let tokens = tokenizer.encode(&Prompt { text, guard }).unwrap();
        assert_eq!(tokens, case.prompt_tokens, "{}", case.name);
    }
    // Typed by a user, the name of the picture's token is text.
    let conversation = Conversation {
        messages: vec![Message::text("user", "<|image|> <|eot_id|>")],
        ..Conversation::default()
    };
    let prompt = template.render(&conversation, &tokenizer).unwrap();
    assert!(!tokenizer.encode(&prompt).unwrap().contains(&PICTURE));
}

fn tiny(rows: usize, threads: usize, ranks: usize) -> Box<dyn Model> {
    load(&fixture("model"), rows, threads, ranks)
}

fn load(folder: &Path, rows: usize, threads: usize, ranks: usize) -> Box<dyn Model> {
    load_with(folder, (rows, threads, ranks), Arithmetic::Float32)
}

fn load_with(
    folder: &Path,
    (rows, threads, ranks): (usize, usize, usize),
    dtype: Arithmetic,
) -> Box<dyn Model> {
    let mut weights = folder::open(folder).unwrap().weights;
    let capacity = Capacity {
        rows,
        logits_rows: rows,
        blocks: 64,
    };
    model::load(
        weights.as_mut(),
        Setup {
            threads,
            ranks,
            dtype,
            capacity,
        },
    )
    .unwrap()
}

/// What a model told on the way of a case.
#[derive(Default)]
struct Told {
    vision: Vec<f32>,
    projected: Vec<f32>,
    layers: Vec<Vec<f32>>,
}

#[test]
fn every_station_of_every_case_is_the_reference_s() {
    let mut model = tiny(160, 2, 1);
    let told = Arc::new(Mutex::new(Told::default()));
    let listener = Arc::clone(&told);
    model.trace(Some(Box::new(move |station, _, rows| {
        let mut told = listener.lock().unwrap();
        match station {
            Station::Vision => told.vision.extend_from_slice(rows),
            Station::Projected => told.projected.extend_from_slice(rows),
            Station::Layer(number) => {
                told.layers.resize_with(6, Vec::new);
                told.layers[number].extend_from_slice(rows);
            }
        }
    })));
    let (mut largest, mut greedy) = (0_f32, 0);
    for case in cases() {
        *told.lock().unwrap() = Told::default();
        let bytes = std::fs::read(case.tensors()).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let mut played = Played::new(model.as_mut(), &case);
        let logits = played.advance(case.prompt_tokens.len());
        let told_here = std::mem::take(&mut *told.lock().unwrap());
        let mut stations = Vec::new();
        if !case.images.is_empty() {
            // The reference's picture tensors have four tiles a picture; those that show nothing are not projected.
            for (name, width, ours) in [
                ("vision_hidden", 128, &told_here.vision),
                ("cross_attention_states", 64, &told_here.projected),
            ] {
                let golden = floats(&golden, name);
                let tile = 17 * width;
                let shown: Vec<f32> = case
                    .tiles
                    .iter()
                    .enumerate()
                    .flat_map(|(picture, tiles)| &golden[picture * 4 * tile..][..tiles * tile])
                    .copied()
                    .collect();
                stations.push((name.to_owned(), largest_difference(ours, &shown)));
            }
        }
        let layers = floats(&golden, "text_layer_outputs");
        let size = case.prompt_tokens.len() * 64;
        for (number, (ours, expected)) in
            told_here.layers.iter().zip(layers.chunks(size)).enumerate()
        {
            stations.push((
                format!("layer {number}"),
                largest_difference(ours, expected),
            ));
        }
        stations.push((
            "logits".to_owned(),
            largest_difference(&logits, &floats(&golden, "logits")),
        ));
        let mut last = logits[logits.len() - 768..].to_vec();
        let decoded = floats(&golden, "decode_logits");
        let mut error = 0_f32;
        let mut equal = true;
        for (expected, id) in decoded.chunks(768).zip(&case.greedy_ids) {
            error = error.max(largest_difference(&last, expected));
            let best = (0..768).max_by(|one, other| last[*one].total_cmp(&last[*other]));
            equal &= best == Some(*id as usize);
            played.tokens.push(*id);
            last = played.advance(1);
        }
        stations.push(("decode_logits".to_owned(), error));
        for (station, error) in stations {
            println!("{:<28} {station:<24} {error:.3e}", case.name);
            assert!(
                error <= TOLERANCE,
                "{} {station}: off by {error}",
                case.name
            );
            largest = largest.max(error);
        }
        assert!(equal, "{}: other greedy tokens", case.name);
        greedy += 1;
    }
    println!("figure mllama_parity_max_abs {largest:.3e}\nfigure mllama_greedy_equal {greedy}");
    assert_eq!(greedy, 11);
}

#[test]
fn logits_of_rounded_inputs_are_close_to_the_reference_s() {
    if !multiplies_bf16() {
        println!("neither AVX512-BF16 nor AMX: rounded inputs are not tested");
        return;
    }
    let mut model = load_with(&fixture("model"), (160, 2, 1), Arithmetic::Auto);
    let mut largest = 0_f32;
    for case in cases() {
        let bytes = std::fs::read(case.tensors()).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let logits = Played::new(model.as_mut(), &case).advance(case.prompt_tokens.len());
        let error = largest_difference(&logits, &floats(&golden, "logits"));
        assert!(error <= ROUNDED_TOLERANCE, "{}: off by {error}", case.name);
        largest = largest.max(error);
    }
    println!("rounded: logits are off by {largest:.3e} at most");
}

#[test]
fn chunks_of_any_size_threads_and_picture_by_picture_give_the_same_bits() {
    for dtype in arithmetics() {
        give_the_same_bits(dtype);
    }
}

fn give_the_same_bits(dtype: Arithmetic) {
    let tiny = |rows, threads| load_with(&fixture("model"), (rows, threads, 1), dtype);
    for case in cases().iter().filter(|case| !case.images.is_empty()) {
        let whole = Played::new(tiny(160, 1).as_mut(), case).advance(case.prompt_tokens.len());
        for chunk in [1, 3, 16] {
            let mut model = tiny(16, 3);
            let mut played = Played::new(model.as_mut(), case);
            let mut logits = Vec::new();
            while played.computed < case.prompt_tokens.len() {
                let left = case.prompt_tokens.len() - played.computed;
                logits.extend(played.advance(left.min(chunk)));
            }
            assert!(logits == whole, "{} in chunks of {chunk}", case.name);
        }
    }
}

#[test]
fn two_ranks_agree_with_one() {
    for case in cases() {
        let one = Played::new(tiny(160, 1, 1).as_mut(), &case).advance(case.prompt_tokens.len());
        let two = Played::new(tiny(160, 2, 2).as_mut(), &case).advance(case.prompt_tokens.len());
        let error = largest_difference(&one, &two);
        assert!(error <= TOLERANCE, "{}: {error}", case.name);
    }
}

#[test]
fn what_stands_before_the_first_picture_does_not_depend_on_it() {
    let cases = cases();
    let case = cases
        .iter()
        .find(|case| case.name == "one_image_rgba_system")
        .unwrap();
    let first = case
        .prompt_tokens
        .iter()
        .position(|token| *token == PICTURE)
        .unwrap();
    assert!(first > 10);
    let mut model = tiny(160, 1, 1);
    let with = Played::new(model.as_mut(), case).advance(case.prompt_tokens.len());
    let mut without = Played::new(model.as_mut(), case);
    without.pictures.clear();
    let without = without.advance(case.prompt_tokens.len());
    assert!(with[..first * 768] == without[..first * 768]);
    assert!(with[first * 768..] != without[first * 768..]);
}

/// The tiny model in another folder, its safetensors file changed.
fn changed(change: impl Fn(&SafeTensors<'_>, &str, &mut Vec<u8>) -> String) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("model")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let parts: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let mut bytes = tensor.data().to_vec();
            let name = change(&tensors, &name, &mut bytes);
            (name, tensor.shape().to_vec(), bytes)
        })
        .collect();
    let views = parts.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap();
        (name.as_str(), view)
    });
    std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

#[test]
fn equal_tiles_computed_once_give_what_each_computed_gives() {
    // The smallest numbers in place of zeros change no sum, but the tables then tell of tiles that are not there.
    let folder = changed(|_, name, bytes| {
        if name.contains("tile_embedding") || name.contains("tile_positional_embedding.embedding") {
            for number in bytes.chunks_exact_mut(2).filter(|number| *number == [0, 0]) {
                number.copy_from_slice(&[0x80, 0]);
            }
        }
        name.to_owned()
    });
    let mut largest = 0_f32;
    for case in cases().iter().filter(|case| !case.images.is_empty()) {
        let count = case.prompt_tokens.len();
        let once = Played::new(tiny(160, 2, 1).as_mut(), case).advance(count);
        let each = Played::new(load(folder.path(), 160, 2, 1).as_mut(), case).advance(count);
        largest = largest.max(largest_difference(&once, &each));
    }
    // They differ, so both ways were gone, and by no more than the order of sums.
    assert!(largest > 0.0 && largest < 2e-5, "{largest}");
}

#[test]
fn names_of_tensors_as_transformers_saves_them_now_are_read_too() {
    let folder = changed(
        |_, name, _| match name.strip_prefix("language_model.model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None if name == "language_model.lm_head.weight" => "lm_head.weight".to_owned(),
            None => format!("model.{name}"),
        },
    );
    let cases = cases();
    let case = &cases[3];
    let count = case.prompt_tokens.len();
    let published = Played::new(tiny(160, 1, 1).as_mut(), case).advance(count);
    let anew = Played::new(load(folder.path(), 160, 1, 1).as_mut(), case).advance(count);
    assert!(published == anew);
}

#[test]
fn random_weights_in_the_published_layout_load_and_look() {
    let sizes = Sizes {
        hidden: 64,
        inner: 96,
        heads: 4,
        key_heads: 2,
        vocabulary: 768,
        vision_hidden: 32,
        vision_inner: 64,
        vision_heads: 2,
        side: 56,
        ..Sizes::published_11b().with_layers(5, 2, 1)
    };
    let folder = tempfile::tempdir().unwrap();
    checkpoint::write(folder.path(), &sizes, 3, Content::Random).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("model").join(name), folder.path().join(name)).unwrap();
    }
    let index = std::fs::read(folder.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    // Two tables and a head; 4 self layers of 9 tensors, one that looks of 13; 3 tower layers of 12, one with two gates;
    // 15 beside the tower's layers, projector included.
    let names = index["weight_map"].as_object().unwrap();
    assert_eq!(names.len(), 3 + 4 * 9 + 13 + 3 * 12 + 2 + 15);
    let mut model = load(folder.path(), 160, 2, 1);
    let cases = cases();
    let case = cases
        .iter()
        .find(|case| case.name == "two_images_interleaved")
        .unwrap();
    let count = case.prompt_tokens.len();
    let seeing = Played::new(model.as_mut(), case).advance(count);
    assert!(seeing.iter().all(|logit| logit.is_finite()));
    let mut blind = Played::new(model.as_mut(), case);
    blind.pictures.clear();
    assert!(largest_difference(&seeing, &blind.advance(count)) > 0.1);
}
