//! The hub stand-in answers as the hub does, and its faults do what they say. No cluster is needed.

mod faults;
mod fixture;
mod like_the_hub;
mod python_client;
