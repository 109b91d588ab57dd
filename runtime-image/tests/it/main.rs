//! Both ports of `serve` in this process, with a model whose answers a test can know, and real weights where they matter.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answers;
mod bad_input;
mod card;
mod golden;
mod keys;
mod life;
mod queue;
mod server;
mod weights;
