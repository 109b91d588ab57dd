//! A device that computes nothing and counts the bytes that a model allocates on it, as this processor packs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chandler_runtime::compute::activation::Activation;
use chandler_runtime::compute::backend::{Backend, Fault, HeadNorms, Heads, Product, Rotation};
use chandler_runtime::compute::matrix::{Float, Matrix};
use chandler_runtime::compute::tensor::Tensor;
use chandler_runtime::compute::vision::{LayerNorm, Look, Vision};
use chandler_runtime::step::{BlockCopy, StepPlan};

/// Counts; its copies count together.
#[derive(Clone, Default)]
pub(super) struct Counter(Arc<Counts>);

#[derive(Default)]
struct Counts {
    matrices: AtomicU64,
    vectors: AtomicU64,
    buffers: AtomicU64,
    arena: AtomicU64,
}

impl Counter {
    pub(super) fn matrices(&self) -> u64 {
        self.0.matrices.load(Ordering::Relaxed)
    }

    pub(super) fn vectors(&self) -> u64 {
        self.0.vectors.load(Ordering::Relaxed)
    }

    /// Those of a picture under way included.
    pub(super) fn buffers(&self) -> u64 {
        self.0.buffers.load(Ordering::Relaxed)
    }

    pub(super) fn arena(&self) -> u64 {
        self.0.arena.load(Ordering::Relaxed)
    }
}

fn add(to: &AtomicU64, bytes: usize) {
    to.fetch_add(bytes as u64, Ordering::Relaxed);
}

impl Backend for Counter {
    /// Bytes.
    type Matrix = usize;
    type Rows = ();
    type Input = ();
    type Arena = ();

    fn matrix(&self, tensor: &Tensor) -> Result<usize, String> {
        let bytes = Matrix::float_bytes(tensor.rows(), tensor.columns(), Float::Bf16);
        add(&self.0.matrices, bytes);
        Ok(bytes)
    }

    fn bytes(&self, matrix: &usize) -> usize {
        *matrix
    }

    fn vector(&self, values: Vec<f32>) {
        add(&self.0.vectors, values.len() * 4);
    }

    fn rows(&self, rows: usize, width: usize) {
        add(&self.0.buffers, rows * width * 4);
    }

    fn input(&self, rows: usize, width: usize) {
        add(&self.0.buffers, Activation::bytes(rows, width));
    }

    fn arena(&self, blocks: usize, heads: Heads) {
        // The tower has one of a single layer for the picture under way.
        let to = if heads.layers == 1 {
            &self.0.buffers
        } else {
            &self.0.arena
        };
        add(to, blocks * heads.block() * 4);
    }

    fn place(&self) -> (usize, usize) {
        (0, 1)
    }

    fn copy_blocks(&mut self, (): &mut (), _: Heads, _: &[BlockCopy]) {
        unreachable!("nothing is computed");
    }

    fn embed(&mut self, _: &usize, _: &[u32], (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn norm(&mut self, (): &(), _: &[usize], _: (&(), f32), _: &[&usize], (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn multiply(&mut self, (): &(), _: usize, _: &mut [Product<'_, Self>]) {
        unreachable!("nothing is computed");
    }

    fn add_to_each(&mut self, _: usize, (): &mut (), (): &()) {
        unreachable!("nothing is computed");
    }

    fn store(
        &mut self,
        _: &StepPlan,
        _: Heads,
        _: usize,
        _: &HeadNorms<'_, Self>,
        _: &Rotation,
        (): &mut (),
        (): &mut (),
        (): &(),
        (): &mut (),
    ) {
        unreachable!("nothing is computed");
    }

    fn attend(
        &mut self,
        _: &StepPlan,
        _: Heads,
        _: usize,
        (): &(),
        (): &(),
        _: &usize,
        (): &mut (),
    ) {
        unreachable!("nothing is computed");
    }

    fn gate(&mut self, _: usize, (): &(), (): &(), _: &usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn add(&mut self, _: usize, (): &mut (), (): &()) {
        unreachable!("nothing is computed");
    }

    fn all_reduce(&mut self, _: usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn read<'a>(&'a mut self, _: usize, (): &'a ()) -> Result<&'a [f32], Fault> {
        unreachable!("nothing is computed");
    }
}

impl Vision for Counter {
    fn put(&mut self, _: &[f32], _: usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn put_input(&mut self, _: &[f32], _: usize, _: &usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn feed(&mut self, _: usize, (): &(), _: &[&usize], (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn copy(&mut self, (): &(), _: usize, _: usize, _: usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn layer_norm(
        &mut self,
        (): &(),
        _: usize,
        _: usize,
        _: LayerNorm<'_, Self>,
        _: &[&usize],
        (): &mut (),
    ) {
        unreachable!("nothing is computed");
    }

    fn layer_norm_in_place(&mut self, (): &mut (), _: usize, _: usize, _: LayerNorm<'_, Self>) {
        unreachable!("nothing is computed");
    }

    fn norm_heads(&mut self, _: usize, (): &mut (), _: (&(), f32)) {
        unreachable!("nothing is computed");
    }

    fn gelu(&mut self, _: usize, (): &(), _: &usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn look(&mut self, _: Heads, _: usize, _: &[Look], (): &(), (): &(), _: &usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn add_scaled(&mut self, _: &[usize], _: f32, (): &mut (), (): &()) {
        unreachable!("nothing is computed");
    }

    fn interleave(&mut self, _: usize, _: usize, (): &(), _: &[()], _: &usize, (): &mut ()) {
        unreachable!("nothing is computed");
    }

    fn read_input<'a>(&'a mut self, _: usize, (): &'a ()) -> &'a [f32] {
        unreachable!("nothing is computed");
    }
}
