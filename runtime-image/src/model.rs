//! What the engine asks of a model: one step at a time, described by the plain data of a [`StepPlan`].
//!
//! Nothing above this trait knows tensors; nothing below it knows requests.

use std::ops::Range;
use std::sync::Arc;

use crate::compute::Arithmetic;
use crate::compute::backend::{Fault, Spent};
use crate::compute::cuda::card::{Card, CardError};
use crate::compute::cuda::{self, Cuda};
use crate::step::{BLOCK_TOKENS, Choice, Encoding, OpenRow, Run, StepPlan};
use crate::weights::sight::Sight;
use crate::weights::{LoadError, Shape, Weights};

pub mod decoder;
#[cfg(any(test, feature = "fake-model"))]
pub mod fake;
pub mod linear;
pub mod ranks;
pub mod size;
mod vision;

pub use decoder::cross::Pages;

/// The architectures that [`load`] knows, as GGUF files name them.
pub const GGUF_ARCHITECTURES: [&str; 3] = ["llama", "qwen2", "qwen3"];

/// The same, as the `architectures` of a `config.json` name them.
pub const HUB_ARCHITECTURES: [&str; 4] = [
    "LlamaForCausalLM",
    "MllamaForConditionalGeneration",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
];

/// The largest step a model takes, and the room it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rows in one step.
    pub rows: usize,
    /// Rows in one step whose logits can be wanted.
    pub logits_rows: usize,
    /// Blocks of [`BLOCK_TOKENS`] tokens in the arena.
    pub blocks: usize,
}

/// Logits of the wanted rows, in the plan's order.
#[derive(Clone, Copy, Debug)]
pub struct Logits<'a> {
    values: &'a [f32],
    vocabulary: usize,
}

impl<'a> Logits<'a> {
    /// Wraps row-major logits.
    #[must_use]
    pub fn new(values: &'a [f32], vocabulary: usize) -> Self {
        Self { values, vocabulary }
    }

    /// The logits of the wanted row of this number.
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.values[index * self.vocabulary..][..self.vocabulary]
    }
}

/// What a device tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// What the parts of a step took.
    pub spent: Option<Spent>,
    /// Bytes of its own memory that are free, and all; once a second at most.
    pub memory: Option<(u64, u64)>,
}

/// Why a step was not taken. The scheduler's plans never cause one; it is a fault of the program.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The plan contradicts itself or the capacity.
    #[error("failed to run a step: {0}")]
    Plan(String),
    /// The device could not; unless it is lost, it can take other steps.
    #[error("failed to run a step: {0}")]
    Device(#[from] Fault),
}

/// What pictures take of a model that looks at them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PictureFacts {
    /// The token that stands for one.
    pub token: u32,
    /// Keys of one tile.
    pub tile_keys: usize,
    /// Tiles of one picture at most.
    pub most_tiles: usize,
    /// Bytes of one tile's pixels.
    pub tile_bytes: usize,
    /// Arrangements of tiles that there are.
    pub arrangements: usize,
    /// How its pages are divided.
    pub pages: Pages,
}

impl PictureFacts {
    /// Blocks of the arena that a picture of so many tiles takes.
    #[must_use]
    pub fn page_count(&self, tiles: usize) -> usize {
        self.pages.count(tiles * self.tile_keys)
    }
}

/// Where a model's numbers can be looked at on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// What the vision tower gives, for each key.
    Vision,
    /// The same after the projector.
    Projected,
    /// The state after the text layer of this number.
    Layer(usize),
}

/// Is told a station, the number of the first row, and rows of it.
pub type Tracer = Box<dyn FnMut(Station, usize, &[f32]) + Send>;

/// A loaded model.
pub trait Model: Send {
    /// Number of logits in a row.
    fn vocabulary(&self) -> usize;

    /// What fits into a step and into the cache.
    fn capacity(&self) -> Capacity;

    /// Bytes of memory that the weights take.
    fn weight_bytes(&self) -> usize;

    /// What pictures take; absent where it looks at none.
    fn pictures(&self) -> Option<PictureFacts> {
        None
    }

    /// Goes on with a picture by a part of the work; true when its pages are complete. Steps may be taken in between. With
    /// anything but the same allocation it begins anew.
    ///
    /// # Errors
    /// When it looks at no pictures, or picture and pages do not fit.
    fn encode(&mut self, _work: &Arc<Encoding>) -> Result<bool, StepError> {
        Err(StepError::Plan(
            "a picture for a model that looks at none".to_owned(),
        ))
    }

    /// Has every station told to `tracer` from now on, to compare with a reference; models without stations tell nothing.
    fn trace(&mut self, _tracer: Option<Tracer>) {}

    /// Whether tokens can be chosen where logits are computed, by [`Model::launch`].
    fn chooses(&self) -> bool {
        false
    }

    /// Begins one step, and chooses tokens of its wanted rows; the tokens of `open` rows are those that the step before
    /// chose. At most two steps are begun and not collected.
    ///
    /// # Errors
    /// When the plan does not fit the capacity, or this model does not choose.
    fn launch(
        &mut self,
        _plan: &StepPlan,
        _choices: &[Choice],
        _open: &[OpenRow],
    ) -> Result<(), StepError> {
        Err(StepError::Plan(
            "a step that chooses for a model that does not".to_owned(),
        ))
    }

    /// Waits for the tokens of the oldest step that was begun and not collected; [`u32::MAX`] where no logit was a number.
    ///
    /// # Errors
    /// When the device failed; nothing is under way then.
    fn collect(&mut self) -> Result<Vec<u32>, StepError> {
        Ok(Vec::new())
    }

    /// What a step took where one was measured since this was asked last, and what memory there is.
    fn usage(&mut self) -> Usage {
        Usage::default()
    }

    /// Runs one step: appends the rows' keys and values to the cache and returns the wanted logits.
    ///
    /// # Errors
    /// When the plan does not fit the capacity.
    fn forward(&mut self, plan: &StepPlan) -> Result<Logits<'_>, StepError>;
}

/// How a model is to be set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Threads that compute, shared by the ranks.
    pub threads: usize,
    /// Shards of the model that compute side by side; 1 keeps it whole.
    pub ranks: usize,
    /// Arithmetic of products.
    pub dtype: Arithmetic,
    /// The largest step and the size of the cache.
    pub capacity: Capacity,
}

/// The sizes of the model that the weights describe.
///
/// # Errors
/// When the architecture is unknown or its description is damaged.
pub fn shape(weights: &dyn Weights) -> Result<Shape, LoadError> {
    check_architecture(weights)?;
    weights.shape()
}

fn check_architecture(weights: &dyn Weights) -> Result<(), LoadError> {
    let known = weights.known_architectures();
    if known.contains(&weights.architecture()) {
        return Ok(());
    }
    Err(LoadError::Architecture {
        path: weights.path().to_owned(),
        found: weights.architecture().to_owned(),
        known: known.join(", "),
    })
}

/// Builds the model that the weights describe.
///
/// # Errors
/// When the architecture is unknown, or a tensor is missing or misshapen.
pub fn load(weights: &mut dyn Weights, setup: Setup) -> Result<Box<dyn Model>, LoadError> {
    check_architecture(weights)?;
    Ok(Box::new(ranks::Ranks::load(weights, setup)?))
}

/// Decides how many blocks the arena has by the bytes that are free when everything else is in place.
pub type Room<'a> = dyn FnMut(u64) -> Result<usize, LoadError> + 'a;

/// Builds the model that the weights describe on a card; `room` decides in place of `capacity` how many blocks there are.
///
/// # Errors
/// As [`load`], and when the card cannot hold it.
pub fn load_on(
    card: Arc<dyn Card>,
    settings: cuda::Settings,
    weights: &mut dyn Weights,
    capacity: Capacity,
    room: &mut Room<'_>,
) -> Result<Box<dyn Model>, LoadError> {
    check_architecture(weights)?;
    let failed = |error: CardError| {
        LoadError::Setup(format!("failed to set up {}: {error}", card.facts().name))
    };
    let backend = Cuda::new(Arc::clone(&card), settings).map_err(failed)?;
    let ranks = ranks::Ranks::load_on(backend, weights, capacity, room)?;
    Ok(Box::new(ranks))
}

/// What pictures take of a model with these sizes.
#[must_use]
pub fn picture_facts(sight: &Sight, shape: &Shape) -> PictureFacts {
    PictureFacts {
        token: sight.token,
        tile_keys: sight.tile_keys(),
        most_tiles: sight.tiles,
        tile_bytes: 3 * sight.side * sight.side,
        arrangements: sight.arrangements.len(),
        pages: Pages {
            layers: shape.layers,
            cross_layers: sight.cross_layers.len(),
        },
    }
}

/// Checks what every model relies on.
///
/// # Errors
/// When the plan contradicts itself, the capacity or the vocabulary.
pub fn check(
    plan: &StepPlan,
    capacity: Capacity,
    vocabulary: usize,
    pictures: Option<PictureFacts>,
) -> Result<(), StepError> {
    let rows = plan.tokens.len();
    let fail = |message: String| Err(StepError::Plan(message));
    if rows == 0 || rows > capacity.rows || plan.positions.len() != rows {
        return fail(format!(
            "{rows} tokens and {} positions for at most {} rows",
            plan.positions.len(),
            capacity.rows
        ));
    }
    let apart = plan
        .logits
        .windows(2)
        .all(|pair| pair[0].end <= pair[1].start);
    let inside = |range: &Range<usize>| range.start <= range.end && range.end <= rows;
    if !apart
        || !plan.logits.iter().all(inside)
        || plan.logits_rows().count() > capacity.logits_rows
    {
        return fail(format!(
            "logits of rows {:?} in a step of {rows} rows and at most {} logits",
            plan.logits, capacity.logits_rows
        ));
    }
    let copied = plan.copies.iter().flat_map(|copy| [copy.from, copy.to]);
    if let Some(block) = copied
        .into_iter()
        .find(|block| *block as usize >= capacity.blocks)
    {
        return fail(format!(
            "a copy of block {block}, the arena has {}",
            capacity.blocks
        ));
    }
    if let Some(token) = plan
        .tokens
        .iter()
        .find(|token| **token as usize >= vocabulary)
    {
        return fail(format!("token {token} in a vocabulary of {vocabulary}"));
    }
    let mut next = 0;
    for run in &plan.runs {
        if run.rows.start != next || run.rows.is_empty() || run.rows.end > rows {
            return fail(format!("rows {:?} after row {next}", run.rows));
        }
        next = run.rows.end;
        if run.adapter.is_some() {
            return fail("an adapter for a model that has none".to_owned());
        }
        if !run.cross.is_empty() && !looks_well(run, capacity, pictures) {
            return fail(format!("rows {:?} see {:?}", run.rows, run.cross));
        }
        if run
            .blocks
            .iter()
            .any(|block| *block as usize >= capacity.blocks)
        {
            return fail(format!(
                "a block beyond the {} of the arena",
                capacity.blocks
            ));
        }
        let positions = &plan.positions[run.rows.clone()];
        let consecutive = positions.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        let last = positions.last().map_or(0, |position| *position as usize);
        if !consecutive || last >= run.blocks.len() * BLOCK_TOKENS {
            return fail(format!(
                "positions up to {last} in {} blocks",
                run.blocks.len()
            ));
        }
    }
    if next == rows {
        Ok(())
    } else {
        fail(format!("runs cover {next} of {rows} rows"))
    }
}

/// Whether what a run's rows see fits the model and the arena.
fn looks_well(run: &Run, capacity: Capacity, pictures: Option<PictureFacts>) -> bool {
    let Some(facts) = pictures else {
        return false;
    };
    let mut next = run.rows.start;
    run.cross.iter().all(|cross| {
        let after = cross.rows.start >= next && !cross.rows.is_empty();
        next = cross.rows.end;
        let whole = cross.pictures.iter().all(|picture| {
            picture.length > 0
                && picture.pages.len() == facts.pages.count(picture.length)
                && fits(&picture.pages, capacity)
        });
        after && next <= run.rows.end && !cross.pictures.is_empty() && whole
    })
}

fn fits(blocks: &[u32], capacity: Capacity) -> bool {
    blocks
        .iter()
        .all(|block| (*block as usize) < capacity.blocks)
}

/// Checks what every model relies on when it encodes a picture.
fn check_encoding(
    work: &Encoding,
    capacity: Capacity,
    facts: PictureFacts,
) -> Result<(), StepError> {
    let Encoding { picture, pages } = work;
    let expected = facts.page_count(picture.tiles);
    if (1..=facts.most_tiles).contains(&picture.tiles)
        && (1..=facts.arrangements).contains(&picture.arrangement)
        && picture.pixels.len() == picture.tiles * facts.tile_bytes
        && pages.len() == expected
        && fits(pages, capacity)
    {
        return Ok(());
    }
    Err(StepError::Plan(format!(
        "a picture of {} tiles in {} pages, expected {expected} of the arena's {} blocks",
        picture.tiles,
        pages.len(),
        capacity.blocks
    )))
}
