//! A small pool of threads for the inside of one step.
//!
//! Work is claimed piece by piece, so a thread that the kernel has put aside delays nobody but its own piece.
//! Idle workers spin for [`SPIN`] and then park: a pod with a CPU limit or a busy neighbour is not starved by waiting threads.
//! Nothing here allocates or locks while a step runs.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks for work before it parks; about the length of one small matrix product.
const SPIN: Duration = Duration::from_micros(30);

/// Bit of [`Shared::gate`] that lets workers in.
const OPEN: u64 = 1 << 15;
/// Bits of [`Shared::gate`] that count the workers inside.
const INSIDE: u64 = OPEN - 1;
/// The job's number stands above the other fields of [`Shared::gate`].
const JOB_SHIFT: u32 = 16;

/// One piece of work, its lifetime erased; valid while the gate of its number is open or somebody is inside.
type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Number of the job, the open bit and the count of workers inside.
    gate: AtomicU64,
    /// Written only while the gate is closed and nobody is inside.
    job: UnsafeCell<Option<(Job, usize)>>,
    next: AtomicUsize,
    stopping: AtomicBool,
    panicked: AtomicBool,
    caller: UnsafeCell<Option<Thread>>,
}

// SAFETY: `job` and `caller` are written by the one caller while the gate is closed and empty, and read by workers only
// between their entering through the gate (acquire) and their leaving it (release).
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer inside is only followed while the caller keeps its referent alive.
unsafe impl Send for Shared {}

/// Threads that share the work of one owner.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts a pool in which `threads` threads work, the caller of [`Pool::run`] among them.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            panicked: AtomicBool::new(false),
            caller: UnsafeCell::new(None),
        });
        let workers = (1..threads.max(1))
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("compute-{index}"))
                    .spawn(move || work(&shared))
                    .inspect_err(|error| tracing::warn!(%error, "started fewer compute threads than asked for"))
                    .ok()
            })
            .collect();
        Self { shared, workers }
    }

    /// Threads that work, the caller included.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `piece` once for each number below `pieces` and returns when all calls are done.
    ///
    /// # Panics
    /// When one of the calls panicked.
    pub fn run(&mut self, pieces: usize, piece: &(dyn Fn(usize) + Sync)) {
        if pieces <= 1 || self.workers.is_empty() {
            for index in 0..pieces {
                piece(index);
            }
            return;
        }
        // SAFETY: only the lifetime changes. `run` leaves only after the gate is closed and everybody is out, also when
        // `piece` panics here, so no worker follows the pointer after the borrow has ended.
        let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(piece) };
        let shared = &*self.shared;
        // SAFETY: the gate is closed and empty between two runs, and `&mut self` keeps other callers out.
        unsafe {
            *shared.job.get() = Some((job, pieces));
            *shared.caller.get() = Some(thread::current());
        }
        shared.next.store(0, Ordering::Relaxed);
        let number = (shared.gate.load(Ordering::Relaxed) >> JOB_SHIFT) + 1;
        shared
            .gate
            .store(number << JOB_SHIFT | OPEN, Ordering::SeqCst);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| claim(shared, piece, pieces)));
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        wait(|| shared.gate.load(Ordering::Acquire) & INSIDE == 0);
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
        assert!(
            !shared.panicked.swap(false, Ordering::Relaxed),
            "a compute thread panicked"
        );
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn claim(shared: &Shared, piece: &(dyn Fn(usize) + Sync), pieces: usize) {
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= pieces {
            return;
        }
        piece(index);
    }
}

fn work(shared: &Shared) {
    let mut done = 0;
    loop {
        wait(|| {
            let gate = shared.gate.load(Ordering::Acquire);
            shared.stopping.load(Ordering::Relaxed)
                || (gate & OPEN != 0 && gate >> JOB_SHIFT != done)
        });
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let gate = shared.gate.load(Ordering::Acquire);
        if gate & OPEN == 0 || gate >> JOB_SHIFT == done {
            continue;
        }
        if shared
            .gate
            .compare_exchange_weak(gate, gate + 1, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            continue;
        }
        done = gate >> JOB_SHIFT;
        // SAFETY: this thread is inside, so the caller is still in `run` and has written both before it opened the gate.
        let (job, caller) = unsafe { (*shared.job.get(), (*shared.caller.get()).clone()) };
        if let Some((job, pieces)) = job {
            // SAFETY: as above: the referent lives until this thread has left.
            let piece = unsafe { &*job };
            if catch_unwind(AssertUnwindSafe(|| claim(shared, piece, pieces))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        let left = shared.gate.fetch_sub(1, Ordering::AcqRel) - 1;
        if left & (OPEN | INSIDE) == 0
            && let Some(caller) = caller
        {
            caller.unpark();
        }
    }
}

/// Waits until `ready`: spins for [`SPIN`], then parks. Whoever makes it true unparks this thread afterwards.
fn wait(ready: impl Fn() -> bool) {
    let mut since = None;
    loop {
        for _ in 0..64 {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        let since = *since.get_or_insert_with(Instant::now);
        if since.elapsed() > SPIN {
            // A token left over from an earlier unpark makes this return at once; the loop looks again.
            thread::park();
        }
    }
}

/// A pointer that pieces of one run may share; each piece writes a part of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shares<T>(*mut T);

// SAFETY: the users below write disjoint parts, each with its own argument.
unsafe impl<T: Send> Sync for Shares<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shares<T> {}

impl<T> Shares<T> {
    /// Shares the elements of `slice`.
    pub(crate) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    /// Where the element at `offset` is.
    pub(crate) fn at(&self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }

    /// The `length` elements from `offset` on.
    ///
    /// # Safety
    /// They lie inside the slice this was made from, the slice is still borrowed, and nobody else touches them meanwhile.
    #[expect(
        clippy::mut_from_ref,
        reason = "handing out disjoint parts is what this type is for"
    )]
    pub(crate) unsafe fn part(&self, offset: usize, length: usize) -> &mut [T] {
        // SAFETY: by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(offset), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_done_once_in_every_run() {
        let mut pool = Pool::new(4);
        let counts: Vec<AtomicUsize> = (0..97).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..500 {
            pool.run(counts.len(), &|index| {
                counts[index].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(
            counts
                .iter()
                .all(|count| count.load(Ordering::Relaxed) == 500)
        );
    }

    #[test]
    fn a_panic_in_a_piece_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = Pool::new(3);
        let broken = catch_unwind(AssertUnwindSafe(|| {
            pool.run(16, &|index| assert!(index != 7, "seven"));
        }));
        assert!(broken.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|index| {
            sum.fetch_add(index, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
