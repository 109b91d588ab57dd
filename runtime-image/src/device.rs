//! Where the model is computed: what was asked for, as far as this build and this machine have it.

use crate::config::Device;

/// The device that is used in place of the one asked for; says so in the log where it is another one.
#[must_use]
pub fn settle(asked: Device) -> Device {
    let (device, warning) = choose(asked, cuda());
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    device
}

/// What stands against computing on an NVIDIA GPU.
fn cuda() -> Result<(), &'static str> {
    Err("this build has no code for GPUs")
}

/// Serving slowly and saying so beats refusing: docs/decisions/0040 tells why.
fn choose(asked: Device, cuda: Result<(), &str>) -> (Device, Option<String>) {
    match (asked, cuda) {
        (Device::Cpu, _) => (Device::Cpu, None),
        (Device::Cuda, Ok(())) => (Device::Cuda, None),
        (Device::Cuda, Err(obstacle)) => {
            let warning = format!(
                "cannot use --device cuda: {obstacle}; computing on the CPU instead, which is slow: \
                 use an image with CUDA on a node whose GPU this container may use, or ask for cpu"
            );
            (Device::Cpu, Some(warning))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_cannot_be_used_becomes_the_cpu_with_a_warning() {
        let (device, warning) = choose(Device::Cuda, Err("no driver"));
        assert_eq!(device, Device::Cpu);
        assert!(warning.is_some_and(|text| text.contains("no driver") && text.contains("image")));
        assert_eq!(choose(Device::Cuda, Ok(())), (Device::Cuda, None));
        assert_eq!(choose(Device::Cpu, Err("no driver")), (Device::Cpu, None));
    }
}
