//! Dense decoders: Llama 2 and 3.x, Qwen 2 and 3, and what descends from them. Grouped-query attention, rotary positions,
//! gated SiLU; biases and norms of single heads where the weights have them; layers that look at pictures between them
//! (Llama 3.2 Vision). One rank's shard of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::linear::{Linear, Split, multiply};
use super::vision::{Target, Tower};
use super::{Capacity, Logits, PictureFacts, Station, Tracer, Usage, picture_facts};
use crate::compute::backend::{Backend, Fault, HeadNorms, Heads, Rotation};
use crate::compute::vision::{Look, Step, Vision};
use crate::step::{Choice, Encoding, OpenRow, StepPlan};
use crate::weights::sight::Sight;
use crate::weights::{LoadError, Shape, Weights, rope};
use cross::{CrossLayer, sighted_rows};
use parts::Parts;

pub mod cross;
mod parts;

/// Time between two questions for the device's memory, which wait for the driver.
const MEMORY_TOLD: Duration = Duration::from_secs(1);

struct Layer<B: Backend> {
    parts: Parts<B>,
    query_norm: Option<B::Rows>,
    key_norm: Option<B::Rows>,
}

impl<B: Backend> Layer<B> {
    fn load(
        weights: &mut dyn Weights,
        backend: &B,
        shape: &Shape,
        index: usize,
    ) -> Result<Self, LoadError> {
        let parts = Parts::load(weights, backend, shape, index, "attn")?;
        let mut norm = |part: &str| {
            let values = weights.optional_vector(&format!("blk.{index}.{part}"), shape.width)?;
            Ok(values.map(|values| backend.vector(values)))
        };
        Ok(Self {
            parts,
            query_norm: norm("attn_q_norm.weight")?,
            key_norm: norm("attn_k_norm.weight")?,
        })
    }
}

/// One rank of a loaded decoder, with its part of the arena and the buffers of one step.
pub struct Decoder<B: Vision> {
    backend: B,
    shape: Shape,
    heads: Heads,
    embedding: Linear<B>,
    /// Absent where the embedding serves as the output matrix too.
    head: Option<Linear<B>>,
    norm: B::Rows,
    layers: Vec<Layer<B>>,
    sighted: Option<Sighted<B>>,
    arena: B::Arena,
    buffers: Buffers<B>,
    /// The numbers of all rows, for norms that pick no others.
    all: Vec<usize>,
    tracer: Option<Tracer>,
    /// When the device was last asked for its memory.
    memory_told: Option<Instant>,
}

/// What a decoder has that looks at pictures.
struct Sighted<B: Vision> {
    layers: Vec<CrossLayer<B>>,
    /// Their numbers among all layers, ascending.
    numbers: Vec<usize>,
    tower: Tower<B>,
    facts: PictureFacts,
}

impl<B: Vision> Sighted<B> {
    fn load(
        weights: &mut dyn Weights,
        backend: &B,
        shape: &Shape,
        heads: Heads,
        sight: Sight,
    ) -> Result<Self, LoadError> {
        let numbers = sight.cross_layers.clone();
        let layers = numbers
            .iter()
            .map(|index| CrossLayer::load(weights, backend, shape, *index))
            .collect::<Result<_, _>>()?;
        let facts = picture_facts(&sight, shape);
        Ok(Self {
            layers,
            numbers,
            tower: Tower::load(weights, backend, sight, shape, heads)?,
            facts,
        })
    }
}

/// Everything that a step writes besides the arena.
struct Buffers<B: Backend> {
    hidden: B::Rows,
    normed: B::Input,
    query: B::Rows,
    key: B::Rows,
    value: B::Rows,
    attended: B::Input,
    gate: B::Rows,
    up: B::Rows,
    inner: B::Input,
    delta: B::Rows,
    rotation: Rotation,
    wanted: B::Input,
    logits: B::Rows,
}

impl<B: Vision> Decoder<B> {
    /// Reads and packs this rank's tensors and allocates arena and buffers.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or unreadable, or cannot be cut among the ranks.
    pub fn load(
        weights: &mut dyn Weights,
        backend: B,
        capacity: Capacity,
    ) -> Result<Self, LoadError> {
        Self::load_with(weights, backend, capacity, &mut |_| Ok(capacity.blocks))
    }

    /// The same, with as many blocks as `room` says when everything but the arena is on the device.
    ///
    /// # Errors
    /// As [`Decoder::load`], and what `room` says.
    pub fn load_with(
        weights: &mut dyn Weights,
        mut backend: B,
        capacity: Capacity,
        room: &mut dyn FnMut(&B) -> Result<usize, LoadError>,
    ) -> Result<Self, LoadError> {
        let shape = weights.shape()?;
        let (rank, ranks) = backend.place();
        if !shape.key_heads.is_multiple_of(ranks) || !shape.inner.is_multiple_of(ranks) {
            return Err(LoadError::Setup(format!(
                "failed to cut {} among {ranks} ranks: {} key heads and an inner size of {} are not so divided",
                weights.path().display(),
                shape.key_heads,
                shape.inner
            )));
        }
        let heads = Heads {
            queries: shape.heads / ranks,
            keys: shape.key_heads / ranks,
            width: shape.width,
            layers: shape.layers,
        };
        let (hidden, inner, vocabulary) = (shape.hidden, shape.inner / ranks, shape.vocabulary);
        let sighted = match weights.sight()? {
            Some(sight) => Some(Sighted::load(weights, &backend, &shape, heads, sight)?),
            None => None,
        };
        let numbers = sighted.as_ref().map_or(&[][..], |sighted| &sighted.numbers);
        let layers = (0..shape.layers + numbers.len())
            .filter(|index| !numbers.contains(index))
            .map(|index| Layer::load(weights, &backend, &shape, index))
            .collect::<Result<_, _>>()?;
        let size = (shape.inputs, hidden);
        let embedding = Linear::load(weights, &backend, "token_embd", size, Split::Whole)?;
        // Only the first rank tells the logits.
        let head = if rank == 0 && weights.has("output.weight") {
            let size = (vocabulary, hidden);
            let head = Linear::load(weights, &backend, "output", size, Split::Whole)?;
            Some(head)
        } else {
            None
        };
        let norm = backend.vector(weights.vector("output_norm.weight", hidden)?);
        let Capacity {
            rows, logits_rows, ..
        } = capacity;
        let logits_rows = if rank == 0 { logits_rows } else { 0 };
        let (queries, shared) = (heads.queries * heads.width, heads.keys * heads.width);
        let pairs = shape.frequencies.len();
        let buffers = Buffers {
            hidden: backend.rows(rows, hidden),
            normed: backend.input(rows, hidden),
            query: backend.rows(rows, queries),
            key: backend.rows(rows, shared),
            value: backend.rows(rows, shared),
            attended: backend.input(rows, queries),
            gate: backend.rows(rows, inner),
            up: backend.rows(rows, inner),
            inner: backend.input(rows, inner),
            delta: backend.rows(rows, hidden),
            rotation: Rotation {
                cosines: vec![0.0; rows * pairs],
                sines: vec![0.0; rows * pairs],
                pairs,
                neighbours: shape.neighbours,
            },
            wanted: backend.input(logits_rows, hidden),
            logits: backend.rows(logits_rows, vocabulary),
        };
        let settled = backend.settle();
        settled.map_err(|detail| {
            LoadError::Setup(format!(
                "failed to load {}: {detail}",
                weights.path().display()
            ))
        })?;
        let arena = backend.arena(room(&backend)?, heads);
        if let Some(fault) = backend.fault() {
            let path = weights.path().display();
            return Err(LoadError::Setup(format!("failed to load {path}: {fault}")));
        }
        Ok(Self {
            arena,
            backend,
            heads,
            embedding,
            head,
            norm,
            layers,
            sighted,
            buffers,
            all: (0..rows).collect(),
            tracer: None,
            memory_told: None,
            shape,
        })
    }

    /// Logits in a row.
    pub fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    /// Tokens that may be computed.
    pub fn inputs(&self) -> usize {
        self.shape.inputs
    }

    /// What pictures take, where they are looked at.
    pub fn pictures(&self) -> Option<PictureFacts> {
        self.sighted.as_ref().map(|sighted| sighted.facts)
    }

    /// Has every station told from now on.
    pub fn trace(&mut self, tracer: Option<Tracer>) {
        self.tracer = tracer;
    }

    /// Bytes that this rank's matrices take.
    pub fn weight_bytes(&self) -> usize {
        let layers = self.layers.iter().flat_map(|layer| layer.parts.linears());
        let linears = layers.chain([&self.embedding]).chain(&self.head);
        let bytes = |linear: &Linear<B>| self.backend.bytes(linear.matrix());
        let text: usize = linears.map(bytes).sum();
        let pictures = self.sighted.as_ref().map_or(0, |sighted| {
            let layers = sighted.layers.iter();
            let layers = layers.flat_map(|layer| layer.parts.linears());
            let linears = layers.chain(sighted.tower.linears());
            linears.map(bytes).sum::<usize>() + sighted.tower.table_bytes()
        });
        text + pictures
    }

    /// Goes on with a picture; true when its pages are complete.
    ///
    /// # Errors
    /// When the device failed.
    pub fn encode(&mut self, work: &Arc<Encoding>) -> Result<bool, Fault> {
        let Some(sighted) = &mut self.sighted else {
            return Ok(true);
        };
        let mut target = Target {
            layers: &sighted.layers,
            pages: sighted.facts.pages,
            heads: self.heads,
            epsilon: self.shape.epsilon,
            arena: &mut self.arena,
        };
        let (backend, tracer) = (&mut self.backend, &mut self.tracer);
        let complete = sighted.tower.advance(backend, work, &mut target, tracer);
        match self.backend.fault() {
            Some(fault) => Err(fault),
            None => Ok(complete),
        }
    }

    /// Runs a checked step. Logits come from the first rank; the others have none.
    ///
    /// # Errors
    /// When the device failed.
    pub fn forward(&mut self, plan: &StepPlan) -> Result<Logits<'_>, Fault> {
        let wanted = self.run(plan, &[]);
        let logits = self.backend.read(wanted, &self.buffers.logits)?;
        Ok(Logits::new(logits, self.shape.vocabulary))
    }

    /// Whether the device chooses tokens.
    pub fn chooses(&self) -> bool {
        self.backend.chooses()
    }

    /// Begins a checked step whose tokens the device chooses; those of `open` rows it has chosen in the step before.
    pub fn launch(&mut self, plan: &StepPlan, choices: &[Choice], open: &[OpenRow]) {
        self.run(plan, open);
        self.backend.choose(&mut self.buffers.logits, choices);
    }

    /// The tokens of the oldest step that was begun and not collected.
    ///
    /// # Errors
    /// When the device failed.
    pub fn collect(&mut self) -> Result<Vec<u32>, Fault> {
        self.backend.chosen()
    }

    /// What a step took and what memory there is, as the device tells.
    pub fn usage(&mut self) -> Usage {
        let told = self.memory_told;
        let due = told.is_none_or(|told| told.elapsed() >= MEMORY_TOLD);
        let memory = if due { self.backend.memory() } else { None };
        self.memory_told = if due { Some(Instant::now()) } else { told };
        Usage {
            spent: self.backend.spent(),
            memory,
        }
    }

    /// Asks for everything up to the logits; how many rows of them this rank has.
    fn run(&mut self, plan: &StepPlan, open: &[OpenRow]) -> usize {
        self.backend
            .copy_blocks(&mut self.arena, self.heads, &plan.copies);
        self.turn(plan);
        let picked = sighted_rows(plan);
        let wanted: Vec<usize> = plan.logits_rows().collect();
        let sighted = self.sighted.as_ref();
        let looks = sighted.map_or_else(Vec::new, |sighted| sighted.looks(plan));
        let step = Step {
            plan,
            rotation: &self.buffers.rotation,
            heads: self.heads,
            sighted: &picked,
            wanted: &wanted,
            looks: &looks,
            open,
            whole: self.tracer.is_none(),
        };
        if !self.backend.begin(&step) {
            self.compute(plan, &picked, &wanted, &looks);
            self.backend.end();
        }
        if self.backend.place().0 == 0 {
            wanted.len()
        } else {
            0
        }
    }

    /// All layers, and the logits of the wanted rows.
    fn compute(
        &mut self,
        plan: &StepPlan,
        picked: &[usize],
        wanted: &[usize],
        looks: &[(usize, Vec<Look>)],
    ) {
        let (table, hidden) = (self.embedding.matrix(), &mut self.buffers.hidden);
        self.backend.embed(table, &plan.tokens, hidden);
        let numbers = self
            .sighted
            .as_ref()
            .map_or(&[][..], |sighted| &sighted.numbers);
        let numbers = numbers.to_vec();
        let (mut text, mut pictures) = (0, 0);
        let layers = self.layers.len() + numbers.len();
        while text < self.layers.len() || pictures < numbers.len() {
            if numbers.get(pictures) == Some(&(text + pictures)) {
                if !picked.is_empty() {
                    self.look(picked, pictures, &looks[pictures]);
                }
                pictures += 1;
            } else {
                // After the last keys and values only what logits are made of is of use, but to a tracer.
                let picks = text + pictures + 1 == layers
                    && wanted.len() < plan.tokens.len()
                    && self.tracer.is_none();
                let only = picks.then_some(wanted);
                self.attend(plan, text, only);
                self.feed_forward(plan, text, only);
                text += 1;
            }
            if let Some(tracer) = &mut self.tracer {
                let rows = plan.tokens.len();
                if let Ok(hidden) = self.backend.read(rows, &self.buffers.hidden) {
                    tracer(Station::Layer(text + pictures - 1), 0, hidden);
                }
            }
        }
        self.project(wanted);
    }

    /// Computes the rotation of each row.
    fn turn(&mut self, plan: &StepPlan) {
        let (shape, buffers) = (&self.shape, &mut self.buffers);
        let Rotation {
            cosines,
            sines,
            pairs,
            ..
        } = &mut buffers.rotation;
        for (row, position) in plan.positions.iter().enumerate() {
            for (index, frequency) in shape.frequencies.iter().enumerate() {
                let (cosine, sine) = rope::turned(*position, *frequency);
                cosines[row * *pairs + index] = cosine * shape.rotation_scale;
                sines[row * *pairs + index] = sine * shape.rotation_scale;
            }
        }
    }

    /// `hidden += output(attention(norm(hidden)))`, and the rows' keys and values go into the arena; then the norm for
    /// [`Self::feed_forward`], of all rows or `only` these.
    fn attend(&mut self, plan: &StepPlan, index: usize, only: Option<&[usize]>) {
        let Self {
            shape,
            backend,
            heads,
            layers,
            arena,
            buffers,
            all,
            ..
        } = self;
        let (rows, layer) = (plan.tokens.len(), &layers[index]);
        let Parts {
            attention_norm,
            query,
            key,
            value,
            output,
            feed_forward_norm,
            gate,
            up,
            ..
        } = &layer.parts;
        backend.norm(
            &buffers.hidden,
            &all[..rows],
            (attention_norm, shape.epsilon),
            &[query.matrix(), key.matrix(), value.matrix()],
            &mut buffers.normed,
        );
        let layers = vec![
            (query, &mut buffers.query),
            (key, &mut buffers.key),
            (value, &mut buffers.value),
        ];
        multiply(backend, &buffers.normed, rows, layers);
        let norms = HeadNorms {
            query: layer.query_norm.as_ref(),
            key: layer.key_norm.as_ref(),
            epsilon: shape.epsilon,
        };
        backend.store(
            plan,
            *heads,
            index,
            &norms,
            &buffers.rotation,
            &mut buffers.query,
            &mut buffers.key,
            &buffers.value,
            arena,
        );
        if only.is_some_and(<[usize]>::is_empty) {
            return;
        }
        backend.attend(
            plan,
            *heads,
            index,
            &buffers.query,
            arena,
            output.matrix(),
            &mut buffers.attended,
        );
        let output = vec![(output, &mut buffers.delta)];
        multiply(backend, &buffers.attended, rows, output);
        let norm = (feed_forward_norm, shape.epsilon);
        let feeds = [gate.matrix(), up.matrix()];
        let (hidden, delta) = (&mut buffers.hidden, &buffers.delta);
        if let Some(only) = only {
            backend.add(rows, hidden, delta);
            backend.norm(hidden, only, norm, &feeds, &mut buffers.normed);
        } else {
            let all = &all[..rows];
            backend.add_and_norm(all, (hidden, delta), norm, &feeds, &mut buffers.normed);
        }
    }

    /// `hidden += down(silu(gate(normed)) * up(normed))`, in all rows or `only` these.
    fn feed_forward(&mut self, plan: &StepPlan, index: usize, only: Option<&[usize]>) {
        let rows = only.map_or(plan.tokens.len(), <[usize]>::len);
        if rows == 0 {
            return;
        }
        let (backend, buffers) = (&mut self.backend, &mut self.buffers);
        let parts = &self.layers[index].parts;
        parts.feed_forward(backend, rows, buffers);
        let (hidden, delta) = (&mut buffers.hidden, &buffers.delta);
        match only {
            Some(only) => backend.add_scaled(only, 1.0, hidden, delta),
            None => backend.add(rows, hidden, delta),
        }
    }

    /// Logits of the wanted rows.
    fn project(&mut self, wanted: &[usize]) {
        let (backend, buffers) = (&mut self.backend, &mut self.buffers);
        if wanted.is_empty() || backend.place().0 > 0 {
            return;
        }
        let head = self.head.as_ref().unwrap_or(&self.embedding);
        backend.norm(
            &buffers.hidden,
            wanted,
            (&self.norm, self.shape.epsilon),
            &[head.matrix()],
            &mut buffers.wanted,
        );
        let logits = vec![(head, &mut buffers.logits)];
        multiply(backend, &buffers.wanted, wanted.len(), logits);
    }
}
