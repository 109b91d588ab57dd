//! The thread that owns the model. Each turn: take submissions, drop the cancelled, plan, forward, sample, emit, and a part
//! of a picture's encoding: about as much work as a step of text, so that others' next tokens are not late.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use super::active::Active;
use super::cache::Blocks;
use super::flight::{Flight, write_down};
use super::outlet::Outlet;
use super::scheduler::{Decision, Limits, View, plan};
use super::{EngineLimits, Submission};
use crate::metrics::Metrics;
use crate::model::{Model, PictureFacts, StepError};
use crate::step::{BLOCK_TOKENS, Encoding};
use crate::tokenizer::Tokenizer;

pub(super) struct Worker {
    pub(super) model: Box<dyn Model>,
    pictures: Option<PictureFacts>,
    /// The picture under way.
    encoding: Option<Arc<Encoding>>,
    limits: Limits,
    guesses: usize,
    /// Whether a step is planned before the tokens of the one before it are known.
    ahead: bool,
    submissions: Receiver<Submission>,
    pub(super) blocks: Blocks,
    /// In the order of arrival.
    pub(super) running: Vec<Active>,
    /// Stays among them so far.
    stays: u64,
    pub(super) waiting: VecDeque<Active>,
    pub(super) outlet: Outlet,
    /// Time that this turn has waited for the device.
    waited: Duration,
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
        let ahead = limits.ahead;
        let guesses = if ahead { 0 } else { limits.guesses };
        let limits = Limits {
            rows: capacity.rows,
            logits: capacity.logits_rows,
            sequences: limits
                .sequences
                .min(capacity.rows)
                .min(capacity.logits_rows),
        };
        let blocks = Blocks::new(capacity.blocks);
        metrics.arena(blocks.total(), BLOCK_TOKENS);
        Self {
            pictures: model.pictures(),
            encoding: None,
            model,
            limits,
            guesses,
            ahead,
            submissions,
            blocks,
            running: Vec::new(),
            stays: 0,
            waiting: VecDeque::new(),
            outlet: Outlet { tokenizer, metrics },
            waited: Duration::ZERO,
        }
    }

    /// Runs until the last handle is gone and all generations have ended.
    pub(super) fn run(mut self) -> Result<(), StepError> {
        let beside = self.ahead && self.model.chooses();
        let (mut next, mut under_way) = (Flight::default(), None);
        loop {
            let open = self.take_submissions();
            self.drop_cancelled();
            self.show();
            if !open && self.running.is_empty() && self.waiting.is_empty() {
                return Ok(());
            }
            let begun = Instant::now();
            self.waited = Duration::ZERO;
            let outcome = if beside {
                self.turn_beside(&mut under_way)
            } else {
                self.turn(&mut next)
            };
            let outcome = outcome.and_then(|()| self.encode());
            if !self.survive(outcome)? {
                (next, under_way) = (Flight::default(), None);
            }
            self.show_usage(begun.elapsed());
        }
    }

    /// One turn that chooses tokens here.
    fn turn(&mut self, next: &mut Flight) -> Result<(), StepError> {
        let mut flight = std::mem::take(next);
        if flight.plan.tokens.is_empty() {
            flight = self.plan();
        }
        if self.ahead {
            *next = self.plan();
        }
        self.step(&flight)?;
        self.close(next);
        Ok(())
    }

    /// Has the model do something for which this thread waits.
    pub(super) fn wait<T>(&mut self, work: impl FnOnce(&mut dyn Model) -> T) -> T {
        let begun = Instant::now();
        let done = work(self.model.as_mut());
        self.waited += begun.elapsed();
        done
    }

    /// Shows what the device tells of itself, and what the host did beside in a turn that took so long.
    fn show_usage(&mut self, took: Duration) {
        let usage = self.model.usage();
        let host = took.saturating_sub(self.waited);
        self.outlet.metrics.used(&usage, host);
    }

    /// Begins the picture under way anew.
    pub(super) fn forget_encoding(&mut self) {
        self.encoding = None;
    }

    /// Shows what runs, what waits and how full the arena is.
    fn show(&self) {
        let metrics = &self.outlet.metrics;
        metrics.running.set(count(self.running.len()));
        metrics.waiting.set(count(self.waiting.len()));
        let (free, total) = (self.blocks.free(), self.blocks.total().max(1));
        metrics.cache_usage.set(1.0 - free as f64 / total as f64);
        let pages = self
            .running
            .iter()
            .flat_map(|active| active.pictures.pages());
        let pages = pages.collect::<HashSet<_>>().len();
        metrics.picture_cache_usage.set(pages as f64 / total as f64);
    }

    /// Takes what has been submitted; waits for something while there is nothing to do. False once all handles are gone.
    fn take_submissions(&mut self) -> bool {
        let (guesses, pictures) = (self.guesses, self.pictures);
        let taken = |submission| Active::new(submission, guesses, pictures);
        if self.running.is_empty() && self.waiting.is_empty() {
            self.show();
            match self.submissions.recv() {
                Ok(submission) => self.waiting.push_back(taken(submission)),
                Err(_) => return false,
            }
        }
        loop {
            match self.submissions.try_recv() {
                Ok(submission) => self.waiting.push_back(taken(submission)),
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
            outlet,
            ..
        } = self;
        let mut stays = |active: &mut Active| {
            let stays = !active.events.is_closed();
            if !stays {
                active.give_blocks(blocks);
                outlet.metrics.aborted();
            }
            stays
        };
        waiting.retain_mut(&mut stays);
        running.retain_mut(&mut stays);
    }

    /// Plans a step after those that have been planned.
    pub(super) fn plan(&mut self) -> Flight {
        for active in &mut self.running {
            let shared = active.share(&mut self.blocks);
            self.outlet.metrics.prefix_hits.inc_by(shared as u64);
        }
        let decision = self.decide();
        self.apply(&decision)
    }

    /// Where a sequence runs; none when it has ended or given way.
    pub(super) fn position(&self, stay: u64) -> Option<usize> {
        self.running.iter().position(|active| active.stay == stay)
    }

    /// Puts the tokens that have come into a step that was planned before. Rows of sequences that ended with them are computed
    /// for nobody: what they write goes into blocks that are somebody else's at the step after at the earliest.
    pub(super) fn close(&self, flight: &mut Flight) {
        for open in &flight.open {
            if let Some(at) = self.position(open.stay)
                && let Some(token) = self.running[at].tokens.get(open.position)
            {
                flight.plan.tokens[open.row] = *token;
            }
        }
        if flight
            .parts
            .iter()
            .all(|part| self.position(part.stay).is_none())
        {
            *flight = Flight::default();
        }
    }

    /// One step of the model.
    pub(super) fn step(&mut self, flight: &Flight) -> Result<(), StepError> {
        if flight.plan.tokens.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let logits = self.model.forward(&flight.plan)?;
        self.waited += begun.elapsed();
        let mut split = Vec::new();
        for part in &flight.parts {
            let mut running = self.running.iter();
            let Some(at) = running.position(|active| active.stay == part.stay) else {
                continue;
            };
            let active = &mut self.running[at];
            let siblings = self
                .outlet
                .take_logits(active, part, &logits, &mut self.blocks);
            if !siblings.is_empty() {
                split.push((at + 1, siblings));
            }
        }
        for (at, siblings) in split.into_iter().rev() {
            self.place(at, siblings);
        }
        self.running.retain(|active| !active.ended);
        Ok(())
    }

    /// A part of the work on the first picture that a running sequence waits for.
    fn encode(&mut self) -> Result<(), StepError> {
        let wanted = |work: &Arc<Encoding>| {
            self.running
                .iter()
                .any(|active| active.pictures.wants(work))
        };
        let work = self.encoding.take().filter(wanted).or_else(|| {
            let mut running = self.running.iter();
            running
                .find_map(|active| active.pictures.wanted())
                .map(Arc::new)
        });
        let Some(work) = work else {
            return Ok(());
        };
        if self.wait(|model| model.encode(&work))? {
            self.outlet.metrics.pictures_encoded.inc();
            for active in &mut self.running {
                active.pictures.complete(&work, &mut self.blocks);
            }
        } else {
            self.encoding = Some(work);
        }
        Ok(())
    }

    /// Asks the scheduler.
    fn decide(&self) -> Decision {
        let running: Vec<View> = self
            .running
            .iter()
            .enumerate()
            .map(|(index, active)| {
                active.view(&self.blocks, &self.running[..index], active.guess().len())
            })
            .collect();
        let places = self.limits.sequences - self.running.len();
        let waiting: Vec<View> = (0..self.waiting.len().min(places))
            .map(|index| {
                let older = self.running.iter().chain(self.waiting.range(..index));
                self.waiting[index].waiting_view(&self.blocks, older)
            })
            .collect();
        plan(&running, &waiting, self.blocks.free(), self.limits)
    }

    /// Moves sequences and blocks as decided and writes the step down.
    fn apply(&mut self, decision: &Decision) -> Flight {
        let metrics = &self.outlet.metrics;
        for mut active in self
            .running
            .split_off(self.running.len() - decision.preempt)
            .into_iter()
            .rev()
        {
            active.give_way(&mut self.blocks);
            metrics.preempted();
            self.waiting.push_front(active);
        }
        let first = self.running.len();
        for mut active in self.waiting.drain(..decision.admit) {
            if !active.admitted {
                active.admitted = true;
                let waited = active.arrived.elapsed();
                metrics.queue_time.observe(waited.as_secs_f64());
                metrics.prefix_queries.inc_by(active.prompt_tokens as u64);
            }
            let shared = active.share(&mut self.blocks);
            metrics.prefix_hits.inc_by(shared as u64);
            self.stays += 1;
            active.stay = self.stays;
            self.running.push(active);
        }
        // Once all of them hold what was found: pages are taken from what nobody holds.
        for index in first..self.running.len() {
            let (older, rest) = self.running.split_at_mut(index);
            let Some(active) = rest.first_mut() else {
                break;
            };
            let others = older.iter().map(|other| &other.pictures);
            let found = active
                .pictures
                .acquire(active.computed, &mut self.blocks, others);
            metrics.pictures_found.inc_by(found as u64);
        }
        let mut flight = Flight::default();
        let mut wanted = 0;
        for slice in &decision.slices {
            let active = &mut self.running[slice.sequence];
            write_down(active, slice, &mut self.blocks, &mut flight, &mut wanted);
        }
        flight
    }

    /// Lets the other answers to a prompt run beside the first, or wait at the front of the queue while there is no place.
    fn place(&mut self, at: usize, siblings: Vec<Active>) {
        let places = self.limits.sequences - self.running.len();
        for (index, mut sibling) in siblings.into_iter().enumerate().rev() {
            if sibling.ended {
                continue;
            }
            if index < places {
                self.stays += 1;
                sibling.stay = self.stays;
                self.running.insert(at, sibling);
            } else {
                sibling.give_way(&mut self.blocks);
                self.waiting.push_front(sibling);
            }
        }
    }
}

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
