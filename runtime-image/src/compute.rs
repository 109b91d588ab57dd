//! Arithmetic on our own buffers: packed weight matrices, the kernels that read them, the threads that run them.
//!
//! The reduction order of every result is fixed: a row's numbers do not depend on how many other rows are computed beside it,
//! on the number of threads, or on how a prompt was cut into chunks.
//! Kernels are picked at run time from what the processor offers; the plain ones in [`scalar`] say what is meant.

pub mod activation;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod elementwise;
pub mod matmul;
pub mod matrix;
pub mod pool;
mod scalar;

/// The instruction set that the kernels of this process use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// Plain Rust; works everywhere.
    Scalar,
    /// AVX2 with FMA and F16C (x86-64-v3 processors).
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
}

impl Instructions {
    /// The best set that this processor offers and the kernel grants.
    #[must_use]
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx512Vnni;
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                return Self::Avx2;
            }
        }
        Self::Scalar
    }

    /// Every set that this processor can run, the plain one first; tests compare them.
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
            if Self::detect() == Self::Avx512Vnni {
                sets.push(Self::Avx512Vnni);
            }
        }
        sets
    }

    /// The name that logs show.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Vnni => "avx512-vnni",
        }
    }
}
