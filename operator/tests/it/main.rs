//! Tests of the operator that need no cluster: golden cases, generated files, built-in cards, the admission table's form.

mod admission;
mod cases;
mod generated;
