//! The hub stand-in answers as the hub does, and its faults do what they say. No cluster is needed.

#![expect(
    clippy::unwrap_used,
    reason = "in a test a failure to prepare is a failure; clippy knows test functions only, not what they share"
)]

mod faults;
mod fixture;
mod like_the_hub;
mod python_client;
