//! `check`: computes the cases of a folder that holds a model and its reference's results, and compares.
//!
//! The folder has `model/`, `cases.json` (a list of cases, or an object with `cases`) and for each case
//! `cases/NAME.safetensors` with the reference's `decode_logits` (`[steps, vocabulary]`) and, optionally, `logits`
//! (`[1, tokens, vocabulary]`) and `text_layer_outputs` (`[layers, tokens, width]`), all F32. A case with pictures names their
//! files in `images/`, in the order of the prompt, and may have `pixel_values` (`[1, pictures, tiles, 3, height, width]`),
//! `vision_hidden` (`[1, pictures, tiles, keys, width]`) and `cross_attention_states` (`[pictures * tiles, keys, width]`);
//! tiles that show nothing are not compared. How a new architecture, or somebody's own processor, is proven.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::compute::Arithmetic;
use crate::config::{CudaArgs, Device};
use crate::device::{self, Place};
use crate::model::{self, Capacity, Model, PictureFacts, Setup, StepError};
use crate::pictures::{PictureError, Preparation};
use crate::step::{BLOCK_TOKENS, Encoding, Run, SeenPicture, StepPlan, cross_runs};
use crate::weights::{LoadError, Weights, folder};
use stations::{Listener, of_tiles};

mod stations;

/// Rows of one step: longer prompts take several.
const ROWS: usize = 64;

/// Compare a model's results on this machine with a reference's.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Folder with `model/`, `cases.json`, `cases/*.safetensors` and, for models that look at pictures, `images/`.
    pub folder: PathBuf,

    /// Largest absolute difference of a number at any station that passes.
    #[arg(long, default_value_t = 1e-4)]
    pub tolerance: f32,

    /// Threads that compute; as many as this process may use at once by default.
    #[arg(long)]
    pub threads: Option<usize>,

    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    pub device: Device,

    /// Arithmetic of products on the CPU.
    #[arg(long, value_enum, default_value_t = Arithmetic::Float32)]
    pub dtype: Arithmetic,

    /// How an NVIDIA GPU computes.
    #[command(flatten)]
    pub cuda: CudaArgs,
}

/// Why nothing could be compared.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The model cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The list of cases cannot be read.
    #[error("failed to read {}: {detail}", path.display())]
    Cases {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The device that was asked for cannot be used.
    #[error("failed to use the device: {0}")]
    Device(String),
    /// A picture cannot be read.
    #[error("failed to read {}: {source}", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: PictureError,
    },
    /// A step was refused.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Nobody reads what is printed.
    #[error("failed to print: {0}")]
    Print(#[from] std::io::Error),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Cases {
    List(Vec<Case>),
    Object { cases: Vec<Case> },
}

#[derive(Deserialize)]
struct Case {
    name: String,
    prompt_tokens: Vec<u32>,
    greedy_ids: Vec<u32>,
    /// Pictures, for models that read them.
    #[serde(default)]
    images: Vec<String>,
}

/// Runs `check` as a program: success when every case passes.
#[must_use]
pub fn run(args: &CheckArgs) -> ExitCode {
    let mut out = std::io::stdout().lock();
    match check(args, &mut out) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints one line a case and station; true when all are within the tolerance and all greedy tokens equal.
///
/// # Errors
/// When the folder cannot be read or the model cannot be loaded.
pub fn check(args: &CheckArgs, out: &mut dyn Write) -> Result<bool, CheckError> {
    let settled = device::settle(args.device, &args.cuda);
    // What is proven of another device proves nothing.
    if let Some(obstacle) = settled.obstacle {
        return Err(CheckError::Device(obstacle));
    }
    let place = settled.place;
    check_with(args, out, |weights, setup, main_type| match place {
        Place::Cpu => model::load(weights, setup),
        Place::Card(card) => {
            let settings = args.cuda.settings(main_type);
            let blocks = setup.capacity.blocks;
            model::load_on(card, settings, weights, setup.capacity, &mut |_| Ok(blocks))
        }
    })
}

/// As [`check`], with the given way to make a model of weights of a type: tests bring their own device.
///
/// # Errors
/// As [`check`].
pub fn check_with(
    args: &CheckArgs,
    out: &mut dyn Write,
    load: impl FnOnce(&mut dyn Weights, Setup, &str) -> Result<Box<dyn Model>, LoadError>,
) -> Result<bool, CheckError> {
    let cases = read_cases(&args.folder.join("cases.json"))?;
    let longest = cases
        .iter()
        .map(|case| case.prompt_tokens.len() + case.greedy_ids.len())
        .max()
        .unwrap_or(0);
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut opened = folder::open(&args.folder.join("model"))?;
    let shape = model::shape(opened.weights.as_ref())?;
    let facts = opened.weights.sight()?;
    let facts = facts.map(|sight| model::picture_facts(&sight, &shape));
    let pictures = cases
        .iter()
        .map(|case| case.images.len())
        .max()
        .unwrap_or(0);
    let text = longest.div_ceil(BLOCK_TOKENS).max(1);
    let pages = facts.map_or(0, |facts| pictures * facts.page_count(facts.most_tiles));
    let setup = Setup {
        threads: args.threads.unwrap_or(available).max(1),
        ranks: 1,
        dtype: args.dtype,
        capacity: Capacity {
            rows: ROWS,
            logits_rows: ROWS,
            blocks: text + pages,
        },
    };
    let mut model = load(opened.weights.as_mut(), setup, &opened.main_type)?;
    let listener = Listener::listen(model.as_mut());
    let looks = opened.preparation.zip(facts);
    let mut passed = !cases.is_empty();
    writeln!(
        out,
        "{:<28} {:<22} {:>12}  greedy",
        "case", "station", "largest error"
    )?;
    for case in &cases {
        if !case.images.is_empty() && looks.is_none() {
            writeln!(
                out,
                "{:<28} not run: this model reads no pictures",
                case.name
            )?;
            passed = false;
            continue;
        }
        let path = args
            .folder
            .join("cases")
            .join(format!("{}.safetensors", case.name));
        let mut played = Played {
            model: model.as_mut(),
            tokens: Vec::new(),
            places: Vec::new(),
            pictures: Vec::new(),
            tiles: Vec::new(),
        };
        if let Some((preparation, facts)) = &looks {
            played.show(case, &args.folder, preparation, facts, (text, &listener))?;
        }
        let compared = compare(played, case, &path, &listener)?;
        let greedy = if compared.greedy {
            "equal"
        } else {
            "different"
        };
        for (station, error) in compared.stations {
            let verdict = if error <= args.tolerance {
                ""
            } else {
                "  past the tolerance"
            };
            writeln!(
                out,
                "{:<28} {station:<22} {error:>12.3e}  {greedy}{verdict}",
                case.name
            )?;
            passed &= error <= args.tolerance;
        }
        passed &= compared.greedy;
    }
    Ok(passed)
}

fn read_cases(path: &Path) -> Result<Vec<Case>, CheckError> {
    let failed = |detail: String| CheckError::Cases {
        path: path.to_owned(),
        detail,
    };
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let cases = match serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))? {
        Cases::List(cases) | Cases::Object { cases } => cases,
    };
    for case in &cases {
        if case.prompt_tokens.is_empty()
            || case.name.contains(['/', '\\'])
            || case.images.iter().any(|name| name.contains(['/', '\\']))
        {
            return Err(failed(format!(
                "case {:?} needs prompt_tokens and names without slashes",
                case.name
            )));
        }
    }
    Ok(cases)
}

/// How one case came out.
struct Compared {
    stations: Vec<(String, f32)>,
    greedy: bool,
}

/// A case under way.
struct Played<'a> {
    model: &'a mut dyn Model,
    tokens: Vec<u32>,
    /// Where pictures stand.
    places: Vec<usize>,
    pictures: Vec<SeenPicture>,
    /// Tiles that they show.
    tiles: Vec<usize>,
}

fn compare(
    mut played: Played<'_>,
    case: &Case,
    path: &Path,
    listener: &Listener,
) -> Result<Compared, CheckError> {
    let failed = |detail: String| CheckError::Cases {
        path: path.to_owned(),
        detail,
    };
    let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| failed(error.to_string()))?;
    let vocabulary = played.model.vocabulary();
    let floats = |name: &str| -> Result<Option<Vec<f32>>, CheckError> {
        let Ok(tensor) = tensors.tensor(name) else {
            return Ok(None);
        };
        if tensor.dtype() != Dtype::F32 {
            return Err(failed(format!(
                "{name} is {:?}, expected F32",
                tensor.dtype()
            )));
        }
        let floats = tensor.data().chunks_exact(4);
        let floats = floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Some(floats.collect()))
    };
    let rows_of = |name: &str, rows: usize| match floats(name)? {
        Some(found) if found.len() != rows * vocabulary => Err(failed(format!(
            "{name} has {} numbers, expected {rows} rows of {vocabulary}",
            found.len()
        ))),
        found => Ok(found),
    };
    let prompt = rows_of("logits", case.prompt_tokens.len())?;
    let decoded = rows_of("decode_logits", case.greedy_ids.len())?
        .ok_or_else(|| failed("it has no decode_logits".to_owned()))?;

    let mut last = Vec::new();
    let mut prompt_error = 0.0_f32;
    for (index, tokens) in case.prompt_tokens.chunks(ROWS).enumerate() {
        let logits = played.step(tokens)?;
        if let Some(prompt) = &prompt {
            let expected = &prompt[index * ROWS * vocabulary..][..logits.len()];
            prompt_error = prompt_error.max(largest_difference(&logits, expected));
        }
        last = logits[logits.len() - vocabulary..].to_vec();
    }
    let told = listener.take();
    let (mut decode_error, mut greedy) = (0.0_f32, true);
    for (expected, id) in decoded.chunks_exact(vocabulary).zip(&case.greedy_ids) {
        decode_error = decode_error.max(largest_difference(&last, expected));
        greedy &= likeliest(&last) == Some(*id as usize);
        // The reference's token, so that one slip does not spoil what follows.
        last = played.step(std::slice::from_ref(id))?;
    }
    listener.take();
    let mut stations = Vec::new();
    let most = played.model.pictures().map_or(1, |facts| facts.most_tiles);
    for (name, ours) in [
        ("pixel_values", &told.pixels),
        ("vision_hidden", &told.vision),
        ("cross_attention_states", &told.projected),
    ] {
        if let Some(expected) = floats(name)? {
            let error = of_tiles(ours, &expected, &played.tiles, most);
            stations.push((name.to_owned(), error));
        }
    }
    if let Some(expected) = floats("text_layer_outputs")? {
        let size = expected.len() / told.layers.len().max(1);
        for (number, ours) in told.layers.iter().enumerate() {
            let expected = &expected[number * size..][..size];
            let error = if ours.len() == size {
                largest_difference(ours, expected)
            } else {
                f32::INFINITY
            };
            stations.push((format!("text layer {number}"), error));
        }
    }
    if prompt.is_some() {
        stations.push(("logits".to_owned(), prompt_error));
    }
    stations.push(("decode_logits".to_owned(), decode_error));
    Ok(Compared { stations, greedy })
}

impl Played<'_> {
    /// Encodes a case's pictures into pages after `text` blocks.
    fn show(
        &mut self,
        case: &Case,
        folder: &Path,
        preparation: &Preparation,
        facts: &PictureFacts,
        (text, listener): (usize, &Listener),
    ) -> Result<(), CheckError> {
        let places = case.prompt_tokens.iter().enumerate();
        let places = places.filter(|(_, token)| **token == facts.token);
        self.places = places.map(|(place, _)| place).collect();
        if self.places.len() != case.images.len() {
            return Err(CheckError::Cases {
                path: folder.join("cases.json"),
                detail: format!(
                    "case {:?} has {} pictures and {} tokens for them",
                    case.name,
                    case.images.len(),
                    self.places.len()
                ),
            });
        }
        let mut next = text;
        for name in &case.images {
            let path = folder.join("images").join(name);
            let bytes = std::fs::read(&path).map_err(|error| CheckError::Cases {
                path: path.clone(),
                detail: error.to_string(),
            })?;
            let picture = preparation
                .read_picture(&bytes)
                .map_err(|source| CheckError::Picture { path, source })?;
            let plane = preparation.side * preparation.side;
            let pixels = picture.pixels.iter().enumerate();
            listener.note_pixels(
                pixels.map(|(at, byte)| picture.values[at / plane % 3][usize::from(*byte)]),
            );
            let pages = facts.page_count(picture.tiles);
            let work = Arc::new(Encoding {
                pages: (next..next + pages).map(number).collect(),
                picture,
            });
            next += pages;
            while !self.model.encode(&work)? {}
            self.tiles.push(work.picture.tiles);
            self.pictures.push(SeenPicture {
                pages: work.pages.clone(),
                length: work.picture.tiles * facts.tile_keys,
            });
        }
        Ok(())
    }

    /// Computes more tokens; the logits of each.
    fn step(&mut self, tokens: &[u32]) -> Result<Vec<f32>, StepError> {
        let first = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        let positions = first..self.tokens.len();
        let plan = StepPlan {
            tokens: tokens.to_vec(),
            positions: positions.clone().map(number).collect(),
            runs: vec![Run {
                rows: 0..tokens.len(),
                blocks: (0..positions.end.div_ceil(BLOCK_TOKENS))
                    .map(number)
                    .collect(),
                cross: cross_runs(&self.places, positions, 0, |index| {
                    self.pictures[index].clone()
                }),
                ..Run::default()
            }],
            logits: std::iter::once(0..tokens.len()).collect(),
            ..StepPlan::default()
        };
        let logits = self.model.forward(&plan)?;
        let rows = (0..tokens.len()).flat_map(|row| logits.row(row));
        Ok(rows.copied().collect())
    }
}

fn number(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// Infinite where a number is none.
fn largest_difference(ours: &[f32], expected: &[f32]) -> f32 {
    ours.iter()
        .zip(expected)
        .fold(0.0, |largest: f32, (one, other)| {
            let difference = (one - other).abs();
            if difference.is_nan() {
                f32::INFINITY
            } else {
                largest.max(difference)
            }
        })
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).reduce(|best, at| if logits[at] > logits[best] { at } else { best })
}
