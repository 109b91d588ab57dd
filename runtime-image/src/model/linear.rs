//! A linear layer, whatever its weights look like: their format, a bias, and which shard of them this rank holds.

use crate::compute::backend::{Backend, Product};
use crate::weights::{LoadError, Weights};

/// How a layer's weights are cut among the ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// Each rank has the whole.
    Whole,
    /// Each rank gives some of the outputs, from all inputs.
    Outputs,
    /// Each rank takes some of the inputs; the outputs are the sum over all ranks.
    Inputs,
}

/// The weights of one layer, or a shard of them.
pub struct Linear<B: Backend> {
    matrix: B::Matrix,
    bias: Option<B::Rows>,
    sums: bool,
}

impl<B: Backend> Linear<B> {
    /// Reads `name.weight` of `rows` outputs and `columns` inputs, and `name.bias` where there is one.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or unreadable, or cannot be cut so.
    pub fn load(
        weights: &mut dyn Weights,
        backend: &B,
        name: &str,
        (rows, columns): (usize, usize),
        split: Split,
    ) -> Result<Self, LoadError> {
        let (rank, ranks) = backend.place();
        let (tensor_name, bias_name) = (format!("{name}.weight"), format!("{name}.bias"));
        let path = weights.path().to_owned();
        let failed = |detail: String| LoadError::Tensor {
            path: path.clone(),
            tensor: tensor_name.clone(),
            detail,
        };
        let source = weights.source(&tensor_name, rows, columns)?;
        let streamed = match source.filter(|_| ranks == 1) {
            Some(source) => backend.stream(&source).map_err(failed)?,
            None => None,
        };
        let matrix = if let Some(matrix) = streamed {
            matrix
        } else {
            let tensor = weights.tensor(&tensor_name, rows, columns)?;
            let tensor = match split {
                Split::Whole => Ok(tensor),
                Split::Outputs => tensor.rows_part(rank, ranks),
                Split::Inputs => tensor.columns_part(rank, ranks),
            };
            tensor
                .and_then(|tensor| backend.matrix(&tensor))
                .map_err(failed)?
        };
        let bias = weights.optional_vector(&bias_name, rows)?;
        let bias = bias.map(|bias| match split {
            Split::Whole | Split::Inputs => bias,
            Split::Outputs => {
                let part = rows / ranks;
                bias[rank * part..][..part].to_vec()
            }
        });
        Ok(Self {
            matrix,
            bias: bias.map(|bias| backend.vector(bias)),
            sums: split == Split::Inputs && ranks > 1,
        })
    }

    /// What inputs must be prepared for.
    pub fn matrix(&self) -> &B::Matrix {
        &self.matrix
    }

    /// Whether a product with the matrix is all there is to do.
    fn is_plain(&self) -> bool {
        self.bias.is_none() && !self.sums
    }
}

/// Puts the first `rows` rows of `input` through several layers at once.
pub fn multiply<B: Backend>(
    backend: &mut B,
    input: &B::Input,
    rows: usize,
    mut layers: Vec<(&Linear<B>, &mut B::Rows)>,
) {
    let mut products: Vec<Product<'_, B>> = layers
        .iter_mut()
        .map(|(layer, out)| Product {
            matrix: &layer.matrix,
            out: &mut **out,
        })
        .collect();
    backend.multiply(input, rows, &mut products);
    for (layer, out) in layers {
        if layer.sums {
            backend.all_reduce(rows, out);
        }
        if let Some(bias) = &layer.bias {
            backend.add_to_each(rows, out, bias);
        }
    }
}

/// `silu(gate(input)) * up(input)` of the first `rows` rows, for a product with `feeds`.
pub fn gated<B: Backend>(
    backend: &mut B,
    (input, rows): (&B::Input, usize),
    gate: (&Linear<B>, &mut B::Rows),
    up: (&Linear<B>, &mut B::Rows),
    feeds: &Linear<B>,
    out: &mut B::Input,
) {
    let plain = [gate.0, up.0].iter().all(|layer| layer.is_plain());
    if plain && backend.gated(input, rows, [gate.0.matrix(), up.0.matrix()], out) {
        return;
    }
    let layers = vec![(gate.0, &mut *gate.1), (up.0, &mut *up.1)];
    multiply(backend, input, rows, layers);
    backend.gate(rows, gate.1, up.1, feeds.matrix(), out);
}
