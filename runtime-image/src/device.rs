//! Where the model is computed: what was asked for, as far as this build and this machine have it.

use std::sync::Arc;

use crate::compute::cuda::card::Card;
use crate::config::{CudaArgs, Device};

/// What computes.
#[derive(Clone)]
pub enum Place {
    /// This machine's processor.
    Cpu,
    /// A card.
    Card(Arc<dyn Card>),
}

impl Place {
    /// What it is called.
    #[must_use]
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu => Device::Cpu,
            Self::Card(_) => Device::Cuda,
        }
    }
}

/// What computes, and what stood against what was asked for.
#[derive(Clone)]
pub struct Settled {
    /// What computes.
    pub place: Place,
    /// Why it is not what was asked for.
    pub obstacle: Option<String>,
}

/// The device that is used in place of the one asked for; says so in the log where it is another one.
#[must_use]
pub fn settle(asked: Device, args: &CudaArgs) -> Settled {
    choose(asked, || open(args))
}

/// Bytes that begin where the driver can read a header of wider numbers.
#[cfg(feature = "cuda")]
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

/// Opens the card of this process.
#[cfg(feature = "cuda")]
fn open(args: &CudaArgs) -> Result<Arc<dyn Card>, String> {
    use crate::compute::cuda::driver::Driver;
    static KERNELS: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("CHANDLER_FATBIN")));
    let given = match &args.cuda_kernels {
        None => None,
        Some(path) => {
            let read = std::fs::read(path);
            Some(read.map_err(|error| format!("failed to read {}: {error}", path.display()))?)
        }
    };
    let kernels = given.as_deref().unwrap_or(&KERNELS.0);
    // Functions are looked up when they are called, and one that is not there is a panic.
    match std::panic::catch_unwind(|| Driver::open(kernels)) {
        Ok(opened) => Ok(Arc::new(opened?)),
        Err(_) => Err("the driver or cuBLASLt is too old: a function is missing".to_owned()),
    }
}

/// What stands against it.
#[cfg(not(feature = "cuda"))]
fn open(_: &CudaArgs) -> Result<Arc<dyn Card>, String> {
    Err("this build has no code for GPUs".to_owned())
}

/// Serving slowly and saying so beats refusing: docs/decisions/0040 tells why.
fn choose(asked: Device, open: impl FnOnce() -> Result<Arc<dyn Card>, String>) -> Settled {
    if asked == Device::Cpu {
        return Settled {
            place: Place::Cpu,
            obstacle: None,
        };
    }
    match open() {
        Ok(card) => {
            tracing::info!(card = card.facts().name, "computing on a GPU");
            Settled {
                place: Place::Card(card),
                obstacle: None,
            }
        }
        Err(obstacle) => {
            tracing::warn!(
                "cannot use --device cuda: {obstacle}; computing on the CPU instead, which is slow: \
                 use an image with CUDA on a node whose GPU this container may use, or ask for cpu"
            );
            Settled {
                place: Place::Cpu,
                obstacle: Some(obstacle),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_cannot_be_used_becomes_the_cpu_and_the_obstacle_is_told() {
        let settled = choose(Device::Cuda, || Err("no driver".to_owned()));
        assert_eq!(settled.place.device(), Device::Cpu);
        assert_eq!(settled.obstacle.as_deref(), Some("no driver"));
    }

    #[test]
    fn nobody_looks_for_a_gpu_that_was_not_asked_for() {
        let settled = choose(Device::Cpu, || unreachable!("nothing is opened"));
        assert_eq!(settled.place.device(), Device::Cpu);
        assert!(settled.obstacle.is_none());
    }
}
