//! The kernels compiled for this machine's processor, and memory that ends before a page which may not be touched.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::OnceLock;

use libloading::Library;

type Launch =
    unsafe extern "C" fn(*const c_char, *const u32, *const u32, u32, *mut *mut c_void) -> c_int;

/// The shared object of `hack/cuda-emulated`.
pub(crate) struct Card {
    launch: Launch,
    error: unsafe extern "C" fn() -> *const c_char,
    reverse: unsafe extern "C" fn(c_int),
    allocate: unsafe extern "C" fn(usize) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void, usize),
    _library: Library,
}

/// Numbers that kernels read and write.
pub(crate) struct Memory<T: Copy> {
    at: *mut T,
    count: usize,
}

/// One argument of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    Pointer(*mut c_void),
    Int(i32),
    Long(u64),
    Float(f32),
}

/// The card of all tests.
pub(crate) fn card() -> &'static Card {
    static CARD: OnceLock<Card> = OnceLock::new();
    CARD.get_or_init(|| {
        let name = "CHANDLER_EMULATED_KERNELS";
        let path = std::env::var_os(name)
            .expect("CHANDLER_EMULATED_KERNELS is not set: run `make cuda-test`");
        // SAFETY: our own shared object, whose symbols have these types by the kernels' README.
        unsafe {
            let library = Library::new(&path).expect("the shared object loads");
            Card {
                launch: *library.get(b"emulated_launch\0").expect("symbol"),
                error: *library.get(b"emulated_error\0").expect("symbol"),
                reverse: *library.get(b"emulated_reverse\0").expect("symbol"),
                allocate: *library.get(b"emulated_allocate\0").expect("symbol"),
                free: *library.get(b"emulated_free\0").expect("symbol"),
                _library: library,
            }
        }
    })
}

impl Card {
    /// The outcome of a launch: its status and what was wrong.
    pub(crate) fn outcome(
        &self,
        name: &str,
        grid: [usize; 3],
        threads: u32,
        shared: usize,
        arguments: &[Argument],
    ) -> (i32, String) {
        let name = CString::new(name).expect("a name");
        let grid = grid.map(|blocks| blocks as u32);
        let mut values: Vec<u64> = arguments
            .iter()
            .map(|argument| match *argument {
                Argument::Pointer(at) => at as u64,
                Argument::Int(number) => u64::from(number.cast_unsigned()),
                Argument::Long(number) => number,
                Argument::Float(number) => u64::from(number.to_bits()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = values
            .iter_mut()
            .map(|value| std::ptr::from_mut(value).cast())
            .collect();
        // SAFETY: the pointers name values of the kernel's own types; what those point at is kept by the caller.
        let status = unsafe {
            (self.launch)(
                name.as_ptr(),
                grid.as_ptr(),
                [threads, 1, 1].as_ptr(),
                shared as u32,
                pointers.as_mut_ptr(),
            )
        };
        // SAFETY: a text that ends, valid until the next launch of this thread.
        let error = unsafe { CStr::from_ptr((self.error)()) };
        (status, error.to_string_lossy().into_owned())
    }

    /// A launch that must go well.
    pub(crate) fn launch(
        &self,
        name: &str,
        grid: [usize; 3],
        threads: u32,
        shared: usize,
        arguments: &[Argument],
    ) {
        let (status, error) = self.outcome(name, grid, threads, shared, arguments);
        assert_eq!(status, 0, "{name}: {error}");
    }

    /// What `work` gives, which must not depend on the order in which threads run.
    pub(crate) fn both_ways<R: PartialEq + std::fmt::Debug>(&self, work: impl Fn() -> R) -> R {
        let results = [0, 1].map(|reverse| {
            // SAFETY: sets a flag of this thread.
            unsafe { (self.reverse)(reverse) };
            work()
        });
        // SAFETY: as above.
        unsafe { (self.reverse)(0) };
        let [forwards, backwards] = results;
        assert!(
            forwards == backwards,
            "the order of the threads shows in the result"
        );
        forwards
    }
}

impl<T: Copy> Memory<T> {
    /// Room that holds no numbers yet.
    pub(crate) fn new(count: usize) -> Self {
        // SAFETY: room for so many, all bits set.
        let at = unsafe { (card().allocate)(count * size_of::<T>()) };
        assert!(!at.is_null());
        Self {
            at: at.cast(),
            count,
        }
    }

    pub(crate) fn of(values: &[T]) -> Self {
        let memory = Self::new(values.len());
        // SAFETY: as long as the values.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), memory.at, values.len()) };
        memory
    }

    pub(crate) fn read(&self) -> Vec<T> {
        // SAFETY: all bits are set at the start, which every type here takes as a value.
        unsafe { std::slice::from_raw_parts(self.at, self.count) }.to_vec()
    }
}

impl<T: Copy> Drop for Memory<T> {
    fn drop(&mut self) {
        // SAFETY: allocated so in `new`.
        unsafe { (card().free)(self.at.cast(), self.count * size_of::<T>()) };
    }
}

impl<T: Copy> From<&Memory<T>> for Argument {
    fn from(memory: &Memory<T>) -> Self {
        Self::Pointer(memory.at.cast())
    }
}

impl From<()> for Argument {
    fn from((): ()) -> Self {
        Self::Pointer(std::ptr::null_mut())
    }
}

impl From<usize> for Argument {
    fn from(number: usize) -> Self {
        Self::Int(i32::try_from(number).expect("a small number"))
    }
}

impl From<u64> for Argument {
    fn from(number: u64) -> Self {
        Self::Long(number)
    }
}

impl From<f32> for Argument {
    fn from(number: f32) -> Self {
        Self::Float(number)
    }
}

/// The arguments of a kernel.
macro_rules! arguments {
    ($($argument:expr),* $(,)?) => { [$(crate::card::Argument::from($argument)),*] };
}
pub(crate) use arguments;
