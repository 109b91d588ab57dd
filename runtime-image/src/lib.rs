//! The inference runtime: `resolve` and `fetch` bring the weights, `serve` answers with them.
//!
//! Weights: [`resolve`] asks a [`hub`] what a model is, [`fetch`] brings its files into a folder that a [`manifest`] completes; both say how it ended through [`answer`].
//!
//! Answers: [`serve`] ties both ports ([`server`], speaking [`openai`]) to the [`engine`], one thread that owns the [`model`].
//! A request goes [`prompt`] → [`tokenizer`] → [`request`] → engine; a model is read by [`weights`] and computed by [`compute`], where [`device`] says.

pub mod answer;
pub mod compute;
pub mod config;
pub mod device;
pub mod engine;
pub mod fetch;
pub mod hub;
mod job;
mod logging;
pub mod manifest;
pub mod metrics;
pub mod model;
pub mod openai;
pub mod prompt;
pub mod request;
pub mod resolve;
pub mod serve;
pub mod server;
pub mod support;
pub mod tokenizer;
pub mod weights;
