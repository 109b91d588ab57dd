//! Arithmetic on our own buffers: packed weight matrices, the kernels that read them, the threads that run them.
//!
//! A model sees one trait, [`backend::Backend`]; [`cpu`] is this processor's, [`cuda`] an NVIDIA card's. Nothing above it is specific to a device.
//!
//! The reduction order of every result is fixed: a row's numbers do not depend on how many other rows are computed beside it,
//! on the number of threads, or on how a prompt was cut into chunks.
//! Kernels are picked at run time from what the processor offers; the plain ones in [`scalar`] say what is meant.

pub mod activation;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod backend;
pub mod cpu;
pub mod cuda;
pub mod elementwise;
pub mod matmul;
pub mod matrix;
mod pages;
pub mod pool;
pub mod quants;
pub mod ranks;
mod rounded;
mod scalar;
pub mod tensor;
mod turns;
pub mod vision;

use std::sync::OnceLock;

use clap::ValueEnum;

/// The arithmetic of products on this processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arithmetic {
    /// Inputs are rounded to BF16 where weights are BF16 and the processor multiplies BF16 (AVX512-BF16, AMX).
    Auto,
    /// Inputs are 32-bit floats whatever the weights are.
    Float32,
}

/// Whether this processor multiplies BF16 with BF16.
#[must_use]
pub fn multiplies_bf16() -> bool {
    Instructions::detect().multiply_bf16()
}

/// The instruction set that the kernels of this process use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// Plain Rust; works everywhere.
    Scalar,
    /// AVX2 with FMA and F16C (x86-64-v3 processors).
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with BW, VL and VNNI, and what there is for bfloat16.
    #[cfg(target_arch = "x86_64")]
    Avx512(Bf16),
}

/// What a processor has for products of bfloat16 with bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16 {
    /// Nothing; weights are widened to 32 bits.
    Widened,
    /// Vector registers (AVX512-BF16).
    Vectors,
    /// Matrix units (AMX) that the kernel grants and that gave the right numbers at the start.
    Tiles,
}

impl Instructions {
    /// The best set that this processor offers and the kernel grants.
    #[must_use]
    pub fn detect() -> Self {
        static BEST: OnceLock<Instructions> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().last().copied().unwrap_or(Self::Scalar))
    }

    /// Every set that this processor can run, the plain one first and the best one last; tests compare them.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut sets = vec![Self::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Self::Avx2);
            }
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("f16c")
            {
                sets.push(Self::Avx512(Bf16::Widened));
                if is_x86_feature_detected!("avx512bf16") {
                    sets.push(Self::Avx512(Bf16::Vectors));
                }
                if amx::usable() {
                    sets.push(Self::Avx512(Bf16::Tiles));
                }
            }
        }
        sets
    }

    pub(crate) fn bf16(self) -> Bf16 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(bf16) => bf16,
            _ => Bf16::Widened,
        }
    }

    pub(crate) fn multiply_bf16(self) -> bool {
        self.bf16() != Bf16::Widened
    }

    /// The name that logs show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(Bf16::Widened) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(Bf16::Vectors) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(Bf16::Tiles) => "avx512-amx",
        }
    }
}

/// Numbers from -1 to 1 to try a kernel with.
#[cfg(any(test, target_arch = "x86_64"))]
fn wave(count: usize, step: f32) -> Vec<f32> {
    (0..count).map(|at| (at as f32 * step).sin()).collect()
}
