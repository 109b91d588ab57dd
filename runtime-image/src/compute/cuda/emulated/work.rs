//! What a played card does: at once, or when a graph is repeated.

use std::ffi::{CStr, CString, c_void};
use std::sync::atomic::Ordering;

use super::products::gemm;
use super::{Emulated, Inner, Recording, lock, pointer};
use crate::compute::cuda::card::{Address, Argument, CardError, Gemm, Graph, Launch};

/// Something that a graph repeats.
#[derive(Clone, Debug)]
pub(super) enum Work {
    Launch(Launch),
    Gemm(Gemm),
    Copy(Address, Address, usize),
    Zero(Address, usize),
}

impl Inner {
    /// Records the work, or does it at once.
    pub(super) fn take(&self, work: Work) -> Result<(), CardError> {
        self.alive()?;
        if let Some(recording) = &mut lock(&self.state).recording {
            self.accepts(Recording::Work)?;
            recording.push(work);
            return Ok(());
        }
        self.work(&work)
    }

    fn work(&self, work: &Work) -> Result<(), CardError> {
        let mut state = lock(&self.state);
        state.asked += 1;
        state.ahead = state.ahead.max(state.asked - state.awaited);
        drop(state);
        match work {
            Work::Launch(launch) => {
                self.fault()?;
                self.launch(launch)
            }
            Work::Gemm(product) => {
                self.fault()?;
                self.products.fetch_add(1, Ordering::Relaxed);
                gemm(product);
                Ok(())
            }
            Work::Copy(from, to, bytes) => {
                // SAFETY: callers name room of this card.
                unsafe { std::ptr::copy(pointer(*from), pointer(*to), *bytes) };
                Ok(())
            }
            Work::Zero(at, bytes) => {
                // SAFETY: as above.
                unsafe { pointer(*at).write_bytes(0, *bytes) };
                Ok(())
            }
        }
    }

    fn fault(&self) -> Result<(), CardError> {
        let mut plan = lock(&self.plan);
        match plan.fault.take() {
            Some((0, error)) => {
                if matches!(error, CardError::Lost(_)) {
                    lock(&self.state).lost = Some(error.clone());
                }
                Err(error)
            }
            Some((left, error)) => {
                plan.fault = Some((left - 1, error));
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn launch(&self, launch: &Launch) -> Result<(), CardError> {
        let name = CString::new(launch.kernel)
            .map_err(|_| CardError::Failed("a kernel's name with a zero".to_owned()))?;
        let mut values: Vec<u64> = launch.arguments.iter().map(Argument::bits).collect();
        let mut arguments: Vec<*mut c_void> = values
            .iter_mut()
            .map(|value| std::ptr::from_mut(value).cast())
            .collect();
        self.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: each argument is at least as wide as the kernel's parameter, little end first; launches are tested
        // against the kernels' table.
        let code = unsafe {
            (self.launch)(
                name.as_ptr(),
                launch.grid.as_ptr(),
                launch.block.as_ptr(),
                launch.shared,
                arguments.as_mut_ptr(),
            )
        };
        if code == 0 {
            Ok(())
        } else {
            // SAFETY: it is a text that stays until this thread's next launch.
            let detail = unsafe { CStr::from_ptr((self.error)()) }.to_string_lossy();
            Err(CardError::Failed(format!("{launch:?}: {detail}")))
        }
    }
}

/// What was recorded.
pub(super) struct Recorded {
    pub(super) card: Emulated,
    pub(super) work: Vec<Work>,
}

impl Graph for Recorded {
    fn replay(&self) -> Result<(), CardError> {
        self.card.inner.alive()?;
        self.card.inner.accepts(Recording::Replay)?;
        self.card.inner.replays.fetch_add(1, Ordering::Relaxed);
        self.work
            .iter()
            .try_for_each(|work| self.card.inner.work(work))
    }
}
