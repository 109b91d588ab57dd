//! A model as one or more ranks: the caller's thread is the first, each other rank has a thread of its own and gets the same
//! plan. They meet in the backend's `all_reduce`, so a step ends when the first rank's does.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use super::decoder::Decoder;
use super::{
    Capacity, Logits, Model, PictureFacts, Room, Setup, StepError, Tracer, Usage, check,
    check_encoding,
};
use crate::compute::cpu::Cpu;
use crate::compute::ranks::seats;
use crate::compute::vision::Vision;
use crate::step::{Choice, Encoding, OpenRow, StepPlan};
use crate::weights::{LoadError, Weights};

/// A decoder on this processor, or on another device.
pub struct Ranks<B: Vision> {
    capacity: Capacity,
    weight_bytes: usize,
    /// Dropped before the others, so that those who wait for it hear that it is gone.
    first: Decoder<B>,
    others: Vec<Other>,
}

/// What every rank does at the same time.
#[derive(Clone)]
enum Work {
    Step(Arc<StepPlan>),
    Encode(Arc<Encoding>),
}

struct Other {
    /// Bounded by one: nobody is more than a step behind the first.
    work: Option<SyncSender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl Ranks<Cpu> {
    /// Reads each rank's shard and starts the other ranks' threads.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or unreadable, or the model cannot be cut so.
    pub fn load(weights: &mut dyn Weights, setup: Setup) -> Result<Self, LoadError> {
        let Setup {
            threads,
            ranks,
            dtype,
            capacity,
        } = setup;
        Cpu::expect(weights.packed_bytes());
        let mut ranked = Vec::with_capacity(ranks);
        for seat in seats(ranks.max(1)) {
            let cpu = Cpu::new((threads / ranks.max(1)).max(1), seat, dtype);
            ranked.push(Decoder::load(weights, cpu, capacity)?);
        }
        Cpu::expect_no_more();
        Self::new(ranked, capacity)
    }
}

impl<B: Vision + 'static> Ranks<B>
where
    Decoder<B>: Send,
{
    /// Loads the whole model onto a device.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or unreadable, or the device cannot hold it all.
    pub fn load_on(
        backend: B,
        weights: &mut dyn Weights,
        capacity: Capacity,
        room: &mut Room<'_>,
    ) -> Result<Self, LoadError> {
        let mut blocks = 0;
        let mut decide = |backend: &B| {
            let free = backend.memory().map_or(u64::MAX, |(free, _)| free);
            blocks = room(free)?;
            Ok(blocks)
        };
        let decoder = Decoder::load_with(weights, backend, capacity, &mut decide)?;
        Self::new(vec![decoder], Capacity { blocks, ..capacity })
    }

    fn new(ranked: Vec<Decoder<B>>, capacity: Capacity) -> Result<Self, LoadError> {
        let weight_bytes = ranked.iter().map(Decoder::weight_bytes).sum();
        let mut ranked = ranked.into_iter();
        let Some(first) = ranked.next() else {
            return Err(LoadError::Setup("a model has at least one rank".to_owned()));
        };
        let others = ranked
            .enumerate()
            .map(|(index, decoder)| Other::start(index + 1, decoder))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            capacity,
            weight_bytes,
            first,
            others,
        })
    }
}

impl<B: Vision> Ranks<B> {
    /// Hands the other ranks what the first one does.
    fn tell(&self, work: &Work) -> Result<(), StepError> {
        for others in self.others.iter().filter_map(|other| other.work.as_ref()) {
            others
                .send(work.clone())
                .map_err(|_| StepError::Plan("another rank has stopped".to_owned()))?;
        }
        Ok(())
    }
}

impl Other {
    fn start<B: Vision + 'static>(rank: usize, mut decoder: Decoder<B>) -> Result<Self, LoadError>
    where
        Decoder<B>: Send,
    {
        let (work, receiver) = sync_channel::<Work>(1);
        let thread = thread::Builder::new()
            .name(format!("rank-{rank}"))
            .spawn(move || {
                for work in receiver {
                    let fault = match work {
                        Work::Step(plan) => decoder.forward(&plan).err(),
                        Work::Encode(encoding) => decoder.encode(&encoding).err(),
                    };
                    // The first rank hears of it by the seat that is given up.
                    if fault.is_some() {
                        break;
                    }
                }
            })
            .map_err(|error| LoadError::Setup(format!("failed to start rank {rank}: {error}")))?;
        Ok(Self {
            work: Some(work),
            thread: Some(thread),
        })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            // A rank that panicked has told the first one through its seat.
            let _ = thread.join();
        }
    }
}

impl<B: Vision> Model for Ranks<B>
where
    Decoder<B>: Send,
{
    fn vocabulary(&self) -> usize {
        self.first.vocabulary()
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn weight_bytes(&self) -> usize {
        self.weight_bytes
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits<'_>, StepError> {
        let (inputs, pictures) = (self.first.inputs(), self.first.pictures());
        check(plan, self.capacity, inputs, pictures)?;
        if !self.others.is_empty() {
            self.tell(&Work::Step(Arc::new(plan.clone())))?;
        }
        Ok(self.first.forward(plan)?)
    }

    fn pictures(&self) -> Option<PictureFacts> {
        self.first.pictures()
    }

    fn chooses(&self) -> bool {
        self.others.is_empty() && self.first.chooses()
    }

    fn launch(
        &mut self,
        plan: &StepPlan,
        choices: &[Choice],
        open: &[OpenRow],
    ) -> Result<(), StepError> {
        let (inputs, pictures) = (self.first.inputs(), self.first.pictures());
        check(plan, self.capacity, inputs, pictures)?;
        self.first.launch(plan, choices, open);
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<u32>, StepError> {
        Ok(self.first.collect()?)
    }

    fn usage(&mut self) -> Usage {
        self.first.usage()
    }

    fn encode(&mut self, work: &Arc<Encoding>) -> Result<bool, StepError> {
        let Some(facts) = self.first.pictures() else {
            return Err(StepError::Plan(
                "a picture for a model that looks at none".to_owned(),
            ));
        };
        check_encoding(work, self.capacity, facts)?;
        self.tell(&Work::Encode(Arc::clone(work)))?;
        Ok(self.first.encode(work)?)
    }

    fn trace(&mut self, tracer: Option<Tracer>) {
        self.first.trace(tracer);
    }
}
