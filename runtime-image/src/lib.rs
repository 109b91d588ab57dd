//! The inference runtime: `resolve` and `fetch` bring the weights, `serve` answers with them.
//!
//! Weights: [`resolve`] asks a [`hub`] what a model is, [`fetch`] brings its files into a folder that a [`manifest`] completes; both say how it ended through [`answer`].
//!
//! Answers: [`serve`] ties both ports ([`server`], speaking [`openai`]) to the [`engine`], one thread that owns the [`model`].
//! [`memory`] says how much context fits; [`check`] compares a model's results with a reference's.
//! A request goes [`prompt`] → [`tokenizer`] → [`request`] → engine, perhaps with a [`grammar`] for its answer; pictures in it are prepared by [`pictures`], where they are named by `https:` URLs after [`picture_hosts`]; a model is read by [`weights`] and computed by [`compute`], where [`device`] says.

pub mod addresses;
pub mod answer;
pub mod check;
pub mod compute;
pub mod config;
pub mod device;
pub mod dialect;
pub mod engine;
pub mod fetch;
pub mod grammar;
pub mod hub;
mod job;
mod logging;
pub mod manifest;
pub mod memory;
pub mod metrics;
pub mod model;
#[cfg(test)]
mod noise;
pub mod openai;
pub mod picture_hosts;
pub mod pictures;
pub mod prompt;
pub mod request;
pub mod resolve;
pub mod serve;
pub mod server;
pub mod step;
pub mod support;
pub mod tokenizer;
pub mod verify;
pub mod weights;
