//! The inference runtime: `resolve` and `fetch` bring the weights, `serve` answers with them.
//!
//! Weights: [`resolve`] asks a [`hub`] what a model is, [`fetch`] brings its files into a folder that a [`manifest`] completes; both say how it ended through [`answer`].

pub mod answer;
pub mod fetch;
pub mod hub;
mod job;
pub mod manifest;
pub mod resolve;
pub mod support;
