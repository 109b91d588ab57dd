//! The Llama architecture (Llama 2, 3.x and their descendants): grouped-query attention, rotary positions, gated SiLU.

use super::{BLOCK_TOKENS, Capacity, Logits, Model, Setup, StepError, StepPlan, check};
use crate::compute::activation::Activation;
use crate::compute::matmul::{Product, multiply};
use crate::compute::matrix::Matrix;
use crate::compute::pool::{Pool, Shares};
use crate::compute::{Instructions, attention, elementwise};
use crate::weights::{LlamaShape, LoadError, Weights};

struct Layer {
    attention_norm: Vec<f32>,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    query_bias: Option<Vec<f32>>,
    key_bias: Option<Vec<f32>>,
    value_bias: Option<Vec<f32>>,
    feed_forward_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

fn any_quantized(matrices: &[&Matrix]) -> bool {
    matrices.iter().any(|matrix| matrix.is_quantized())
}

/// A loaded Llama model with its cache and the buffers of one step.
pub struct Llama {
    shape: LlamaShape,
    capacity: Capacity,
    instructions: Instructions,
    pool: Pool,
    embedding: Matrix,
    /// Absent where the embedding serves as the output matrix too.
    head: Option<Matrix>,
    norm: Vec<f32>,
    layers: Vec<Layer>,
    /// Keys, `[layer][block][head][width][BLOCK_TOKENS]`; memory is taken by the kernel when a block is first used.
    keys: Vec<f32>,
    /// Values, `[layer][block][head][BLOCK_TOKENS][width]`.
    values: Vec<f32>,
    buffers: Buffers,
}

/// Everything that a step writes besides the cache.
struct Buffers {
    hidden: Vec<f32>,
    normed: Activation,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    attended: Activation,
    gate: Vec<f32>,
    up: Vec<f32>,
    inner: Activation,
    delta: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    wanted: Activation,
    logits: Vec<f32>,
}

impl Llama {
    /// Reads and repacks all tensors and allocates cache and buffers.
    ///
    /// # Errors
    /// When a tensor is missing, misshapen or unreadable.
    pub fn load(weights: &mut dyn Weights, setup: Setup) -> Result<Self, LoadError> {
        let shape = weights.llama_shape()?;
        let LlamaShape {
            layers: count,
            hidden,
            inner,
            vocabulary,
            ..
        } = shape;
        let (queries, shared) = (shape.heads * shape.width, shape.key_heads * shape.width);
        let mut layers = Vec::with_capacity(count);
        for index in 0..count {
            let name = |part: &str| format!("blk.{index}.{part}");
            layers.push(Layer {
                attention_norm: weights.vector(&name("attn_norm.weight"), hidden)?,
                query: weights.matrix(&name("attn_q.weight"), queries, hidden)?,
                key: weights.matrix(&name("attn_k.weight"), shared, hidden)?,
                value: weights.matrix(&name("attn_v.weight"), shared, hidden)?,
                output: weights.matrix(&name("attn_output.weight"), hidden, queries)?,
                query_bias: weights.optional_vector(&name("attn_q.bias"), queries)?,
                key_bias: weights.optional_vector(&name("attn_k.bias"), shared)?,
                value_bias: weights.optional_vector(&name("attn_v.bias"), shared)?,
                feed_forward_norm: weights.vector(&name("ffn_norm.weight"), hidden)?,
                gate: weights.matrix(&name("ffn_gate.weight"), inner, hidden)?,
                up: weights.matrix(&name("ffn_up.weight"), inner, hidden)?,
                down: weights.matrix(&name("ffn_down.weight"), hidden, inner)?,
            });
        }
        let head = if weights.has("output.weight") {
            Some(weights.matrix("output.weight", vocabulary, hidden)?)
        } else {
            None
        };
        let Capacity {
            rows,
            logits_rows,
            blocks,
        } = setup.capacity;
        let cache = count * blocks * shared * BLOCK_TOKENS;
        Ok(Self {
            capacity: setup.capacity,
            instructions: Instructions::detect(),
            pool: Pool::new(setup.threads),
            embedding: weights.matrix("token_embd.weight", vocabulary, hidden)?,
            head,
            norm: weights.vector("output_norm.weight", hidden)?,
            layers,
            keys: vec![0.0; cache],
            values: vec![0.0; cache],
            buffers: Buffers {
                hidden: vec![0.0; rows * hidden],
                normed: Activation::new(rows, hidden),
                query: vec![0.0; rows * queries],
                key: vec![0.0; rows * shared],
                value: vec![0.0; rows * shared],
                attended: Activation::new(rows, queries),
                gate: vec![0.0; rows * inner],
                up: vec![0.0; rows * inner],
                inner: Activation::new(rows, inner),
                delta: vec![0.0; rows * hidden],
                cosines: vec![0.0; rows * shape.frequencies.len()],
                sines: vec![0.0; rows * shape.frequencies.len()],
                wanted: Activation::new(logits_rows, hidden),
                logits: vec![0.0; logits_rows * vocabulary],
            },
            shape,
        })
    }
}

impl Model for Llama {
    fn vocabulary(&self) -> usize {
        self.shape.vocabulary
    }

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn weight_bytes(&self) -> usize {
        let matrices = self.layers.iter().flat_map(|layer| {
            [
                &layer.query,
                &layer.key,
                &layer.value,
                &layer.output,
                &layer.gate,
                &layer.up,
                &layer.down,
            ]
        });
        matrices
            .chain([&self.embedding])
            .chain(&self.head)
            .map(Matrix::bytes)
            .sum()
    }

    fn forward(&mut self, plan: &StepPlan) -> Result<Logits<'_>, StepError> {
        check(plan, self.capacity, self.shape.vocabulary)?;
        let rows = plan.tokens.len();
        self.embed(plan);
        for layer in 0..self.layers.len() {
            self.attend(plan, layer, rows);
            self.feed_forward(layer, rows);
        }
        Ok(self.project(plan))
    }
}

impl Llama {
    /// Looks the tokens up and computes the rotation of each row.
    fn embed(&mut self, plan: &StepPlan) {
        let Self {
            shape,
            embedding,
            buffers,
            ..
        } = self;
        let half = shape.frequencies.len();
        for (row, (token, position)) in plan.tokens.iter().zip(&plan.positions).enumerate() {
            embedding.read_row(
                *token as usize,
                &mut buffers.hidden[row * shape.hidden..][..shape.hidden],
            );
            for (index, frequency) in shape.frequencies.iter().enumerate() {
                // The angle is a single-precision product, as in the models' reference code.
                let angle = f64::from(*position as f32 * frequency);
                buffers.cosines[row * half + index] = angle.cos() as f32;
                buffers.sines[row * half + index] = angle.sin() as f32;
            }
        }
    }

    /// `hidden += output(attention(norm(hidden)))`, and the rows' keys and values go into the cache.
    fn attend(&mut self, plan: &StepPlan, index: usize, rows: usize) {
        let Self {
            shape,
            capacity,
            instructions,
            pool,
            layers,
            keys,
            values,
            buffers,
            ..
        } = self;
        let (instructions, layer) = (*instructions, &layers[index]);
        let (hidden, width) = (shape.hidden, shape.width);
        let (queries, shared) = (shape.heads * width, shape.key_heads * width);
        let Buffers {
            hidden: states,
            normed,
            query,
            key,
            value,
            attended,
            delta,
            cosines,
            sines,
            ..
        } = buffers;

        normed.fill(
            pool,
            instructions,
            rows,
            any_quantized(&[&layer.query, &layer.key, &layer.value]),
            &|row, out| {
                let state = &states[row * hidden..][..hidden];
                elementwise::rms_norm(
                    instructions,
                    state,
                    &layer.attention_norm,
                    shape.epsilon,
                    out,
                );
            },
        );
        multiply(
            pool,
            instructions,
            normed,
            rows,
            &mut [
                Product {
                    matrix: &layer.query,
                    out: query,
                },
                Product {
                    matrix: &layer.key,
                    out: key,
                },
                Product {
                    matrix: &layer.value,
                    out: value,
                },
            ],
        );

        let stride = shared * BLOCK_TOKENS;
        let arena = capacity.blocks * stride;
        let (keys, values) = (
            &mut keys[index * arena..][..arena],
            &mut values[index * arena..][..arena],
        );
        let half = shape.frequencies.len();
        for run in &plan.runs {
            for row in run.rows.clone() {
                let (query, key) = (
                    &mut query[row * queries..][..queries],
                    &mut key[row * shared..][..shared],
                );
                let value = &mut value[row * shared..][..shared];
                for (bias, values) in [
                    (&layer.query_bias, &mut *query),
                    (&layer.key_bias, &mut *key),
                    (&layer.value_bias, &mut *value),
                ] {
                    if let Some(bias) = bias {
                        elementwise::add(instructions, values, bias);
                    }
                }
                let (cosines, sines) =
                    (&cosines[row * half..][..half], &sines[row * half..][..half]);
                for head in query
                    .chunks_exact_mut(width)
                    .chain(key.chunks_exact_mut(width))
                {
                    elementwise::rotate(&mut head[..2 * half], cosines, sines, shape.neighbours);
                }
                let position = plan.positions[row] as usize;
                let at = run.blocks[position / BLOCK_TOKENS] as usize * stride;
                let slot = position % BLOCK_TOKENS;
                for head in 0..shape.key_heads {
                    let at = at + head * width * BLOCK_TOKENS;
                    for (index, number) in key[head * width..][..width].iter().enumerate() {
                        keys[at + index * BLOCK_TOKENS + slot] = *number;
                    }
                    values[at + slot * width..][..width]
                        .copy_from_slice(&value[head * width..][..width]);
                }
            }
        }

        let group = shape.heads / shape.key_heads * width;
        let out = Shares::new(&mut attended.values[..rows * queries]);
        let run_of_row: Vec<usize> = plan
            .runs
            .iter()
            .enumerate()
            .flat_map(|(index, run)| run.rows.clone().map(move |_| index))
            .collect();
        // Later rows see more tokens, so they go first: the short ones fill the gaps at the end.
        pool.run(rows * shape.key_heads, &|piece| {
            let (row, head) = (rows - 1 - piece / shape.key_heads, piece % shape.key_heads);
            let at = head * width * BLOCK_TOKENS;
            // SAFETY: each piece has a row and a group of heads of its own.
            let out = unsafe { out.part(row * queries + head * group, group) };
            attention::attend(
                instructions,
                &query[row * queries + head * group..][..group],
                &keys[at..],
                &values[at..],
                &plan.runs[run_of_row[row]].blocks,
                stride,
                plan.positions[row] as usize + 1,
                out,
                width,
            );
        });
        attended.fill(
            pool,
            instructions,
            rows,
            layer.output.is_quantized(),
            &|_, _| {},
        );
        multiply(
            pool,
            instructions,
            attended,
            rows,
            &mut [Product {
                matrix: &layer.output,
                out: delta,
            }],
        );
        elementwise::add(
            instructions,
            &mut states[..rows * hidden],
            &delta[..rows * hidden],
        );
    }

    /// `hidden += down(silu(gate(norm(hidden))) * up(norm(hidden)))`.
    fn feed_forward(&mut self, index: usize, rows: usize) {
        let Self {
            shape,
            instructions,
            pool,
            layers,
            buffers,
            ..
        } = self;
        let (instructions, layer) = (*instructions, &layers[index]);
        let (hidden, inner) = (shape.hidden, shape.inner);
        let Buffers {
            hidden: states,
            normed,
            gate,
            up,
            inner: gated,
            delta,
            ..
        } = buffers;
        normed.fill(
            pool,
            instructions,
            rows,
            any_quantized(&[&layer.gate, &layer.up]),
            &|row, out| {
                let state = &states[row * hidden..][..hidden];
                elementwise::rms_norm(
                    instructions,
                    state,
                    &layer.feed_forward_norm,
                    shape.epsilon,
                    out,
                );
            },
        );
        let mut products = [
            Product {
                matrix: &layer.gate,
                out: gate,
            },
            Product {
                matrix: &layer.up,
                out: up,
            },
        ];
        multiply(pool, instructions, normed, rows, &mut products);
        gated.fill(
            pool,
            instructions,
            rows,
            layer.down.is_quantized(),
            &|row, out| {
                elementwise::silu_times(
                    instructions,
                    &gate[row * inner..][..inner],
                    &up[row * inner..][..inner],
                    out,
                );
            },
        );
        multiply(
            pool,
            instructions,
            gated,
            rows,
            &mut [Product {
                matrix: &layer.down,
                out: delta,
            }],
        );
        elementwise::add(
            instructions,
            &mut states[..rows * hidden],
            &delta[..rows * hidden],
        );
    }

    /// Logits of the wanted rows.
    fn project(&mut self, plan: &StepPlan) -> Logits<'_> {
        let Self {
            shape,
            instructions,
            pool,
            embedding,
            head,
            norm,
            buffers,
            ..
        } = self;
        let instructions = *instructions;
        let head = head.as_ref().unwrap_or(embedding);
        let Buffers {
            hidden: states,
            wanted,
            logits,
            ..
        } = buffers;
        let count = plan.logits_rows.len();
        wanted.fill(
            pool,
            instructions,
            count,
            head.is_quantized(),
            &|index, out| {
                let state = &states[plan.logits_rows[index] * shape.hidden..][..shape.hidden];
                elementwise::rms_norm(instructions, state, norm, shape.epsilon, out);
            },
        );
        if count > 0 {
            multiply(
                pool,
                instructions,
                wanted,
                count,
                &mut [Product {
                    matrix: head,
                    out: logits,
                }],
            );
        }
        Logits::new(&logits[..count * shape.vocabulary], shape.vocabulary)
    }
}
