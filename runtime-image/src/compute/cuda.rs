//! The backend of an NVIDIA card: own kernels (`kernels/` beside the sources), launched in one order on one stream.
//!
//! [`card`] is what is asked of the card, [`launches`] how each kernel is launched, [`matrix`] how weights lie, [`told`] what a
//! step's kernels are told, [`graphs`] which decode steps are recorded and repeated.
//! Nothing is allocated in a step but buffers that grow with the longest one so far. What goes wrong is kept until it is asked
//! for ([`super::backend::Backend::fault`]); nothing is launched after it.

use std::cell::RefCell;
use std::sync::Arc;

use self::card::{Address, Buffer, Card, CardError, Launch};
use self::choosing::Choosing;
use self::graphs::Graphs;
use self::launches::{Factor, Kind, MOST_BLOCKS, Seen, Target, pitch};
use self::matrix::Floats;
use self::measuring::{Measuring, Part};
use self::streaming::Streaming;
use self::told::{Attended, Attending, Entries, Told};

mod backend;
pub mod card;
mod choosing;
#[cfg(feature = "cuda")]
pub mod driver;
#[cfg(feature = "emulated-card")]
pub mod emulated;
pub mod graphs;
pub mod launches;
pub mod matrix;
mod measuring;
pub mod opening;
mod streaming;
pub mod told;
mod vision;

/// Bytes for parts of attention, and for matrices that are made floats for a large product.
const SCRATCH: usize = 64 << 20;
/// Rows of a step whose tokens are chosen at most: as many as sequences can run.
const MOST_CHOICES: usize = 256;
/// Rows of a picture at most: those that norms pick are told as a part of `0, 1, 2, …`.
const MOST_ROWS: usize = 1 << 16;

/// How a card computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What floats become.
    pub floats: Floats,
    /// Whether a row has the same bits whatever is computed beside it.
    pub invariant: bool,
    /// Whether decode steps are recorded and repeated.
    pub graphs: bool,
    /// Rows of one step whose tokens are chosen at most.
    pub rows: usize,
    /// Bytes for what does not outlive a launch, twice.
    pub scratch: usize,
}

impl Settings {
    /// As fast as the card can, for weights of this type, as files name it.
    #[must_use]
    pub fn new(main_type: &str) -> Self {
        let floats = match main_type {
            "F32" => Floats::F32,
            "F16" => Floats::F16,
            _ => Floats::Bf16,
        };
        Self {
            floats,
            invariant: false,
            graphs: true,
            rows: MOST_CHOICES,
            scratch: SCRATCH,
        }
    }
}

/// A card with one model.
pub struct Cuda {
    card: Arc<dyn Card>,
    settings: Settings,
    fault: RefCell<Option<CardError>>,
    /// `0, 1, 2, …`
    numbers: Buffer,
    /// Words of the present step.
    step: Buffer,
    told: Told,
    /// Words of what rows see, by number.
    looks: Vec<Looks>,
    /// Parts of attention.
    parts: Buffer,
    /// A part of a matrix as floats.
    widened: Buffer,
    /// What was read last.
    host: Vec<f32>,
    graphs: Graphs,
    /// Absent only while it is used.
    choosing: Option<Choosing>,
    measuring: RefCell<Measuring>,
    /// Absent once all weights have come.
    streaming: RefCell<Option<Streaming>>,
}

/// What rows see under one number.
struct Looks {
    buffer: Buffer,
    words: Vec<u32>,
    attended: Attended,
}

/// Rows of f32.
pub struct Rows {
    buffer: Buffer,
    width: usize,
}

/// Rows as products take them.
pub struct Input {
    buffer: Buffer,
    width: usize,
}

/// Weights on the card.
pub struct Matrix {
    kind: Kind,
    outputs: usize,
    /// Numbers of a row, those included that fill it up.
    columns: usize,
    weights: Arc<Buffer>,
    scales: Arc<Buffer>,
}

impl Rows {
    fn row(&self, row: usize) -> Address {
        self.buffer.address().after(row * self.width * 4)
    }
}

impl Matrix {
    fn factor(&self, out: Address) -> Factor {
        Factor {
            weights: self.weights.address(),
            scales: self.scales.address(),
            out,
            outputs: self.outputs,
        }
    }
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Cuda {
    /// A backend for one model on this card.
    ///
    /// # Errors
    /// When the card has no room for what every model takes.
    pub fn new(card: Arc<dyn Card>, settings: Settings) -> Result<Self, CardError> {
        let numbers: Vec<u8> = (0..MOST_ROWS as u32).flat_map(u32::to_le_bytes).collect();
        Ok(Self {
            numbers: Buffer::of(&card, &numbers)?,
            step: Buffer::none(&card),
            told: Told::default(),
            looks: Vec::new(),
            parts: Buffer::new(&card, settings.scratch)?,
            widened: Buffer::new(&card, settings.scratch)?,
            host: Vec::new(),
            graphs: Graphs::new(settings.graphs),
            choosing: Some(Choosing::new(&card, settings.rows)?),
            measuring: RefCell::default(),
            streaming: RefCell::new(None),
            fault: RefCell::new(None),
            card,
            settings,
        })
    }

    fn input_kind(&self) -> Kind {
        self.settings.floats.input()
    }

    fn attending(&self, width: usize) -> Attending {
        let halves = self.settings.floats.arena() != Kind::F32;
        Attending::new(width, halves, self.settings.invariant)
    }

    fn target(&self, out: &Input) -> Target {
        Target {
            at: out.buffer.address(),
            kind: self.input_kind(),
            width: out.width,
        }
    }

    /// Keeps the first fault.
    fn note<T>(&self, outcome: Result<T, CardError>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault.borrow_mut().get_or_insert(error);
                None
            }
        }
    }

    fn sound(&self) -> bool {
        self.fault.borrow().is_none()
    }

    fn launch(&self, launch: &Launch) {
        // A kernel for no row at all is no launch for a card.
        if self.sound() && !launch.grid.contains(&0) {
            self.measure(Part::of(launch.kernel));
            self.note(launches::check(launch).and_then(|()| self.card.launch(launch)));
        }
    }

    /// A buffer, or none after a fault.
    fn buffer(&self, made: Result<Buffer, CardError>) -> Buffer {
        self.note(made).unwrap_or_else(|| Buffer::none(&self.card))
    }

    fn word(&self, at: usize) -> Address {
        self.step.address().after(at * 4)
    }

    /// Where the card finds these row numbers.
    fn picked(&self, picked: &[usize]) -> Address {
        let told = [self.told.sighted, self.told.wanted];
        let same = |at: &usize| {
            let words = self.told.words.get(*at..*at + picked.len());
            words.is_some_and(|words| {
                let words = words.iter().map(|word| *word as usize);
                words.eq(picked.iter().copied())
            })
        };
        if let Some(at) = told.iter().find(|at| same(at)) {
            return self.word(*at);
        }
        let first = picked.first().copied().unwrap_or(0);
        let consecutive = picked.iter().copied().eq(first..first + picked.len());
        if !consecutive || first + picked.len() > MOST_ROWS {
            let detail = "rows were picked that nobody told of".to_owned();
            self.note::<()>(Err(CardError::Failed(detail)));
        }
        self.numbers.address().after(first * 4)
    }

    /// Attention as the entries say it.
    fn attend_to(&self, attention: &launches::Attention, (base, told): (Address, &Attended)) {
        let seen = |entries: Entries| Seen {
            entries: base.after(entries.at * 4),
            count: entries.count,
            spans: base.after(told.spans * 4),
            blocks: base,
        };
        let (rows, tiles) = (seen(told.rows), seen(told.tiles));
        if tiles.count > 0
            && let Some(launch) = launches::attend_tile(attention, tiles)
        {
            self.launch(&launch);
        }
        if rows.count == 0 {
            return;
        }
        let attending = self.attending(attention.heads.width);
        let (partial, sums) = launches::partial_bytes(attention.heads, told.splits);
        let together = (self.settings.scratch / (partial + sums)).min(MOST_BLOCKS);
        if attending == Attending::Plain || together == 0 {
            self.launch(&launches::attend_any(attention, rows));
            return;
        }
        for first in (0..rows.count).step_by(together) {
            let count = together.min(rows.count - first);
            let some = Seen {
                entries: rows.entries.after(first * 16),
                count,
                ..rows
            };
            let parts = self.parts.address();
            let parts = (parts, parts.after(count * partial));
            let launches = launches::attend_split(attention, some, told.splits, parts);
            for launch in launches.iter().flatten() {
                self.launch(launch);
            }
        }
    }

    /// Brings words to a buffer, which grows where it must; true when it has moved.
    fn write(&self, words: &[u32], buffer: &mut Buffer) -> bool {
        let bytes = bytes_of(words);
        let moves = bytes.len() > buffer.bytes();
        if moves {
            let room = bytes.len().next_power_of_two().max(1 << 12);
            *buffer = self.buffer(Buffer::new(&self.card, room));
        }
        if self.sound() && !bytes.is_empty() {
            self.note(self.card.upload(&bytes, buffer.address()));
        }
        moves
    }

    fn read_bytes(&mut self, from: Address, count: usize, kind: Kind) -> Vec<f32> {
        let mut bytes = vec![0; count * kind.bytes()];
        if self.sound() && count > 0 {
            let outcome = self.card.download(from, &mut bytes);
            if self.note(outcome).is_none() {
                bytes.fill(0);
            }
        }
        let halves = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
        match kind {
            Kind::F16 => halves
                .map(|b| half::f16::from_le_bytes(b).to_f32())
                .collect(),
            Kind::F32 => bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            _ => halves
                .map(|b| half::bf16::from_le_bytes(b).to_f32())
                .collect(),
        }
    }
}

/// Bytes of an input of so many rows.
fn input_bytes(rows: usize, width: usize, kind: Kind) -> usize {
    rows * pitch(width) * kind.bytes()
}
