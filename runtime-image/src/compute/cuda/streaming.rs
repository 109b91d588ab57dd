//! Weights from files to the card: several threads read pieces into pinned memory of their own, from where the card copies
//! them while the next pieces are read. What has another form there is packed by the card.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::card::{Buffer, Card, CardError, Launch, Pinned};
use super::launches::{self, Factor, Kind, block_bytes, pack_blocks, pack_fp8};
use super::matrix::{Floats, as_they_are, kind_of};
use crate::compute::tensor::{self, Source};

/// Threads that read.
const READERS: usize = 4;
/// Pinned buffers of each: one is filled while the other is copied.
const BUFFERS: usize = 2;
/// Bytes of a buffer, and so of a piece at most.
const PIECE: usize = 8 << 20;
/// Pieces that wait for a reader.
const WAITING: usize = 64;

/// How a tensor's bytes become those of the card without the host's help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// They are the same.
    Same,
    /// The card takes blocks of GGUF apart.
    Blocks(Kind),
    /// The card rounds floats of this kind to eight bits.
    Rounded(Kind),
}

impl Way {
    /// None where the host has to pack them, or they are not as many as they should be.
    pub(super) fn of(source: &Source, floats: Floats) -> Option<Self> {
        use tensor::Kind as Of;
        let (kind, columns) = (source.kind, source.columns);
        let (numbers, size) = kind.block();
        let whole = columns.is_multiple_of(numbers)
            && source.rows * (columns / numbers) * size == source.bytes;
        let way = match (kind, kind_of(kind, columns, floats)) {
            _ if as_they_are(kind, columns, floats) => Self::Same,
            (Of::Q8_0, to @ Kind::Q8) | (Of::Q4_1, to @ Kind::Q4) | (Of::Q4_K, to @ Kind::Q4K) => {
                Self::Blocks(to)
            }
            (Of::F32, Kind::Fp8) => Self::Rounded(Kind::F32),
            (Of::F16, Kind::Fp8) => Self::Rounded(Kind::F16),
            (Of::BF16, Kind::Fp8) => Self::Rounded(Kind::Bf16),
            _ => return None,
        };
        (whole && way.unit(columns) <= PIECE).then_some(way)
    }

    /// Bytes of the file that are not torn apart.
    fn unit(self, columns: usize) -> usize {
        match self {
            Self::Same => 1,
            Self::Blocks(kind) => block_bytes(kind).map_or(1, |(bytes, _)| bytes),
            Self::Rounded(kind) => columns * kind.bytes(),
        }
    }

    /// What so many bytes of the file become: bytes of numbers, and of scales.
    pub(super) fn room(self, columns: usize, bytes: usize) -> (usize, usize) {
        let units = bytes / self.unit(columns).max(1);
        match self {
            Self::Same => (bytes, 0),
            Self::Blocks(kind) => {
                let scales = units * block_bytes(kind).map_or(0, |(_, scales)| scales);
                (bytes - scales, scales)
            }
            Self::Rounded(_) => (units * columns, units * 4),
        }
    }
}

/// A part of a file, and where it goes.
struct Piece {
    source: Source,
    offset: usize,
    bytes: usize,
    way: Way,
    to: Factor,
}

/// Where a matrix lies, which is kept until its pieces are there, whatever becomes of it.
type Room = [Arc<Buffer>; 2];

impl Piece {
    /// The launch that packs the piece where it has come to, if it is not the same on the card.
    fn packing(&self, at: &Buffer) -> Option<Launch> {
        let (from, columns) = (at.address(), self.source.columns);
        match self.way {
            Way::Same => None,
            Way::Blocks(kind) => {
                pack_blocks(from, kind, self.to, self.bytes / self.way.unit(columns))
            }
            Way::Rounded(kind) => {
                let rows = self.bytes / self.way.unit(columns);
                Some(pack_fp8((from, kind), self.to, rows, columns))
            }
        }
    }
}

/// Cuts a tensor whose place on the card is `to`.
fn pieces(source: &Source, way: Way, to: Factor) -> impl Iterator<Item = Piece> + '_ {
    let unit = way.unit(source.columns).max(1);
    let most = PIECE / unit * unit;
    (0..source.bytes).step_by(most).map(move |offset| {
        let (weights, scales) = way.room(source.columns, offset);
        Piece {
            source: source.clone(),
            offset,
            bytes: most.min(source.bytes - offset),
            way,
            to: Factor {
                weights: to.weights.after(weights),
                scales: to.scales.after(scales),
                ..to
            },
        }
    })
}

/// The readers. Dropped before everything has come, it stops them.
pub(super) struct Streaming {
    /// Absent once no more come.
    pieces: Option<SyncSender<(Piece, Room)>>,
    readers: Vec<JoinHandle<Result<(), String>>>,
    stopped: Arc<AtomicBool>,
}

impl Streaming {
    /// Starts the readers.
    pub(super) fn start(card: &Arc<dyn Card>) -> Result<Self, String> {
        let (pieces, receiver) = sync_channel(WAITING);
        let receiver = Arc::new(Mutex::new(receiver));
        let stopped = Arc::new(AtomicBool::new(false));
        let readers = (0..READERS).map(|number| {
            let buffer = || Ok((card.pinned(PIECE)?, None));
            let buffers = (0..BUFFERS).map(|_| buffer());
            let buffers: Vec<_> = buffers
                .collect::<Result<_, _>>()
                .map_err(|error: CardError| format!("no pinned memory for weights: {error}"))?;
            let reader = Reader {
                card: Arc::clone(card),
                buffers,
                arrived: None,
                stopped: Arc::clone(&stopped),
            };
            let receiver = Arc::clone(&receiver);
            thread::Builder::new()
                .name(format!("weights-{number}"))
                .spawn(move || reader.read(&receiver))
                .map_err(|error| format!("failed to start a thread for weights: {error}"))
        });
        let readers = readers.collect::<Result<_, _>>()?;
        Ok(Self {
            pieces: Some(pieces),
            readers,
            stopped,
        })
    }

    /// Has a tensor brought to the card.
    pub(super) fn bring(&self, source: &Source, way: Way, to: Factor, room: &Room) {
        let Some(sender) = &self.pieces else {
            return;
        };
        for piece in pieces(source, way, to) {
            // Nobody takes it only when every reader has failed, which shows at the end.
            if sender.send((piece, room.clone())).is_err() {
                return;
            }
        }
    }

    /// Waits until everything has come.
    pub(super) fn finish(mut self) -> Result<(), String> {
        self.pieces = None;
        let mut outcome = Ok(());
        for reader in self.readers.drain(..) {
            let ended = reader
                .join()
                .unwrap_or_else(|_| Err("a thread for weights panicked".to_owned()));
            outcome = outcome.and(ended);
        }
        outcome
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.pieces = None;
        for reader in self.readers.drain(..) {
            // What it says is not asked for any more.
            let _ = reader.join();
        }
    }
}

/// What a thread that reads has.
struct Reader {
    card: Arc<dyn Card>,
    /// Each with the room to which it is copied.
    buffers: Vec<(Box<dyn Pinned>, Option<Room>)>,
    /// Room on the card for a piece that is packed there, once there was one.
    arrived: Option<Buffer>,
    /// Whether nobody wants the pieces any more.
    stopped: Arc<AtomicBool>,
}

impl Reader {
    /// Reads pieces until there are no more.
    fn read(mut self, pieces: &Mutex<Receiver<(Piece, Room)>>) -> Result<(), String> {
        let told = |error: CardError| error.to_string();
        let mut next = 0;
        loop {
            let piece = pieces.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((piece, room)) = piece else {
                break;
            };
            if self.stopped.load(Ordering::Relaxed) {
                break;
            }
            let (buffer, held) = &mut self.buffers[next];
            buffer.wait().map_err(told)?;
            *held = Some(room);
            let at = piece.source.start + piece.offset as u64;
            let bytes = &mut buffer.bytes()[..piece.bytes];
            let read = piece.source.file.read_exact_at(bytes, at);
            read.map_err(|error| {
                let path = piece.source.path.display();
                format!(
                    "{path}: {error} while reading {} bytes at {at}",
                    piece.bytes
                )
            })?;
            self.deliver(&piece, next).map_err(told)?;
            next = (next + 1) % BUFFERS;
        }
        self.buffers
            .iter_mut()
            .try_for_each(|(buffer, _)| buffer.wait().map_err(told))
    }

    /// Has a piece that was read copied, and packed where it must be.
    fn deliver(&mut self, piece: &Piece, buffer: usize) -> Result<(), CardError> {
        let (buffer, _) = &mut self.buffers[buffer];
        if piece.way == Way::Same {
            return buffer.upload(piece.bytes, piece.to.weights);
        }
        let arrived = match self.arrived.take() {
            Some(room) => room,
            None => Buffer::new(&self.card, PIECE)?,
        };
        buffer.upload(piece.bytes, arrived.address())?;
        buffer.wait()?;
        if let Some(launch) = piece.packing(&arrived) {
            launches::check(&launch)?;
            self.card.launch(&launch)?;
        }
        // The next piece takes its place.
        self.card.synchronise()?;
        self.arrived = Some(arrived);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::card::Address;
    use super::*;

    fn source(kind: tensor::Kind, rows: usize, columns: usize) -> Source {
        let (numbers, size) = kind.block();
        Source {
            kind,
            rows,
            columns,
            file: Arc::new(tempfile::tempfile().expect("a file")),
            path: "weights".into(),
            start: 0,
            bytes: rows * columns / numbers * size,
        }
    }

    #[test]
    fn the_card_packs_what_it_has_kernels_for() {
        use tensor::Kind as Of;
        let way = |kind, columns, floats| Way::of(&source(kind, 3, columns), floats);
        assert_eq!(way(Of::BF16, 64, Floats::Bf16), Some(Way::Same));
        assert_eq!(way(Of::F32, 64, Floats::F32), Some(Way::Same));
        let rounded = Some(Way::Rounded(Kind::Bf16));
        assert_eq!(way(Of::BF16, 64, Floats::Fp8), rounded);
        for (kind, to) in [
            (Of::Q8_0, Kind::Q8),
            (Of::Q4_1, Kind::Q4),
            (Of::Q4_K, Kind::Q4K),
        ] {
            assert_eq!(way(kind, 256, Floats::Bf16), Some(Way::Blocks(to)));
            // The host widens them.
            assert_eq!(way(kind, 256, Floats::F32), None);
        }
        assert_eq!(way(Of::F16, 64, Floats::Bf16), None);
        assert_eq!(way(Of::Q6_K, 256, Floats::Bf16), None);
        // Rows that are filled up, or too long for a piece.
        assert_eq!(way(Of::BF16, 13, Floats::Bf16), None);
        assert_eq!(way(Of::F32, PIECE, Floats::Fp8), None);
        let short = Source {
            bytes: 100,
            ..source(Of::Q8_0, 3, 256)
        };
        assert_eq!(Way::of(&short, Floats::Bf16), None);
    }

    #[test]
    fn pieces_are_all_of_a_tensor_and_lie_side_by_side_on_the_card() {
        use tensor::Kind as Of;
        for (kind, floats) in [
            (Of::BF16, Floats::Bf16),
            (Of::BF16, Floats::Fp8),
            (Of::F32, Floats::Fp8),
            (Of::Q8_0, Floats::Bf16),
            (Of::Q4_1, Floats::Bf16),
            (Of::Q4_K, Floats::Bf16),
        ] {
            let source = source(kind, 7_001, 5_120);
            let way = Way::of(&source, floats).expect("the card packs them");
            let to = Factor {
                weights: Address(1 << 20),
                scales: Address(1 << 40),
                ..Factor::default()
            };
            let (mut read, mut numbers, mut scales) = (0, 0, 0);
            for piece in pieces(&source, way, to) {
                assert!(piece.bytes > 0 && piece.bytes <= PIECE);
                assert_eq!(piece.offset, read);
                assert_eq!(piece.to.weights, to.weights.after(numbers));
                assert_eq!(piece.to.scales, to.scales.after(scales));
                let room = way.room(source.columns, piece.bytes);
                (read, numbers, scales) = (read + piece.bytes, numbers + room.0, scales + room.1);
            }
            assert_eq!(read, source.bytes, "{kind:?}");
            assert_eq!((numbers, scales), way.room(source.columns, source.bytes));
        }
    }
}
