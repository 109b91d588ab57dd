//! An NVIDIA card through its driver, whose libraries are looked for when a card is opened: none is needed to start.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};

use super::card::{
    Address, Argument, Card, CardError, CardFacts, CardMemory, Gemm, Graph, Launch, Mark, Pinned,
};
use super::opening;
use pinned::PinnedBytes;
use products::Products;

mod pinned;
mod products;

/// Shared memory that a block may have without being allowed more.
const ORDINARY_SHARED: u32 = 48 << 10;
/// Noted times that are kept; the oldest are overwritten.
const MARKS: usize = 1 << 14;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The card of this process.
#[derive(Clone)]
pub struct Driver {
    inner: Arc<Inner>,
}

struct Inner {
    context: sys::CUcontext,
    module: sys::CUmodule,
    /// On which everything is computed.
    stream: sys::CUstream,
    /// On which weights come.
    uploads: sys::CUstream,
    facts: CardFacts,
    products: Products,
    kernels: Mutex<HashMap<&'static str, Kernel>>,
    marks: Mutex<Vec<sys::CUevent>>,
    marked: AtomicUsize,
}

#[derive(Clone, Copy)]
struct Kernel {
    function: sys::CUfunction,
    /// Bytes of shared memory that it has been allowed.
    allowed: u32,
}

// SAFETY: the driver's handles may be used by any thread to which the context is bound, which every function here does first.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver guards its own state.
unsafe impl Sync for Inner {}

/// What the driver's word means here.
fn told(error: DriverError, asked: usize) -> CardError {
    use CUresult as Code;
    let text = error
        .error_string()
        .ok()
        .and_then(|text| text.to_str().ok())
        .unwrap_or("no description");
    let detail = format!("{text} ({:?})", error.0);
    match error.0 {
        Code::CUDA_ERROR_OUT_OF_MEMORY => CardError::Memory { asked },
        // What follows on any of these fails too, until the process ends.
        Code::CUDA_ERROR_ECC_UNCORRECTABLE
        | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | Code::CUDA_ERROR_CONTAINED
        | Code::CUDA_ERROR_DEVICE_UNAVAILABLE
        | Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_LAUNCH_TIMEOUT
        | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
        | Code::CUDA_ERROR_ASSERT
        | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
        | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
        | Code::CUDA_ERROR_INVALID_PC
        | Code::CUDA_ERROR_LAUNCH_FAILED
        | Code::CUDA_ERROR_EXTERNAL_DEVICE
        | Code::CUDA_ERROR_UNKNOWN => CardError::Lost(detail),
        _ => CardError::Failed(detail),
    }
}

fn plain(error: DriverError) -> CardError {
    told(error, 0)
}

impl Driver {
    /// Opens the first card and loads a fat binary of kernels.
    ///
    /// # Errors
    /// What stands against it, for a person.
    pub fn open(kernels: &[u8]) -> Result<Self, String> {
        // SAFETY: looks for a library, and loads it where it is.
        if !unsafe { sys::is_culib_present() } {
            return Err(
                "the container has no libcuda.so.1, which NVIDIA's driver brings".to_owned(),
            );
        }
        let failed = |what: &str, error: DriverError| format!("{what}: {}", plain(error));
        result::init().map_err(|error| failed("the driver does not start", error))?;
        let mut version = 0;
        // SAFETY: the driver writes a number there.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }
            .result()
            .map_err(|error| failed("the driver does not tell its version", error))?;
        opening::check_version(version)?;
        opening::check_kernels(kernels)?;
        let count = result::device::get_count().map_err(|error| failed("no GPU", error))?;
        if count == 0 {
            return Err("the driver sees no GPU".to_owned());
        }
        let device = result::device::get(0).map_err(|error| failed("no GPU", error))?;
        let name = result::device::get_name(device).map_err(|error| failed("no GPU", error))?;
        let here = |error| failed(&name, error);
        // A thread that waits for the card sleeps: waiting awake takes a processor that the container may not have.
        let sleeps = sys::CUctx_flags::CU_CTX_SCHED_BLOCKING_SYNC as u32;
        // SAFETY: the device is one of the driver's.
        unsafe { sys::cuDevicePrimaryCtxSetFlags_v2(device, sleeps) }
            .result()
            .map_err(here)?;
        // SAFETY: as above.
        let context = unsafe { result::primary_ctx::retain(device) }.map_err(here)?;
        // SAFETY: as above.
        unsafe { result::ctx::set_current(context) }.map_err(here)?;
        let processors = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        // SAFETY: as above.
        let processors = unsafe { result::device::get_attribute(device, processors) };
        let processors = usize::try_from(processors.map_err(here)?).unwrap_or(1);
        // SAFETY: the driver reads as many bytes as the header says, and they are there.
        let module = unsafe { result::module::load_data(kernels.as_ptr().cast()) }
            .map_err(|error| failed(&format!("{name} cannot take the kernels"), error))?;
        let stream = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let (stream, uploads) = (stream().map_err(here)?, stream().map_err(here)?);
        let products = Products::new(stream)?;
        Ok(Self {
            inner: Arc::new(Inner {
                context,
                module,
                stream,
                uploads,
                facts: CardFacts { name, processors },
                products,
                kernels: Mutex::default(),
                marks: Mutex::default(),
                marked: AtomicUsize::new(0),
            }),
        })
    }
}

impl Inner {
    /// Binds the context to this thread.
    fn bind(&self) -> Result<(), CardError> {
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context) }.map_err(plain)
    }

    /// A kernel that may have so many bytes of shared memory.
    fn kernel(&self, name: &'static str, shared: u32) -> Result<sys::CUfunction, CardError> {
        let mut kernels = lock(&self.kernels);
        let mut kernel = if let Some(kernel) = kernels.get(name) {
            *kernel
        } else {
            let text = CString::new(name)
                .map_err(|_| CardError::Failed("a kernel's name with a zero".to_owned()))?;
            // SAFETY: the module is loaded.
            let function = unsafe { result::module::get_function(self.module, text) };
            let function = function.map_err(|error| {
                CardError::Failed(format!("the kernels have no {name}: {}", plain(error)))
            })?;
            Kernel {
                function,
                allowed: ORDINARY_SHARED,
            }
        };
        if shared > kernel.allowed {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
            // SAFETY: the function is the module's.
            unsafe { result::function::set_function_attribute(kernel.function, attribute, bytes) }
                .map_err(plain)?;
            kernel.allowed = shared;
        }
        kernels.insert(name, kernel);
        Ok(kernel.function)
    }
}

impl Card for Driver {
    fn facts(&self) -> &CardFacts {
        &self.inner.facts
    }

    fn allocate(&self, bytes: usize) -> Result<Address, CardError> {
        self.inner.bind()?;
        // SAFETY: whoever asks writes before reading.
        let address = unsafe { result::malloc_sync(bytes) };
        address.map(Address).map_err(|error| told(error, bytes))
    }

    fn free(&self, address: Address) {
        if self.inner.bind().is_ok() {
            // SAFETY: `allocate` gave it, and it is given back once; the driver waits for what uses it.
            let freed = unsafe { result::free_sync(address.0) };
            if let Err(error) = freed {
                tracing::debug!(error = %plain(error), "failed to give memory of the card back");
            }
        }
    }

    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), CardError> {
        self.inner.bind()?;
        // SAFETY: callers name room of this card; the driver has copied ordinary memory when it returns.
        unsafe { result::memcpy_htod_async(to.0, bytes, self.inner.stream) }.map_err(plain)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), CardError> {
        self.inner.bind()?;
        // SAFETY: callers name bytes of this card; they are waited for here.
        unsafe { result::memcpy_dtoh_async(bytes, from.0, self.inner.stream) }.map_err(plain)?;
        self.synchronise()
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CardError> {
        self.inner.bind()?;
        // SAFETY: callers name room of this card.
        unsafe { result::memcpy_dtod_async(to.0, from.0, bytes, self.inner.stream) }.map_err(plain)
    }

    fn zero(&self, at: Address, bytes: usize) -> Result<(), CardError> {
        self.inner.bind()?;
        // SAFETY: as above.
        unsafe { result::memset_d8_async(at.0, 0, bytes, self.inner.stream) }.map_err(plain)
    }

    fn launch(&self, launch: &Launch) -> Result<(), CardError> {
        self.inner.bind()?;
        let kernel = self.inner.kernel(launch.kernel, launch.shared)?;
        let mut values: Vec<u64> = launch.arguments.iter().map(Argument::bits).collect();
        let mut arguments: Vec<*mut c_void> = values
            .iter_mut()
            .map(|value| std::ptr::from_mut(value).cast())
            .collect();
        let ([x, y, z], [width, height, depth]) = (launch.grid, launch.block);
        // SAFETY: each argument is at least as wide as the kernel's parameter, little end first; launches are tested
        // against the kernels' table.
        unsafe {
            result::launch_kernel(
                kernel,
                (x, y, z),
                (width, height, depth),
                launch.shared,
                self.inner.stream,
                &mut arguments,
            )
        }
        .map_err(|error| match plain(error) {
            CardError::Failed(detail) => CardError::Failed(format!("{}: {detail}", launch.kernel)),
            other => other,
        })
    }

    fn gemm(&self, gemm: &Gemm) -> Result<bool, CardError> {
        self.inner.bind()?;
        self.inner.products.multiply(gemm)
    }

    fn synchronise(&self) -> Result<(), CardError> {
        self.inner.bind()?;
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::synchronize(self.inner.stream) }.map_err(plain)
    }

    fn memory(&self) -> Result<CardMemory, CardError> {
        self.inner.bind()?;
        let (free, total) = result::mem_get_info().map_err(plain)?;
        Ok(CardMemory { free, total })
    }

    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>, CardError> {
        self.inner.bind()?;
        Ok(Box::new(PinnedBytes::new(&self.inner, bytes)?))
    }

    fn begin_capture(&self) -> Result<(), CardError> {
        self.inner.bind()?;
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::begin_capture(self.inner.stream, mode) }.map_err(plain)
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>, CardError> {
        self.inner.bind()?;
        // SAFETY: as above.
        let graph = unsafe { result::stream::end_capture(self.inner.stream) }.map_err(plain)?;
        // SAFETY: the graph was just made.
        let whole =
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0)) };
        // SAFETY: as above; what was made of it does not need it.
        unsafe { result::graph::destroy(graph) }.map_err(plain)?;
        Ok(Box::new(Recorded {
            card: Arc::clone(&self.inner),
            whole: whole.map_err(plain)?,
        }))
    }

    fn mark(&self) -> Result<Mark, CardError> {
        self.inner.bind()?;
        let mark = self.inner.marked.fetch_add(1, Ordering::Relaxed) % MARKS;
        let mut marks = lock(&self.inner.marks);
        while marks.len() <= mark {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            marks.push(result::event::create(flags).map_err(plain)?);
        }
        // SAFETY: event and stream live as long as this.
        unsafe { result::event::record(marks[mark], self.inner.stream) }.map_err(plain)?;
        Ok(Mark(mark))
    }

    fn seconds(&self, from: Mark, to: Mark) -> Result<f64, CardError> {
        self.inner.bind()?;
        let marks = lock(&self.inner.marks);
        // SAFETY: as above; both were recorded.
        let milliseconds = unsafe { result::event::elapsed(marks[from.0], marks[to.0]) };
        Ok(f64::from(milliseconds.map_err(plain)?) / 1e3)
    }
}

struct Recorded {
    card: Arc<Inner>,
    whole: sys::CUgraphExec,
}

// SAFETY: used with the context bound, by one thread at a time.
unsafe impl Send for Recorded {}

impl Graph for Recorded {
    fn replay(&self) -> Result<(), CardError> {
        self.card.bind()?;
        // SAFETY: graph and stream live.
        unsafe { result::graph::launch(self.whole, self.card.stream) }.map_err(plain)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.card.bind().is_ok() {
            // SAFETY: made by `end_capture`, destroyed once; the driver waits for what runs.
            let _ = unsafe { result::graph::exec_destroy(self.whole) };
        }
    }
}
