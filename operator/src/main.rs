//! chandler-operator

fn main() {}
