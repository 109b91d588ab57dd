//! Tests of the operator that need no cluster: golden cases, generated files, built-in cards, the admission table's form, what `kubectl explain` says, the reasons' page, the way from Xinference.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admission;
mod cases;
mod explain;
mod generated;
mod troubleshooting;
mod xinference;
