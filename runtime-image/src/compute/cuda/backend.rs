//! What every model asks of the card.

use std::sync::Arc;

use super::card::{ALIGNMENT, Address, Buffer, CardError, Gemm, Number};
use super::launches::{
    self, Factor, Kind, MOST_BLOCKS, MOST_FACTORS, Norm, Stored, THIN_ROWS, check_heads,
};
use super::matrix::{kind_of, pack};
use super::measuring::Part;
use super::streaming::{Streaming, Way};
use super::{Cuda, Input, Matrix, Rows, input_bytes};
use crate::compute::backend::{Backend, Fault, HeadNorms, Heads, Product, Rotation, Spent};
use crate::compute::tensor::{Source, Tensor};
use crate::step::{BlockCopy, Choice, StepPlan};

impl Backend for Cuda {
    type Matrix = Matrix;
    type Rows = Rows;
    type Input = Input;
    type Arena = Buffer;

    fn matrix(&self, tensor: &Tensor) -> Result<Matrix, String> {
        let packed = pack(tensor, self.settings.floats);
        let upload = |bytes: &[u8]| {
            let buffer = Buffer::of(&self.card, bytes);
            buffer.map(Arc::new).map_err(|error| error.to_string())
        };
        Ok(Matrix {
            kind: packed.kind,
            outputs: tensor.rows(),
            columns: packed.columns,
            weights: upload(&packed.weights)?,
            scales: upload(&packed.scales)?,
        })
    }

    fn bytes(&self, matrix: &Matrix) -> usize {
        matrix.weights.bytes() + matrix.scales.bytes()
    }

    fn vector(&self, values: Vec<f32>) -> Rows {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        Rows {
            buffer: self.buffer(Buffer::of(&self.card, &bytes)),
            width: values.len(),
        }
    }

    fn rows(&self, rows: usize, width: usize) -> Rows {
        Rows {
            buffer: self.buffer(Buffer::zeroed(&self.card, rows * width * 4)),
            width,
        }
    }

    fn input(&self, rows: usize, width: usize) -> Input {
        let bytes = input_bytes(rows, width, self.input_kind());
        Input {
            buffer: self.buffer(Buffer::zeroed(&self.card, bytes)),
            width,
        }
    }

    fn arena(&self, blocks: usize, heads: Heads) -> Buffer {
        self.note(check_heads(heads).map_err(CardError::Failed));
        let bytes = blocks * heads.block() * self.settings.floats.arena().bytes();
        self.buffer(Buffer::zeroed(&self.card, bytes))
    }

    fn copy_blocks(&mut self, arena: &mut Buffer, heads: Heads, copies: &[BlockCopy]) {
        let bytes = heads.block() * self.settings.floats.arena().bytes();
        for copy in copies {
            let at = |block: u32| arena.address().after(block as usize * bytes);
            if self.sound() {
                self.note(self.card.copy(at(copy.from), at(copy.to), bytes));
            }
        }
    }

    fn embed(&mut self, table: &Matrix, tokens: &[u32], out: &mut Rows) {
        let factor = table.factor(out.row(0));
        self.launch(&launches::embed(
            (factor, table.kind, table.columns),
            self.word(self.told.tokens),
            tokens.len(),
            (out.row(0), out.width),
        ));
    }

    fn norm(
        &mut self,
        x: &Rows,
        picked: &[usize],
        (weight, epsilon): (&Rows, f32),
        _: &[&Matrix],
        out: &mut Input,
    ) {
        let target = self.target(out);
        let norm = Norm::Squares {
            picked: self.picked(picked),
            out: target,
        };
        let by = (weight.row(0), epsilon);
        self.launch(&launches::norm(x.row(0), picked.len(), by, norm));
    }

    fn multiply(&mut self, input: &Input, rows: usize, products: &mut [Product<'_, Self>]) {
        let mut rest: &[Product<'_, Self>] = products;
        while let Some(first) = rest.first() {
            let kind = first.matrix.kind;
            let few = self.few(kind, rows);
            let same = |product: &&Product<'_, Self>| few && product.matrix.kind == kind;
            let count = rest.iter().take(MOST_FACTORS).take_while(same).count();
            let (together, others) = rest.split_at(count.max(1));
            if few {
                let factors: Vec<Factor> = together
                    .iter()
                    .map(|product| product.matrix.factor(product.out.row(0)))
                    .collect();
                let (input, columns) = (input.buffer.address(), first.matrix.columns);
                self.launch(&launches::thin(kind, &factors, input, columns, rows));
            } else {
                self.large(input, rows, first);
            }
            rest = others;
        }
    }

    fn add_to_each(&mut self, rows: usize, sum: &mut Rows, x: &Rows) {
        self.launch(&launches::add_to_each(
            sum.row(0),
            x.row(0),
            rows,
            sum.width,
        ));
    }

    fn store(
        &mut self,
        plan: &StepPlan,
        heads: Heads,
        layer: usize,
        norms: &HeadNorms<'_, Self>,
        rotation: &Rotation,
        query: &mut Rows,
        key: &mut Rows,
        value: &Rows,
        arena: &mut Buffer,
    ) {
        let weights = |norm: Option<&Rows>| norm.map_or_else(Default::default, |norm| norm.row(0));
        let stored = Stored {
            query: query.row(0),
            key: key.row(0),
            value: value.row(0),
            norms: (weights(norms.query), weights(norms.key), norms.epsilon),
            rotation: (
                self.word(self.told.cosines),
                self.word(self.told.sines),
                rotation.pairs,
                rotation.neighbours,
            ),
            places: self.word(self.told.places),
            arena: (arena.address(), self.settings.floats.arena()),
        };
        self.launch(&launches::store(&stored, plan.tokens.len(), heads, layer));
    }

    fn attend(
        &mut self,
        _: &StepPlan,
        heads: Heads,
        layer: usize,
        query: &Rows,
        arena: &Buffer,
        _: &Matrix,
        out: &mut Input,
    ) {
        let attention = launches::Attention {
            query: query.row(0),
            arena: (arena.address(), self.settings.floats.arena()),
            heads,
            layer,
            out: self.target(out),
        };
        self.attend_to(&attention, (self.word(0), &self.told.attended));
    }

    fn gate(&mut self, rows: usize, gate: &Rows, up: &Rows, _: &Matrix, out: &mut Input) {
        let target = self.target(out);
        self.launch(&launches::silu_times(gate.row(0), up.row(0), rows, target));
    }

    fn gated(&mut self, input: &Input, rows: usize, of: [&Matrix; 2], out: &mut Input) -> bool {
        let [gate, up] = of;
        let same = (gate.kind, gate.outputs) == (up.kind, up.outputs);
        if !same || gate.outputs != out.width || !self.few(gate.kind, rows) {
            return false;
        }
        let nowhere = Address::default();
        let factors = of.map(|matrix| matrix.factor(nowhere));
        let (at, columns) = (input.buffer.address(), gate.columns);
        let target = self.target(out);
        let launch = launches::gated(gate.kind, factors, (at, columns), rows, target);
        if let Some(launch) = &launch {
            self.launch(launch);
        }
        launch.is_some()
    }

    fn add_and_norm(
        &mut self,
        all: &[usize],
        (sum, x): (&mut Rows, &Rows),
        (weight, epsilon): (&Rows, f32),
        _: &[&Matrix],
        out: &mut Input,
    ) {
        let (by, target) = ((weight.row(0), epsilon), self.target(out));
        let (sum, x) = (sum.row(0), x.row(0));
        self.launch(&launches::add_and_norm(sum, x, all.len(), by, target));
    }

    fn add(&mut self, rows: usize, sum: &mut Rows, x: &Rows) {
        self.launch(&launches::add(sum.row(0), x.row(0), rows * sum.width));
    }

    /// A card is the whole model's.
    fn all_reduce(&mut self, _: usize, _: &mut Rows) {}

    fn settle(&mut self) -> Result<(), String> {
        if let Some(streaming) = self.streaming.take() {
            streaming.finish()?;
        }
        self.card.synchronise().map_err(|error| error.to_string())
    }

    fn stream(&self, source: &Source) -> Result<Option<Matrix>, String> {
        let (columns, floats) = (source.columns, self.settings.floats);
        let Some(way) = Way::of(source, floats) else {
            return Ok(None);
        };
        let mut streaming = self.streaming.borrow_mut();
        let streaming = match &mut *streaming {
            Some(streaming) => streaming,
            none => none.insert(Streaming::start(&self.card)?),
        };
        let room = |bytes| {
            let buffer = Buffer::new(&self.card, bytes);
            buffer.map(Arc::new).map_err(|error| error.to_string())
        };
        let (weights, scales) = way.room(columns, source.bytes);
        let matrix = Matrix {
            kind: kind_of(source.kind, columns, floats),
            outputs: source.rows,
            columns,
            weights: room(weights)?,
            scales: room(scales)?,
        };
        let to = matrix.factor(Address::default());
        let room = [&matrix.weights, &matrix.scales].map(Arc::clone);
        streaming.bring(source, way, to, &room);
        Ok(Some(matrix))
    }

    fn chooses(&self) -> bool {
        true
    }

    fn choose(&mut self, logits: &mut Rows, choices: &[Choice]) {
        self.choose_tokens(logits, choices);
        self.end_measuring();
    }

    fn chosen(&mut self) -> Result<Vec<u32>, Fault> {
        let tokens = self.wait_for_tokens();
        match self.fault() {
            Some(fault) => Err(fault),
            None => {
                self.sum_up();
                Ok(tokens)
            }
        }
    }

    fn spent(&mut self) -> Option<Spent> {
        self.take_spent()
    }

    fn memory(&self) -> Option<(u64, u64)> {
        let memory = self.card.memory().ok()?;
        Some((memory.free as u64, memory.total as u64))
    }

    fn place(&self) -> (usize, usize) {
        (0, 1)
    }

    fn read<'a>(&'a mut self, rows: usize, x: &'a Rows) -> Result<&'a [f32], Fault> {
        self.end_measuring();
        self.host = self.read_bytes(x.row(0), rows * x.width, Kind::F32);
        if let Some(fault) = self.fault() {
            return Err(fault);
        }
        self.sum_up();
        Ok(&self.host)
    }

    fn fault(&mut self) -> Option<Fault> {
        let error = self.fault.borrow().clone()?;
        // Without recording the card may do what it did not do with it.
        let recording = self.graphs.failed;
        let goes_on = match &error {
            CardError::Memory { .. } => true,
            CardError::Failed(_) => recording,
            CardError::Host { .. } | CardError::Lost(_) => false,
        };
        if !goes_on {
            return Some(Fault::Lost(error.to_string()));
        }
        self.forget_steps();
        if let Err(worse) = self.card.synchronise() {
            let told = Fault::Lost(worse.to_string());
            self.note::<()>(Err(worse));
            return Some(told);
        }
        if recording {
            tracing::warn!(%error, "failed to record or to repeat a step; steps are launched one by one from now on");
            self.graphs.give_up();
            return Some(Fault::Again(error.to_string()));
        }
        Some(Fault::Memory(error.to_string()))
    }
}

impl Cuda {
    /// Whether a product is one for the kernels of few rows.
    fn few(&self, kind: Kind, rows: usize) -> bool {
        let halves = matches!(kind, Kind::Bf16 | Kind::F16);
        rows <= THIN_ROWS || (self.settings.invariant && !halves)
    }

    /// A product of many rows.
    fn large(&self, input: &Input, rows: usize, product: &Product<'_, Self>) {
        let (matrix, out) = (product.matrix, product.out.row(0));
        let (factor, columns) = (matrix.factor(out), matrix.columns);
        let at = input.buffer.address();
        if !self.settings.invariant && self.by_library(at, rows, product) {
            return;
        }
        self.launch(&match matrix.kind {
            Kind::Bf16 | Kind::F16 => launches::same_bits(matrix.kind, factor, at, columns, rows),
            kind => launches::thin(kind, &[factor], at, columns, rows),
        });
    }

    /// The same as the card's own large products; false where it has none for it.
    fn by_library(&self, input: Address, rows: usize, product: &Product<'_, Self>) -> bool {
        let (matrix, out) = (product.matrix, product.out.row(0));
        let (factor, columns) = (matrix.factor(out), matrix.columns);
        let mut gemm = Gemm {
            number: match matrix.kind {
                Kind::F32 => Number::F32,
                Kind::F16 => Number::F16,
                _ => Number::Bf16,
            },
            rows,
            outputs: matrix.outputs,
            inputs: columns,
            input,
            matrix: factor.weights,
            out,
            stride: product.out.width,
        };
        if matches!(matrix.kind, Kind::F32 | Kind::F16 | Kind::Bf16) {
            return self.gemm(&gemm);
        }
        // A part of the outputs at a time, as floats; so many that each part begins where the card's products may.
        let most = (self.settings.scratch / (2 * columns)).min(MOST_BLOCKS);
        let together = most - most % (ALIGNMENT / 4);
        gemm.matrix = self.widened.address();
        let part = |first: usize| {
            gemm.outputs = together.min(matrix.outputs - first);
            gemm.out = out.after(first * 4);
            let part = (factor, matrix.kind, columns);
            let widened = launches::dequantise(part, first, gemm.outputs, gemm.matrix);
            self.launch(&widened);
            self.gemm(&gemm)
        };
        together > 0 && (0..matrix.outputs).step_by(together).all(part)
    }

    /// Forgets the fault and everything that was under way.
    fn forget_steps(&mut self) {
        self.fault.replace(None);
        self.graphs.clear();
        self.forget_measured();
        if let Some(choosing) = &mut self.choosing {
            choosing.clear();
        }
    }

    fn gemm(&self, gemm: &Gemm) -> bool {
        if !self.sound() {
            return true;
        }
        self.measure(Part::Products);
        self.note(self.card.gemm(gemm)).unwrap_or(true)
    }
}
