//! What the backend asks of a card: memory, copies, launches and large products, all in one order. One implementation is
//! NVIDIA's driver, another plays a card on the host for tests.

use std::fmt;
use std::sync::Arc;

/// Why a card did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    /// There is no room for so many bytes.
    #[error("the card has no room{}", more(*asked))]
    Memory {
        /// Bytes; 0 where nobody says how many.
        asked: usize,
    },
    /// The host has no room for so many bytes that a card copies by itself.
    #[error("the host has no room for {asked} bytes that the card can reach")]
    Host {
        /// Bytes.
        asked: usize,
    },
    /// The card does not answer any more, or answers wrongly: only a new process can go on.
    #[error("the card is lost: {0}")]
    Lost(String),
    /// It cannot do this.
    #[error("the card failed: {0}")]
    Failed(String),
}

fn more(asked: usize) -> String {
    if asked == 0 {
        return String::new();
    }
    format!(" for {asked} bytes more")
}

/// A place in the card's memory; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Address(pub u64);

impl Address {
    /// So many bytes on.
    #[must_use]
    pub fn after(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// A pointer into the card's memory.
    Pointer(Address),
    /// `int`.
    Int(i32),
    /// `uint64_t`.
    Long(u64),
    /// `float`.
    Float(f32),
}

impl Argument {
    /// Its bits, in the low end of a word.
    #[must_use]
    pub fn bits(&self) -> u64 {
        match self {
            Self::Pointer(address) => address.0,
            Self::Int(number) => u64::from(number.cast_unsigned()),
            Self::Long(number) => *number,
            Self::Float(number) => u64::from(number.to_bits()),
        }
    }
}

impl From<Address> for Argument {
    fn from(address: Address) -> Self {
        Self::Pointer(address)
    }
}

impl From<usize> for Argument {
    /// Sizes that kernels take are checked when a model is loaded; a larger one would be clipped.
    fn from(number: usize) -> Self {
        Self::Int(i32::try_from(number).unwrap_or(i32::MAX))
    }
}

impl From<bool> for Argument {
    fn from(yes: bool) -> Self {
        Self::Int(i32::from(yes))
    }
}

impl From<f32> for Argument {
    fn from(number: f32) -> Self {
        Self::Float(number)
    }
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y and z.
    pub block: [u32; 3],
    /// Bytes of shared memory that the launch brings.
    pub shared: u32,
    /// As many as the kernel has parameters.
    pub arguments: Vec<Argument>,
}

/// What the numbers of a large product are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Number {
    /// IEEE single; products are not rounded to fewer bits.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl Number {
    /// Bytes of one.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// What addresses in a [`Gemm`] are multiples of, in bytes, as memory of a card is.
pub const ALIGNMENT: usize = 256;

/// `out = input * matrix^T` in f32: every row of the input with every row of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemm {
    /// What `input` and `matrix` hold.
    pub number: Number,
    /// Rows of the input.
    pub rows: usize,
    /// Rows of the matrix.
    pub outputs: usize,
    /// Numbers in a row of either.
    pub inputs: usize,
    /// `[rows][inputs]`.
    pub input: Address,
    /// `[outputs][inputs]`.
    pub matrix: Address,
    /// `[rows][stride]` of f32, of which the first `outputs` are written.
    pub out: Address,
    /// Numbers from one row of `out` to the next.
    pub stride: usize,
}

/// Memory of a card in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CardMemory {
    /// Not taken by anybody.
    pub free: usize,
    /// All.
    pub total: usize,
}

/// What is known of a card from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardFacts {
    /// As the driver calls it.
    pub name: String,
    /// Multiprocessors.
    pub processors: usize,
}

/// Launches that were recorded and are repeated as one.
pub trait Graph: Send {
    /// Does all of them again, on what the memory holds now.
    ///
    /// # Errors
    /// When the card fails.
    fn replay(&self) -> Result<(), CardError>;
}

/// Memory of the host that a card can copy from and to while the host goes on.
pub trait Pinned: Send {
    /// The bytes. They may be neither changed nor read between a copy and [`Pinned::wait`].
    fn bytes(&mut self) -> &mut [u8];

    /// Begins to copy the first `bytes` to the card, beside what the card computes.
    ///
    /// # Errors
    /// When the card fails.
    fn upload(&mut self, bytes: usize, to: Address) -> Result<(), CardError>;

    /// Copies the first `bytes`, or nothing, from the card when it has done what it was asked before.
    ///
    /// # Errors
    /// When the card fails.
    fn download(&mut self, bytes: usize, from: Address) -> Result<(), CardError>;

    /// Waits for the last copy.
    ///
    /// # Errors
    /// When the card fails, or failed before the copy.
    fn wait(&mut self) -> Result<(), CardError>;
}

/// A card. Whatever it is asked happens in the order of the asking, but for uploads from [`Pinned`] memory.
pub trait Card: Send + Sync {
    /// What is known of it.
    fn facts(&self) -> &CardFacts;

    /// Room for so many bytes, not yet written.
    ///
    /// # Errors
    /// [`CardError::Memory`] when there is none.
    fn allocate(&self, bytes: usize) -> Result<Address, CardError>;

    /// Gives room back.
    fn free(&self, address: Address);

    /// Copies from the host, whose bytes may be changed afterwards.
    ///
    /// # Errors
    /// When the card fails.
    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), CardError>;

    /// Copies to the host and waits for it, and so for everything before.
    ///
    /// # Errors
    /// When the card fails, now or in anything since the last wait.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), CardError>;

    /// Copies inside the card.
    ///
    /// # Errors
    /// When the card fails.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CardError>;

    /// Writes zeros.
    ///
    /// # Errors
    /// When the card fails.
    fn zero(&self, at: Address, bytes: usize) -> Result<(), CardError>;

    /// Runs a kernel.
    ///
    /// # Errors
    /// When there is no such kernel or the card fails.
    fn launch(&self, launch: &Launch) -> Result<(), CardError>;

    /// A large product; false where the card has no way to compute one of these sizes.
    ///
    /// # Errors
    /// When the card fails.
    fn gemm(&self, gemm: &Gemm) -> Result<bool, CardError>;

    /// Waits until everything is done.
    ///
    /// # Errors
    /// When the card failed in anything since the last wait.
    fn synchronise(&self) -> Result<(), CardError>;

    /// Memory now.
    ///
    /// # Errors
    /// When the card fails.
    fn memory(&self) -> Result<CardMemory, CardError>;

    /// Memory of the host for uploads beside the computing.
    ///
    /// # Errors
    /// When there is none.
    fn pinned(&self, bytes: usize) -> Result<Box<dyn Pinned>, CardError>;

    /// Records launches, products, copies and zeros from now on in place of doing them.
    ///
    /// # Errors
    /// When the card fails.
    fn begin_capture(&self) -> Result<(), CardError>;

    /// Ends that.
    ///
    /// # Errors
    /// When the card fails.
    fn end_capture(&self) -> Result<Box<dyn Graph>, CardError>;

    /// Notes the time at which the card comes to this point.
    ///
    /// # Errors
    /// When the card fails.
    fn mark(&self) -> Result<Mark, CardError>;

    /// Seconds between two marks that the card has passed.
    ///
    /// # Errors
    /// When the card has not passed them.
    fn seconds(&self, from: Mark, to: Mark) -> Result<f64, CardError>;
}

/// A noted time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub usize);

/// Room on a card, given back when dropped.
pub struct Buffer {
    card: Arc<dyn Card>,
    address: Address,
    bytes: usize,
}

impl Buffer {
    /// So many bytes of zeros.
    ///
    /// # Errors
    /// [`CardError::Memory`] when there is no room.
    pub fn zeroed(card: &Arc<dyn Card>, bytes: usize) -> Result<Self, CardError> {
        let buffer = Self::new(card, bytes)?;
        if bytes > 0 {
            card.zero(buffer.address, bytes)?;
        }
        Ok(buffer)
    }

    /// So many bytes that hold anything.
    ///
    /// # Errors
    /// [`CardError::Memory`] when there is no room.
    pub fn new(card: &Arc<dyn Card>, bytes: usize) -> Result<Self, CardError> {
        let address = if bytes == 0 {
            Address::default()
        } else {
            card.allocate(bytes)?
        };
        Ok(Self {
            card: Arc::clone(card),
            address,
            bytes,
        })
    }

    /// A copy of bytes of the host.
    ///
    /// # Errors
    /// [`CardError::Memory`] when there is no room.
    pub fn of(card: &Arc<dyn Card>, bytes: &[u8]) -> Result<Self, CardError> {
        let buffer = Self::new(card, bytes.len())?;
        if !bytes.is_empty() {
            card.upload(bytes, buffer.address)?;
        }
        Ok(buffer)
    }

    /// No room at all.
    #[must_use]
    pub fn none(card: &Arc<dyn Card>) -> Self {
        Self {
            card: Arc::clone(card),
            address: Address::default(),
            bytes: 0,
        }
    }

    /// Where it begins.
    #[must_use]
    pub fn address(&self) -> Address {
        self.address
    }

    /// How much it is.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.card.free(self.address);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes at {:#x}", self.bytes, self.address.0)
    }
}
