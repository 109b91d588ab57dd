//! Which decode steps are recorded and repeated. A step is like another when as many rows decode, as many of them see
//! pictures and attention needs as many splits: then the same launches read what the new step is told from the same places.

use super::Cuda;
use super::card::Graph;
use crate::compute::vision::Step;

/// Recorded steps that are kept; the one that was not used for longest goes.
const MOST_GRAPHS: usize = 96;

/// What steps have in common that the same recording serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Likeness {
    rows: usize,
    sighted: usize,
    splits: usize,
    /// Of each number under which rows see something.
    looks: Vec<usize>,
}

struct Recorded {
    likeness: Likeness,
    graph: Box<dyn Graph>,
    used: u64,
}

/// Recorded steps.
#[derive(Default)]
pub struct Graphs {
    on: bool,
    recorded: Vec<Recorded>,
    /// The step before, and what is being recorded.
    last: Option<Likeness>,
    recording: Option<Likeness>,
    /// Whether the card failed while it recorded or repeated.
    pub(super) failed: bool,
    used: u64,
}

impl Graphs {
    /// None yet, and none ever where they are not wanted.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self {
            on,
            ..Self::default()
        }
    }

    /// Forgets all: something lies elsewhere now.
    pub fn clear(&mut self) {
        self.recorded.clear();
        self.last = None;
    }

    /// Forgets all and records nothing any more.
    pub fn give_up(&mut self) {
        *self = Self::default();
    }

    fn keep(&mut self, likeness: Likeness, graph: Box<dyn Graph>) {
        if self.recorded.len() == MOST_GRAPHS {
            let oldest = (0..MOST_GRAPHS).min_by_key(|index| self.recorded[*index].used);
            self.recorded.swap_remove(oldest.unwrap_or(0));
        }
        self.recorded.push(Recorded {
            likeness,
            graph,
            used: self.used,
        });
    }
}

/// Whether every row decodes: one row a sequence, and the logits of each are wanted.
fn decodes(step: &Step<'_>) -> bool {
    let runs = &step.plan.runs;
    step.whole
        && !runs.is_empty()
        && runs.iter().all(|run| run.rows.len() == 1)
        && step.wanted.iter().copied().eq(0..runs.len())
}

impl Cuda {
    /// Repeats what was recorded of such a step, or begins to record it when the one before was like it.
    pub(super) fn begin_graph(&mut self, step: &Step<'_>) -> bool {
        if !(self.graphs.on && decodes(step) && self.sound()) {
            if step.whole {
                self.graphs.last = None;
            }
            return false;
        }
        let looks = step.looks.iter();
        let looks = looks.map(|(number, _)| self.looks[*number].attended.splits);
        let likeness = Likeness {
            rows: step.plan.runs.len(),
            sighted: step.sighted.len(),
            splits: self.told.attended.splits,
            looks: looks.collect(),
        };
        let graphs = &mut self.graphs;
        graphs.used += 1;
        let mut recorded = graphs.recorded.iter_mut();
        if let Some(found) = recorded.find(|recorded| recorded.likeness == likeness) {
            found.used = graphs.used;
            let outcome = found.graph.replay();
            graphs.failed = outcome.is_err();
            self.note(outcome);
            return true;
        }
        // Once as it is, so that everything that is made on first use is there.
        if graphs.last.as_ref() == Some(&likeness) {
            let begun = self.note(self.card.begin_capture());
            self.graphs.failed = begun.is_none();
            self.graphs.recording = begun.map(|()| likeness);
        } else {
            graphs.last = Some(likeness);
        }
        false
    }

    /// Does what was recorded, and keeps it where all went well.
    pub(super) fn end_graph(&mut self) {
        let Some(likeness) = self.graphs.recording.take() else {
            return;
        };
        let ended = self.card.end_capture();
        // What was refused on the way is missing in it.
        if self.sound()
            && let Some(graph) = self.note(ended)
            && self.note(graph.replay()).is_some()
        {
            self.graphs.keep(likeness, graph);
        }
        self.graphs.failed = !self.sound();
    }
}
