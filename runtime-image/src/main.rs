//! chandler-runtime

fn main() {}
