//! The end-to-end stories of Chandler: a real cluster, the real chart, real weights, and one stand-in, the hub.
//!
//! Nothing depends on this crate. [`hub`] plays Hugging Face; the other modules are the harness of `tests/it`.

pub mod hub;
