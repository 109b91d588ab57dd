//! Every CUDA kernel against a plain reference in double precision, on a host that plays the card (`make cuda-test`).
//! Each comparison shows as well that a reference which is a little wrong is told from the right one.

mod attention;
mod card;
mod faults;
mod matrices;
mod numbers;
mod packed;
mod products;
mod rows;
mod sampling;
mod stored;
mod world;
