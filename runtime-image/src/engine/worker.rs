//! The thread that owns the model. Each turn: take submissions, drop the cancelled, plan, forward, sample, emit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::cache::Blocks;
use super::sampler::{NotFinite, Sampler};
use super::scheduler::{Decision, Limits, View, plan};
use super::sequence::Sequence;
use super::{EngineLimits, Event, Permit, Submission};
use crate::metrics::{Metrics, Tokens};
use crate::model::{Model, Run, StepError, StepPlan};
use crate::tokenizer::Tokenizer;

/// One generation.
struct Active {
    /// Prompt and answer.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    computed: usize,
    blocks: Vec<u32>,
    sampler: Sampler,
    sequence: Sequence,
    events: UnboundedSender<Result<Event, NotFinite>>,
    arrived: Instant,
    /// When the last token came.
    last_token: Option<Instant>,
    /// Whether it has been in the model.
    admitted: bool,
    /// Freed with the generation.
    _permit: Permit,
}

impl Active {
    fn new(submission: Submission) -> Self {
        let Submission {
            arrived,
            request,
            permit,
            events,
        } = submission;
        Self {
            prompt_tokens: request.prompt.len(),
            computed: 0,
            blocks: Vec::new(),
            sampler: Sampler::new(request.sampling, &request.prompt),
            sequence: Sequence::new(request.ending),
            tokens: request.prompt,
            events,
            arrived,
            last_token: None,
            admitted: false,
            _permit: permit,
        }
    }

    fn view(&self) -> View {
        View {
            tokens: self.tokens.len(),
            computed: self.computed,
            blocks: self.blocks.len(),
        }
    }
}

/// What one token led to.
enum Outcome {
    GoesOn,
    Ended,
}

pub(super) struct Worker {
    model: Box<dyn Model>,
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    metrics: Arc<Metrics>,
    submissions: Receiver<Submission>,
    blocks: Blocks,
    /// In the order of arrival.
    running: Vec<Active>,
    waiting: VecDeque<Active>,
}

impl Worker {
    pub(super) fn new(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        limits: EngineLimits,
        metrics: Arc<Metrics>,
        submissions: Receiver<Submission>,
    ) -> Self {
        let capacity = model.capacity();
        let limits = Limits {
            rows: capacity.rows,
            sequences: limits
                .sequences
                .min(capacity.rows)
                .min(capacity.logits_rows),
        };
        let blocks = Blocks::new(capacity.blocks);
        Self {
            model,
            tokenizer,
            limits,
            metrics,
            submissions,
            blocks,
            running: Vec::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Runs until the last handle is gone and all generations have ended.
    pub(super) fn run(mut self) -> Result<(), StepError> {
        loop {
            let open = self.take_submissions();
            self.drop_cancelled();
            self.show();
            if !open && self.running.is_empty() && self.waiting.is_empty() {
                return Ok(());
            }
            self.step()?;
        }
    }

    /// Shows what runs, what waits and how full the cache is.
    fn show(&self) {
        self.metrics.running.set(count(self.running.len()));
        self.metrics.waiting.set(count(self.waiting.len()));
        let (free, total) = (self.blocks.free(), self.blocks.total().max(1));
        self.metrics
            .cache_usage
            .set(1.0 - free as f64 / total as f64);
    }

    /// Takes what has been submitted; waits for something while there is nothing to do. False once all handles are gone.
    fn take_submissions(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            self.show();
            match self.submissions.recv() {
                Ok(submission) => self.waiting.push_back(Active::new(submission)),
                Err(_) => return false,
            }
        }
        loop {
            match self.submissions.try_recv() {
                Ok(submission) => self.waiting.push_back(Active::new(submission)),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Frees the places and blocks of clients that have left.
    fn drop_cancelled(&mut self) {
        let Self {
            running,
            waiting,
            blocks,
            metrics,
            ..
        } = self;
        waiting.retain(|active| {
            let stays = !active.events.is_closed();
            if !stays {
                metrics.aborted();
            }
            stays
        });
        running.retain_mut(|active| {
            let stays = !active.events.is_closed();
            if !stays {
                blocks.give(&mut active.blocks);
                metrics.aborted();
            }
            stays
        });
    }

    /// One step of the model.
    fn step(&mut self) -> Result<(), StepError> {
        let running: Vec<View> = self.running.iter().map(Active::view).collect();
        let waiting: Vec<View> = self
            .waiting
            .iter()
            .take(self.limits.sequences)
            .map(Active::view)
            .collect();
        let decision = plan(&running, &waiting, self.blocks.free(), self.limits);
        let plan = self.apply(&decision);
        if plan.tokens.is_empty() {
            return Ok(());
        }
        let logits = self.model.forward(&plan)?;
        let Self {
            running,
            blocks,
            tokenizer,
            metrics,
            ..
        } = self;
        let mut wanted = 0;
        for slice in &decision.slices {
            let active = &mut running[slice.sequence];
            active.computed += slice.count;
            if active.computed < active.tokens.len() {
                continue;
            }
            let sampled = active.sampler.sample(logits.row(wanted));
            wanted += 1;
            let outcome = match sampled {
                Ok(token) => advance(active, token, tokenizer, metrics),
                Err(error) => fail(active, error, metrics),
            };
            if let Outcome::Ended = outcome {
                blocks.give(&mut active.blocks);
            }
        }
        // Only an ended generation that was computed holds no block.
        running.retain(|active| !active.blocks.is_empty() || active.computed == 0);
        Ok(())
    }

    /// Moves sequences and blocks as decided and writes the step down.
    fn apply(&mut self, decision: &Decision) -> StepPlan {
        for mut active in self
            .running
            .split_off(self.running.len() - decision.preempt)
            .into_iter()
            .rev()
        {
            self.blocks.give(&mut active.blocks);
            active.computed = 0;
            self.metrics.preempted();
            self.waiting.push_front(active);
        }
        for mut active in self.waiting.drain(..decision.admit) {
            if !active.admitted {
                active.admitted = true;
                let waited = active.arrived.elapsed();
                self.metrics.queue_time.observe(waited.as_secs_f64());
            }
            self.running.push(active);
        }
        let mut plan = StepPlan::default();
        for slice in &decision.slices {
            let active = &mut self.running[slice.sequence];
            self.blocks.take(slice.blocks, &mut active.blocks);
            let first = plan.tokens.len();
            let range = active.computed..active.computed + slice.count;
            plan.tokens.extend_from_slice(&active.tokens[range.clone()]);
            plan.positions.extend(
                range
                    .clone()
                    .map(|position| u32::try_from(position).unwrap_or(u32::MAX)),
            );
            plan.runs.push(Run {
                rows: first..first + slice.count,
                blocks: active.blocks.clone(),
            });
            if range.end == active.tokens.len() {
                plan.logits_rows.push(first + slice.count - 1);
            }
        }
        plan
    }
}

/// Takes a token into its answer and tells the client.
fn advance(active: &mut Active, token: u32, tokenizer: &Tokenizer, metrics: &Metrics) -> Outcome {
    active.tokens.push(token);
    metrics.generation_tokens.inc();
    let now = Instant::now();
    match active.last_token.replace(now) {
        None => {
            metrics.prompt_tokens.inc_by(active.prompt_tokens as u64);
            let took = now.duration_since(active.arrived);
            metrics.time_to_first_token.observe(took.as_secs_f64());
        }
        Some(before) => {
            let took = now.duration_since(before);
            metrics.next_token.observe(took.as_secs_f64());
        }
    }
    let advance = active.sequence.advance(token, tokenizer);
    // A client that has left is noticed at the next turn.
    if !advance.text.is_empty() {
        let _ = active.events.send(Ok(Event::Text { text: advance.text }));
    }
    let Some(finish) = advance.finish else {
        return Outcome::GoesOn;
    };
    let tokens = Tokens {
        prompt: active.prompt_tokens,
        answer: active.sequence.generated(),
    };
    metrics.finished(finish, tokens, active.arrived.elapsed().as_secs_f64());
    let _ = active.events.send(Ok(Event::Finished {
        finish,
        prompt_tokens: active.prompt_tokens,
        completion_tokens: active.sequence.generated(),
    }));
    Outcome::Ended
}

/// Ends one answer; the others go on.
fn fail(active: &mut Active, error: NotFinite, metrics: &Metrics) -> Outcome {
    metrics.aborted();
    let _ = active.events.send(Err(error));
    Outcome::Ended
}

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
