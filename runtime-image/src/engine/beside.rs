//! Turns beside a device that chooses tokens itself: a step is begun before the tokens of the one before it have come to the
//! host, which emits those while the device computes.

use super::SampleError;
use super::active::Active;
use super::cache::Blocks;
use super::flight::{Flight, Part};
use super::outlet::Outlet;
use super::worker::Worker;
use crate::compute::backend::Fault;
use crate::model::StepError;
use crate::step::{Choice, OpenRow};

/// Who chooses the tokens of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chooser {
    /// The device, before those of the step before have come.
    DeviceAhead,
    /// The device, told of those of the step before: by the form of an answer or by what was said already.
    Device,
    /// The host.
    Host,
}

impl Worker {
    /// One turn: begins a step whose tokens the device can choose, then takes those of the step before. Where these decide
    /// about the next ones, or all is chosen here, they are taken first.
    pub(super) fn turn_beside(&mut self, under_way: &mut Option<Flight>) -> Result<(), StepError> {
        let mut flight = self.plan();
        let chooser = self.chooser(&flight);
        if chooser == Chooser::DeviceAhead {
            let choices = self.choices(&flight);
            let open = open_rows(&flight, under_way.as_ref());
            let begun = self.model.launch(&flight.plan, &choices, &open);
            let before = under_way.replace(flight);
            begun?;
            return self.collect(before);
        }
        self.collect(under_way.take())?;
        self.close(&mut flight);
        if flight.plan.tokens.is_empty() || chooser == Chooser::Host {
            return self.step(&flight);
        }
        let choices = self.choices(&flight);
        self.model.launch(&flight.plan, &choices, &[])?;
        *under_way = Some(flight);
        Ok(())
    }

    /// Who chooses the tokens of a step that was just planned.
    fn chooser(&self, flight: &Flight) -> Chooser {
        let parts = flight.parts.iter();
        let parts = parts.map(|part| self.position(part.stay).map(|at| (&self.running[at], part)));
        let Some(parts) = parts.collect::<Option<Vec<(&Active, &Part)>>>() else {
            return Chooser::Host;
        };
        if parts.is_empty() || !parts.iter().all(|(active, _)| active.wants_a_token_only()) {
            Chooser::Host
        } else if parts
            .iter()
            .all(|(active, part)| !part.completes || active.sampler.is_simple())
        {
            Chooser::DeviceAhead
        } else {
            Chooser::Device
        }
    }

    /// How the tokens of a step are chosen. Answers whose form cannot be followed end here; what is chosen for them, and for
    /// those that have ended since the step was planned, is nobody's.
    fn choices(&mut self, flight: &Flight) -> Vec<Choice> {
        let mut choices = Vec::new();
        for part in flight.parts.iter().filter(|part| part.completes) {
            let row = part.logits.end.saturating_sub(1);
            let Some(at) = self.position(part.stay) else {
                choices.push(Choice::greedy(row));
                continue;
            };
            let active = &mut self.running[at];
            let choice = active.sampler.choice(row);
            choices.push(choice.unwrap_or_else(|error| {
                self.outlet.break_off(active, error);
                active.give_blocks(&mut self.blocks);
                Choice::greedy(row)
            }));
        }
        self.running.retain(|active| !active.ended);
        choices
    }

    /// Takes the tokens of a step that was begun.
    fn collect(&mut self, flight: Option<Flight>) -> Result<(), StepError> {
        let Some(flight) = flight else {
            return Ok(());
        };
        let mut tokens = self.wait(|model| model.collect())?.into_iter();
        for part in &flight.parts {
            let token = tokens.by_ref().take(usize::from(part.completes)).next();
            let Some(at) = self.position(part.stay) else {
                continue;
            };
            let active = &mut self.running[at];
            self.outlet
                .take_chosen(active, part, token, &mut self.blocks);
        }
        self.running.retain(|active| !active.ended);
        Ok(())
    }

    /// Goes on after the device lost a step: answers are computed again, and nothing that was computed is trusted. Where it
    /// had no memory, the youngest answer ends with an error.
    ///
    /// # Errors
    /// What else went wrong.
    pub(super) fn survive(&mut self, outcome: Result<(), StepError>) -> Result<bool, StepError> {
        match outcome {
            Err(StepError::Device(Fault::Memory(detail))) => self.end_youngest(detail),
            Err(StepError::Device(Fault::Again(_))) => {}
            other => return other.map(|()| true),
        }
        self.forget_encoding();
        for mut active in self.running.drain(..).rev() {
            active.give_way(&mut self.blocks);
            self.outlet.metrics.preempted();
            self.waiting.push_front(active);
        }
        self.blocks.forget();
        Ok(false)
    }

    /// Ends the youngest answer, for which the device has no memory.
    fn end_youngest(&mut self, detail: String) {
        tracing::warn!(detail, "a step did not fit into the device's memory");
        self.outlet.metrics.device_faults.inc();
        if let Some(mut youngest) = self.running.pop() {
            youngest.give_blocks(&mut self.blocks);
            self.outlet.metrics.aborted();
            let _ = youngest.events.send(Err(SampleError::Memory(detail)));
        }
    }
}

/// Which rows have tokens that the step under way chooses.
fn open_rows(flight: &Flight, under_way: Option<&Flight>) -> Vec<OpenRow> {
    let parts = under_way.map_or(&[][..], |flight| &flight.parts);
    let choosing: Vec<u64> = parts
        .iter()
        .filter(|part| part.completes)
        .map(|part| part.stay)
        .collect();
    let open = flight.open.iter().filter_map(|open| {
        let choice = choosing.iter().position(|stay| *stay == open.stay)?;
        Some(OpenRow {
            row: open.row,
            choice,
        })
    });
    open.collect()
}

impl Outlet {
    /// Takes what a step brought for one sequence whose token the device chose.
    fn take_chosen(
        &self,
        active: &mut Active,
        part: &Part,
        token: Option<u32>,
        blocks: &mut Blocks,
    ) {
        if part.completes && part.begins {
            self.begin_answer(active);
        }
        match token {
            Some(u32::MAX) => self.break_off(active, SampleError::NotFinite),
            Some(token) => {
                active.sampler.take_chosen(token);
                self.advance(active, token, &[]);
            }
            None => {}
        }
        active.settle(blocks);
        if active.ended {
            active.give_blocks(blocks);
        }
    }
}
