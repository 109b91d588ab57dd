//! The hub stand-in answers as the hubs do, its faults do what they say, and the runtime fetches from it. No cluster is needed.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failure to prepare is a failure; clippy knows test functions only, not what they share"
)]

mod faults;
mod fetch_faults;
mod fetch_kills;
mod fetch_volume;
mod fixture;
mod like_the_hub;
mod modelscope;
mod pictures;
mod python_client;
mod runtime;
