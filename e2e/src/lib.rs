//! The end-to-end stories of Chandler: a real cluster, the real chart, real weights, and one stand-in, the hub.
//!
//! Nothing depends on this crate. [`hub`] plays Hugging Face and [`relay`] lets a story reach a Service from inside the cluster;
//! both are one program and one image. The other modules are the harness of `tests/it`, in the order in which a story uses them.

pub mod hub;
pub mod played_runtime;
pub mod relay;
pub mod tls;

#[cfg(feature = "harness")]
pub mod chat;
#[cfg(feature = "harness")]
pub mod chat_about_pictures;
#[cfg(feature = "harness")]
pub mod cluster;
#[cfg(feature = "harness")]
pub mod collector;
#[cfg(feature = "harness")]
pub mod end_state;
#[cfg(feature = "harness")]
pub mod fake_node;
#[cfg(feature = "harness")]
pub mod fault_proxy;
#[cfg(feature = "harness")]
pub mod faults;
#[cfg(feature = "harness")]
pub mod forward;
#[cfg(feature = "harness")]
pub mod hub_pod;
#[cfg(feature = "harness")]
pub mod images;
#[cfg(feature = "harness")]
pub mod local_operator;
#[cfg(feature = "harness")]
pub mod model;
#[cfg(feature = "harness")]
pub mod namespace;
#[cfg(feature = "harness")]
pub mod operator;
#[cfg(feature = "harness")]
pub mod player;
#[cfg(feature = "harness")]
pub mod process;
#[cfg(feature = "harness")]
pub mod python;
#[cfg(feature = "harness")]
pub mod record;
#[cfg(feature = "harness")]
pub mod scale;
#[cfg(feature = "harness")]
pub mod spec_walk;
#[cfg(feature = "harness")]
pub mod stage;
#[cfg(feature = "harness")]
pub mod steadiness;
#[cfg(feature = "harness")]
pub mod story;
#[cfg(feature = "harness")]
pub mod tools;
#[cfg(feature = "harness")]
pub mod traffic;
#[cfg(feature = "harness")]
pub mod volume;
#[cfg(feature = "harness")]
pub mod wait;
