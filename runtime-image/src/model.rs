//! What the engine asks of a model: one step at a time, described by plain data.
//!
//! A [`StepPlan`] holds numbers only, so the same plan can go to any architecture and any device.
//! Nothing above this trait knows tensors; nothing below it knows requests.

use std::ops::Range;

use crate::weights::{LoadError, Weights};

#[cfg(any(test, feature = "fake-model"))]
pub mod fake;
pub mod llama;

/// Tokens in one block of the cache of keys and values.
pub const BLOCK_TOKENS: usize = crate::compute::attention::TOKENS;

/// The architectures that [`load`] knows, as GGUF files and `config.json` name them.
pub const ARCHITECTURES: [&str; 2] = ["llama", "LlamaForCausalLM"];

/// One step over some tokens of some sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// One token a row.
    pub tokens: Vec<u32>,
    /// The row's place in its sequence, from 0.
    pub positions: Vec<u32>,
    /// The sequences, each with its rows; together they cover all rows in order.
    pub runs: Vec<Run>,
    /// Rows whose logits are wanted, ascending.
    pub logits_rows: Vec<usize>,
}

/// The rows of one sequence in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Rows of the step; their positions follow one another.
    pub rows: Range<usize>,
    /// The blocks that hold the sequence's keys and values, up to its last row's position.
    pub blocks: Vec<u32>,
}

/// The largest step a model takes, and the room it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Rows in one step.
    pub rows: usize,
    /// Rows in one step whose logits can be wanted.
    pub logits_rows: usize,
    /// Blocks of [`BLOCK_TOKENS`] tokens in the cache.
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

/// Why a step was not taken. The scheduler's plans never cause one; it is a fault of the program.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The plan contradicts itself or the capacity.
    #[error("failed to run a step: {0}")]
    Plan(String),
}

/// A loaded model.
pub trait Model: Send {
    /// Number of logits in a row.
    fn vocabulary(&self) -> usize;

    /// What fits into a step and into the cache.
    fn capacity(&self) -> Capacity;

    /// Bytes of memory that the weights take.
    fn weight_bytes(&self) -> usize;

    /// Whether it looks at pictures.
    fn reads_pictures(&self) -> bool {
        false
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
    /// Threads that compute.
    pub threads: usize,
    /// The largest step and the size of the cache.
    pub capacity: Capacity,
}

/// Tokens of prompt and answer together that a model was made for.
///
/// # Errors
/// When the architecture is unknown or its description is damaged.
pub fn context_length(weights: &dyn Weights) -> Result<usize, LoadError> {
    check_architecture(weights)?;
    weights.llama_shape().map(|shape| shape.context_length)
}

fn check_architecture(weights: &dyn Weights) -> Result<(), LoadError> {
    if ARCHITECTURES.contains(&weights.architecture()) {
        return Ok(());
    }
    Err(LoadError::Architecture {
        path: weights.path().to_owned(),
        found: weights.architecture().to_owned(),
        known: ARCHITECTURES.join(", "),
    })
}

/// Builds the model that the weights describe.
///
/// # Errors
/// When the architecture is unknown, or a tensor is missing or misshapen.
pub fn load(weights: &mut dyn Weights, setup: Setup) -> Result<Box<dyn Model>, LoadError> {
    check_architecture(weights)?;
    Ok(Box::new(llama::Llama::load(weights, setup)?))
}

/// Checks what every model relies on.
///
/// # Errors
/// When the plan contradicts itself, the capacity or the vocabulary.
pub fn check(plan: &StepPlan, capacity: Capacity, vocabulary: usize) -> Result<(), StepError> {
    let rows = plan.tokens.len();
    let fail = |message: String| Err(StepError::Plan(message));
    if rows == 0 || rows > capacity.rows || plan.positions.len() != rows {
        return fail(format!(
            "{rows} tokens and {} positions for at most {} rows",
            plan.positions.len(),
            capacity.rows
        ));
    }
    if plan.logits_rows.len() > capacity.logits_rows
        || plan.logits_rows.iter().any(|row| *row >= rows)
    {
        return fail(format!(
            "logits of rows {:?} in a step of {rows} rows",
            plan.logits_rows
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
        if run
            .blocks
            .iter()
            .any(|block| *block as usize >= capacity.blocks)
        {
            return fail(format!(
                "a block beyond the {} of the cache",
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
