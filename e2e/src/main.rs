//! chandler-e2e

fn main() {}
