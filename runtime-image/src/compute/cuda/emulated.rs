//! A card that is played on the host: the same kernels, compiled for the processor, in memory of this process. It shows
//! whether kernels, launches and backend compute the right thing, not how fast. For tests; no program that is shipped has it.

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use libloading::Library;

use super::card::{
    Address, Card, CardError, CardFacts, CardMemory, Gemm, Graph, Launch, Mark, Pinned,
};
use pinned::HostBytes;
use products::fits;
use work::{Recorded, Work};

mod pinned;
mod products;
mod work;

/// Names the shared object that `hack/cuda-emulated` builds.
pub const KERNELS: &str = "CHANDLER_EMULATED_KERNELS";

/// `emulated_launch` of the shared object: name, grid, block, bytes of shared memory, arguments; 0 where all went well.
type LaunchEntry = unsafe extern "C" fn(
    *const c_char,
    *const c_uint,
    *const c_uint,
    c_uint,
    *mut *mut c_void,
) -> c_int;

/// `emulated_error`: what was wrong with this thread's last launch.
type ErrorEntry = unsafe extern "C" fn() -> *const c_char;

/// `emulated_allocate`: memory that ends before a page that may not be touched, full of what is no number in any type.
type AllocateEntry = unsafe extern "C" fn(usize) -> *mut c_void;

/// `emulated_free`.
type FreeEntry = unsafe extern "C" fn(*mut c_void, usize);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a card may refuse while steps are recorded or repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// To begin.
    Begin,
    /// What is asked in between.
    Work,
    /// To make a graph of it.
    End,
    /// To repeat it.
    Replay,
}

/// What a test can change.
#[derive(Default)]
struct Plan {
    /// Bytes that there are.
    total: usize,
    /// What goes wrong, and after how many launches more.
    fault: Option<(usize, CardError)>,
    /// What is refused, and why.
    refused: Option<(Recording, CardError)>,
    /// Whether there is no way to compute a large product.
    no_products: bool,
}

#[derive(Default)]
struct State {
    /// Bytes at each address.
    taken: BTreeMap<u64, usize>,
    used: usize,
    recording: Option<Vec<Work>>,
    /// Noted times, and how much had been asked before each.
    marks: Vec<(Instant, usize)>,
    /// How much was asked so far, how much of that was waited for, and how much was not at most.
    asked: usize,
    awaited: usize,
    ahead: usize,
    /// Questions for the memory.
    questions: usize,
    lost: Option<CardError>,
}

struct Inner {
    launch: LaunchEntry,
    error: ErrorEntry,
    allocate: AllocateEntry,
    free: FreeEntry,
    /// Holds the code of the four.
    _library: Library,
    facts: CardFacts,
    plan: Mutex<Plan>,
    state: Mutex<State>,
    launches: AtomicUsize,
    replays: AtomicUsize,
    products: AtomicUsize,
}

/// A played card.
#[derive(Clone)]
pub struct Emulated {
    inner: Arc<Inner>,
}

impl Emulated {
    /// A card with so many bytes, from the shared object that the environment names.
    ///
    /// # Errors
    /// When it names none or it cannot be loaded.
    pub fn new(total: usize) -> Result<Self, String> {
        let path = std::env::var_os(KERNELS)
            .ok_or_else(|| format!("{KERNELS} is not set: run `make cuda-test`"))?;
        Self::load(Path::new(&path), total)
    }

    fn load(path: &Path, total: usize) -> Result<Self, String> {
        let failed = |error: libloading::Error| format!("{}: {error}", path.display());
        // SAFETY: it is our own shared object, which runs nothing when it is loaded.
        let library = unsafe { Library::new(path) }.map_err(failed)?;
        // SAFETY: the kernels' README gives the four these signatures.
        let (launch, error, allocate, free) = unsafe {
            (
                *library
                    .get::<LaunchEntry>(b"emulated_launch\0")
                    .map_err(failed)?,
                *library
                    .get::<ErrorEntry>(b"emulated_error\0")
                    .map_err(failed)?,
                *library
                    .get::<AllocateEntry>(b"emulated_allocate\0")
                    .map_err(failed)?,
                *library
                    .get::<FreeEntry>(b"emulated_free\0")
                    .map_err(failed)?,
            )
        };
        Ok(Self {
            inner: Arc::new(Inner {
                launch,
                error,
                allocate,
                free,
                _library: library,
                facts: CardFacts {
                    name: "emulated".to_owned(),
                    processors: 2,
                },
                plan: Mutex::new(Plan {
                    total,
                    ..Plan::default()
                }),
                state: Mutex::default(),
                launches: AtomicUsize::new(0),
                replays: AtomicUsize::new(0),
                products: AtomicUsize::new(0),
            }),
        })
    }

    /// Has the card fail so after some launches more; one that is lost stays lost.
    pub fn fail_after(&self, launches: usize, error: CardError) {
        lock(&self.inner.plan).fault = Some((launches, error));
    }

    /// Has the card know no way to compute large products.
    pub fn without_products(&self) {
        lock(&self.inner.plan).no_products = true;
    }

    /// Has the card have so many bytes from now on.
    pub fn resize(&self, total: usize) {
        lock(&self.inner.plan).total = total;
    }

    /// Has the card refuse a part of the next recording.
    pub fn refuse(&self, part: Recording, error: CardError) {
        lock(&self.inner.plan).refused = Some((part, error));
    }

    /// Launches and the like that were asked for and not waited for, at most.
    #[must_use]
    pub fn most_ahead(&self) -> usize {
        lock(&self.inner.state).ahead
    }

    /// How often the memory was asked for.
    #[must_use]
    pub fn questions(&self) -> usize {
        lock(&self.inner.state).questions
    }

    /// Large products so far.
    #[must_use]
    pub fn products(&self) -> usize {
        self.inner.products.load(Ordering::Relaxed)
    }

    /// Launches so far, those of replayed graphs too.
    #[must_use]
    pub fn launches(&self) -> usize {
        self.inner.launches.load(Ordering::Relaxed)
    }

    /// Graphs that were replayed so far.
    #[must_use]
    pub fn replays(&self) -> usize {
        self.inner.replays.load(Ordering::Relaxed)
    }
}

impl Inner {
    fn alive(&self) -> Result<(), CardError> {
        match &lock(&self.state).lost {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// What no card does while it records.
    fn ordinary(&self, what: &str) -> Result<(), CardError> {
        self.alive()?;
        match lock(&self.state).recording {
            Some(_) => Err(CardError::Failed(format!("{what} while recording"))),
            None => Ok(()),
        }
    }

    fn accepts(&self, part: Recording) -> Result<(), CardError> {
        let refused = lock(&self.plan)
            .refused
            .take_if(|(refused, _)| *refused == part);
        refused.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Everything that was asked before this point of it has been waited for.
    fn wait_for(&self, asked: usize) {
        let mut state = lock(&self.state);
        state.awaited = state.awaited.max(asked);
    }

    /// How much was asked so far.
    fn asked(&self) -> usize {
        lock(&self.state).asked
    }
}

fn pointer(address: Address) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(usize::try_from(address.0).unwrap_or(0))
}

impl Card for Emulated {
    fn facts(&self) -> &CardFacts {
        &self.inner.facts
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CardError> {
        self.inner.ordinary("room")?;
        let total = lock(&self.inner.plan).total;
        let mut state = lock(&self.inner.state);
        let refused = CardError::Memory { asked: bytes };
        if state.used + bytes > total || bytes == 0 {
            return Err(refused);
        }
        // SAFETY: the size is not zero.
        let start = unsafe { (self.inner.allocate)(bytes) };
        if start.is_null() {
            return Err(refused);
        }
        let address = start.expose_provenance() as u64;
        state.taken.insert(address, bytes);
        state.used += bytes;
        Ok(Address(address))
    }

    fn free(&self, address: Address) {
        let mut state = lock(&self.inner.state);
        if let Some(bytes) = state.taken.remove(&address.0) {
            state.used -= bytes;
            // SAFETY: `allocate` gave so many bytes there.
            unsafe { (self.inner.free)(pointer(address).cast(), bytes) };
        }
    }

    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), CardError> {
        self.inner.ordinary("an upload")?;
        // SAFETY: callers name room of this card.
        unsafe { pointer(to).copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), CardError> {
        self.synchronise()?;
        // SAFETY: as above.
        unsafe {
            bytes
                .as_mut_ptr()
                .copy_from(pointer(from).cast_const(), bytes.len());
        }
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CardError> {
        self.inner.take(Work::Copy(from, to, bytes))
    }

    fn zero(&self, at: Address, bytes: usize) -> Result<(), CardError> {
        self.inner.take(Work::Zero(at, bytes))
    }

    fn launch(&self, launch: &Launch) -> Result<(), CardError> {
        self.inner.take(Work::Launch(launch.clone()))
    }

    fn gemm(&self, gemm: &Gemm) -> Result<bool, CardError> {
        self.inner.alive()?;
        if lock(&self.inner.plan).no_products {
            return Ok(false);
        }
        fits(gemm, &lock(&self.inner.state).taken)?;
        self.inner.take(Work::Gemm(*gemm)).map(|()| true)
    }

    fn synchronise(&self) -> Result<(), CardError> {
        self.inner.ordinary("waiting")?;
        self.inner.wait_for(self.inner.asked());
        Ok(())
    }

    fn memory(&self) -> Result<CardMemory, CardError> {
        let total = lock(&self.inner.plan).total;
        let mut state = lock(&self.inner.state);
        state.questions += 1;
        Ok(CardMemory {
            free: total.saturating_sub(state.used),
            total,
        })
    }

    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>, CardError> {
        Ok(Box::new(HostBytes::new(self, bytes)))
    }

    fn begin_capture(&self) -> Result<(), CardError> {
        self.inner.ordinary("to record")?;
        self.inner.accepts(Recording::Begin)?;
        lock(&self.inner.state).recording = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>, CardError> {
        let work = lock(&self.inner.state).recording.take();
        let work = work.ok_or_else(|| CardError::Failed("nothing is recorded".to_owned()))?;
        self.inner.accepts(Recording::End)?;
        Ok(Box::new(Recorded {
            card: self.clone(),
            work,
        }))
    }

    fn mark(&self) -> Result<Mark, CardError> {
        let mut state = lock(&self.inner.state);
        let asked = state.asked;
        state.marks.push((Instant::now(), asked));
        Ok(Mark(state.marks.len() - 1))
    }

    fn seconds(&self, from: Mark, to: Mark) -> Result<f64, CardError> {
        let state = lock(&self.inner.state);
        let at = |mark: Mark| {
            let passed = |(_, asked): &&(Instant, usize)| *asked <= state.awaited;
            let found = state.marks.get(mark.0).filter(passed);
            found
                .map(|(time, _)| *time)
                .ok_or_else(|| CardError::Failed("a mark that nobody waited for".to_owned()))
        };
        Ok(at(to)?.duration_since(at(from)?).as_secs_f64())
    }
}
