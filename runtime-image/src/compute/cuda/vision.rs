//! What models that look at pictures ask of the card besides.

use super::card::Buffer;
use super::launches::{self, MOST_SAVED, Norm};
use super::told::{Told, told_looks};
use super::{Cuda, Input, Looks, Matrix, Rows, pitch};
use crate::compute::backend::Heads;
use crate::compute::cuda::card::CardError;
use crate::compute::vision::{LayerNorm, Look, Step, Vision};

impl Cuda {
    /// Brings what rows see under a number to the card, where it is not there yet.
    fn tell_looks(&mut self, number: usize, looks: &[Look], heads: Heads) {
        let (words, attended) = told_looks(looks, heads, self.attending(heads.width));
        while self.looks.len() <= number {
            self.looks.push(Looks {
                buffer: Buffer::none(&self.card),
                words: Vec::new(),
                attended: told_looks(&[], heads, self.attending(heads.width)).1,
            });
        }
        if self.looks[number].words == words {
            return;
        }
        let mut buffer =
            std::mem::replace(&mut self.looks[number].buffer, Buffer::none(&self.card));
        if self.write(&words, &mut buffer) {
            self.graphs.clear();
        }
        self.looks[number] = Looks {
            buffer,
            // What did not come is brought again.
            words: if self.sound() { words } else { Vec::new() },
            attended,
        };
    }

    /// An input's first row, from floats of the host.
    fn upload(&self, values: &[f32], to: &Rows, first: usize) {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        if self.sound() && !bytes.is_empty() {
            self.note(self.card.upload(&bytes, to.row(first)));
        }
    }
}

impl Vision for Cuda {
    fn begin(&mut self, step: &Step<'_>) -> bool {
        for (number, looks) in step.looks {
            self.tell_looks(*number, looks, step.heads);
        }
        let attending = self.attending(step.heads.width);
        let picked = (step.sighted, step.wanted, step.open);
        let told = Told::step(step.plan, step.rotation, picked, step.heads, attending);
        let mut buffer = std::mem::replace(&mut self.step, Buffer::none(&self.card));
        if self.write(&told.words, &mut buffer) {
            self.graphs.clear();
        }
        self.step = buffer;
        self.told = told;
        self.take_open();
        let measured = step.whole && self.begin_measuring();
        !measured && self.begin_graph(step)
    }

    fn end(&mut self) {
        self.end_graph();
    }

    fn put(&mut self, values: &[f32], first: usize, out: &mut Rows) {
        self.upload(values, out, first);
    }

    fn put_input(&mut self, values: &[f32], rows: usize, _: &Matrix, out: &mut Input) {
        let x = self.buffer(Buffer::new(&self.card, values.len() * 4));
        let x = Rows {
            buffer: x,
            width: out.width,
        };
        self.upload(values, &x, 0);
        self.launch(&launches::feed(x.row(0), rows, self.target(out)));
        // The room is given back when the card has read it.
        if self.sound() {
            self.note(self.card.synchronise());
        }
    }

    fn feed(&mut self, rows: usize, x: &Rows, _: &[&Matrix], out: &mut Input) {
        self.launch(&launches::feed(x.row(0), rows, self.target(out)));
    }

    fn copy(&mut self, x: &Rows, from: usize, rows: usize, to: usize, out: &mut Rows) {
        if self.sound() {
            let bytes = rows * x.width * 4;
            self.note(self.card.copy(x.row(from), out.row(to), bytes));
        }
    }

    fn layer_norm(
        &mut self,
        x: &Rows,
        first: usize,
        rows: usize,
        (weight, bias, epsilon): LayerNorm<'_, Self>,
        _: &[&Matrix],
        out: &mut Input,
    ) {
        let norm = Norm::Mean {
            bias: bias.row(0),
            out: self.target(out),
        };
        let by = (weight.row(0), epsilon);
        self.launch(&launches::norm(x.row(first), rows, by, norm));
    }

    fn layer_norm_in_place(
        &mut self,
        x: &mut Rows,
        first: usize,
        rows: usize,
        (weight, bias, epsilon): LayerNorm<'_, Self>,
    ) {
        let norm = Norm::MeanInPlace {
            bias: bias.row(0),
            width: x.width,
        };
        let by = (weight.row(0), epsilon);
        self.launch(&launches::norm(x.row(first), rows, by, norm));
    }

    fn norm_heads(&mut self, rows: usize, x: &mut Rows, (weight, epsilon): (&Rows, f32)) {
        self.launch(&launches::norm_heads(
            x.row(0),
            rows,
            (weight.row(0), epsilon),
            (x.width / weight.width, weight.width),
        ));
    }

    fn gelu(&mut self, rows: usize, x: &Rows, _: &Matrix, out: &mut Input) {
        self.launch(&launches::gelu(x.row(0), rows, self.target(out)));
    }

    fn look(
        &mut self,
        heads: Heads,
        number: usize,
        _: &[Look],
        query: &Rows,
        arena: &Buffer,
        _: &Matrix,
        out: &mut Input,
    ) {
        let Some(looks) = self.looks.get(number) else {
            let detail = "looks were asked for that nobody told of".to_owned();
            self.note::<()>(Err(CardError::Failed(detail)));
            return;
        };
        let attention = launches::Attention {
            query: query.row(0),
            arena: (arena.address(), self.settings.floats.arena()),
            heads,
            layer: 0,
            out: self.target(out),
        };
        self.attend_to(&attention, (looks.buffer.address(), &looks.attended));
    }

    fn add_scaled(&mut self, picked: &[usize], scale: f32, sum: &mut Rows, x: &Rows) {
        self.launch(&launches::add_scaled(
            self.picked(picked),
            scale,
            (sum.row(0), x.row(0)),
            picked.len(),
            sum.width,
        ));
    }

    fn interleave(
        &mut self,
        first: usize,
        rows: usize,
        last: &Rows,
        saved: &[Rows],
        _: &Matrix,
        out: &mut Input,
    ) {
        if saved.len() > MOST_SAVED {
            let detail = format!(
                "{} states are joined, at most {MOST_SAVED} can be",
                saved.len()
            );
            self.note::<()>(Err(CardError::Failed(detail)));
            return;
        }
        let saved: Vec<_> = saved.iter().map(|state| state.row(first)).collect();
        self.launch(&launches::interleave(
            last.row(first),
            &saved,
            rows,
            last.width,
            self.target(out),
        ));
    }

    fn read_input<'a>(&'a mut self, rows: usize, x: &'a Input) -> &'a [f32] {
        let (kind, pitch) = (self.input_kind(), pitch(x.width));
        let padded = self.read_bytes(x.buffer.address(), rows * pitch, kind);
        let rows = padded.chunks_exact(pitch);
        self.host = rows.flat_map(|row| &row[..x.width]).copied().collect();
        &self.host
    }
}
