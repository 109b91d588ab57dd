//! Both ports of `serve` in this process, with a model whose answers a test can know, and real weights where they matter.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod bad_input;
mod candle;
mod card;
mod check;
#[path = "../../examples/random_mllama/checkpoint.rs"]
mod checkpoint;
mod engine;
mod families;
mod fetched;
mod golden;
mod keys;
mod laid_out;
mod languages;
mod life;
mod looking;
mod pictures;
mod published;
mod quants;
mod queue;
mod responses;
mod schemas;
mod server;
mod shown;
mod structured;
mod vision;
mod weights;
