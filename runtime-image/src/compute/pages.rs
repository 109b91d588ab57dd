//! Memory for weights, keys and values: large pieces that the system is asked to back with huge pages.
//!
//! Every weight is read once a step, and with pages of 4 KiB a core spends half of that time on looking up where they are.
//! So matrices lie in pieces that they share: most of them are smaller than one huge page.
//!
//! The system clears a page when it is first touched, which takes longer than packing weights into it. So a thread beside the
//! one that packs [expected](expect) matrices touches the memory before it, a window at a time, from the other end; and
//! keys and values find [a little](Ahead) of theirs touched while nobody waited for it.

use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Bytes of a piece that is not [expected](expect); what is not used of it takes address space only.
const PIECE: usize = 64 << 20;
/// Bytes of a cache line, to which everything here is aligned.
pub(super) const LINE: usize = 64;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Bytes that are touched ahead at most.
const WINDOW: usize = 64 << 20;
/// Bytes that are touched by one call, so that two who come from both ends meet.
const STRIDE: usize = 8 << 20;

/// Bytes that are touched before whoever writes from the first number on.
const AHEAD: usize = 24 << 20;

/// Zeroed memory that begins on a cache line.
struct Piece {
    start: *mut u8,
    size: usize,
    /// Owns what `start` points into.
    _memory: Vec<u64>,
}

// SAFETY: the memory is reached through `Aligned` only, each of which has bytes of its own.
unsafe impl Send for Piece {}
// SAFETY: as above.
unsafe impl Sync for Piece {}

static FILLING: Mutex<Filling> = Mutex::new(Filling {
    piece: None,
    taken: 0,
    touched: usize::MAX,
    touching: None,
});

struct Filling {
    /// The piece that is being filled.
    piece: Option<Arc<Piece>>,
    /// Bytes of it that are taken.
    taken: usize,
    /// Bytes of it that are touched, or will be soon; beyond its end where it was not expected.
    touched: usize,
    touching: Option<JoinHandle<()>>,
}

/// Prepares memory for matrices of so many bytes.
pub(crate) fn expect(bytes: usize) {
    let mut filling = filling();
    // Each matrix is rounded up to lines.
    filling.piece = Some(Arc::new(Piece::new(bytes + bytes / 64)));
    filling.taken = 0;
    filling.touched = 0;
    filling.touch(WINDOW);
}

/// Gives back what was touched for expected matrices that did not come.
pub(crate) fn expect_no_more() {
    let mut filling = filling();
    let Some(piece) = filling.piece.take() else {
        return;
    };
    if let Some(touching) = filling.touching.take() {
        // It cannot panic, and has nothing to tell.
        let _ = touching.join();
    }
    piece.advise(filling.taken..piece.size, rustix::mm::Advice::LinuxDontNeed);
}

fn filling() -> MutexGuard<'static, Filling> {
    FILLING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Filling {
    fn take(&mut self, length: usize) -> (Arc<Piece>, usize) {
        let fits = |piece: &&Arc<Piece>| piece.size - self.taken >= length;
        let piece = if let Some(piece) = self.piece.as_ref().filter(fits) {
            Arc::clone(piece)
        } else {
            self.taken = 0;
            self.touched = usize::MAX;
            let piece = Arc::new(Piece::new(length.max(PIECE)));
            Arc::clone(self.piece.insert(piece))
        };
        let offset = self.taken;
        self.taken += length;
        if self.taken > self.touched {
            self.touch(self.taken.next_multiple_of(WINDOW));
        }
        (piece, offset)
    }

    /// Has the memory up to `end` touched by a thread of its own.
    fn touch(&mut self, end: usize) {
        let Some(piece) = self.piece.clone() else {
            return;
        };
        let range = self.touched..end.min(piece.size);
        self.touched = range.end;
        let touch = move || {
            for first in range.clone().step_by(STRIDE).rev() {
                let stride = first..(first + STRIDE).min(range.end);
                piece.advise(stride, rustix::mm::Advice::LinuxPopulateWrite);
            }
        };
        // Without the thread the pages come when they are written.
        let thread = thread::Builder::new().name("pages".to_owned()).spawn(touch);
        self.touching = thread.ok();
    }
}

/// Bytes that start on a cache line.
pub(crate) struct Aligned {
    piece: Arc<Piece>,
    offset: usize,
    length: usize,
}

impl Aligned {
    /// So many zeros, rounded up to whole lines.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let length = bytes.next_multiple_of(LINE);
        let (piece, offset) = filling().take(length);
        Self {
            piece,
            offset,
            length,
        }
    }

    /// The same in memory that is shared with nothing else: what does not live as long as weights do.
    pub(crate) fn alone(bytes: usize) -> Self {
        let length = bytes.next_multiple_of(LINE);
        Self {
            piece: Arc::new(Piece::new(length)),
            offset: 0,
            length,
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the piece has these bytes, and no other `Aligned` does.
        unsafe { std::slice::from_raw_parts(self.piece.start.add(self.offset), self.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.piece.start.add(self.offset), self.length) }
    }

    pub(crate) fn signed(&self) -> &[i8] {
        let bytes = self.bytes();
        // SAFETY: the same bytes; any of them is a signed one too.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) }
    }

    pub(crate) fn signed_mut(&mut self) -> &mut [i8] {
        let bytes = self.bytes_mut();
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) }
    }
}

/// Floats, zero at first, that are written from the first on.
pub struct Ahead {
    piece: Arc<Piece>,
    count: usize,
    /// Bytes that are touched, or will be soon.
    touched: usize,
}

impl Ahead {
    /// So many zeros.
    pub(crate) fn zeroed(count: usize) -> Self {
        Self {
            piece: Arc::new(Piece::new(count * size_of::<f32>())),
            count,
            touched: 0,
        }
    }

    /// Says that the first `count` numbers are in use: those after them are touched by a thread that makes way for others.
    pub(crate) fn reach(&mut self, count: usize) {
        let used = count * size_of::<f32>();
        if self.touched >= used + AHEAD / 2 || self.touched == self.piece.size {
            return;
        }
        let end = (used + AHEAD).min(self.piece.size);
        let range = self.touched.max(used)..end;
        self.touched = end;
        let piece = Arc::clone(&self.piece);
        let touch = move || {
            let _ = rustix::process::nice(19);
            piece.advise(range, rustix::mm::Advice::LinuxPopulateWrite);
        };
        // Without the thread the pages come when they are written.
        let _ = thread::Builder::new().name("pages".to_owned()).spawn(touch);
    }
}

impl Deref for Ahead {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: the piece has these numbers, and nothing else reaches them.
        unsafe { std::slice::from_raw_parts(self.piece.start.cast(), self.count) }
    }
}

impl DerefMut for Ahead {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.piece.start.cast(), self.count) }
    }
}

impl Piece {
    fn new(size: usize) -> Self {
        let mut memory: Vec<u64> = zeros((size + LINE) / size_of::<u64>());
        let start: *mut u8 = memory.as_mut_ptr().cast();
        Self {
            start: start.wrapping_add(start.align_offset(LINE)),
            size,
            _memory: memory,
        }
    }

    /// Gives advice that changes no byte that is taken on the huge pages that begin in a range and end in the piece.
    fn advise(&self, range: Range<usize>, advice: rustix::mm::Advice) {
        let skipped = self.start.align_offset(HUGE);
        let page = |at: usize| at.saturating_sub(skipped).next_multiple_of(HUGE) + skipped;
        let last = self.size.saturating_sub(skipped) / HUGE * HUGE + skipped;
        let pages = page(range.start)..page(range.end).min(last);
        if pages.is_empty() {
            return;
        }
        // SAFETY: the bytes belong to the piece, and nobody has taken those whose content the advice may change.
        let _ = unsafe {
            rustix::mm::madvise(
                self.start.wrapping_add(pages.start).cast(),
                pages.len(),
                advice,
            )
        };
    }
}

/// So many zeros, on huge pages where the system has them. The system gives memory when it is first touched.
pub(crate) fn zeros<T: Clone + Default>(count: usize) -> Vec<T> {
    let mut memory = vec![T::default(); count];
    #[cfg(target_os = "linux")]
    {
        let first: *mut u8 = memory.as_mut_ptr().cast();
        let skipped = first.align_offset(HUGE);
        let pages = (size_of::<T>() * count).saturating_sub(skipped) / HUGE;
        if pages > 0 {
            // SAFETY: these pages belong to `memory`, and this advice changes no byte of them.
            let _ = unsafe {
                rustix::mm::madvise(
                    first.wrapping_add(skipped).cast(),
                    pages * HUGE,
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
        }
    }
    memory
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_gets_zeros_of_his_own_on_a_line_of_its_own() {
        let mut all: Vec<Aligned> = [1, 64, 0, 100_000, PIECE + 1, 65]
            .iter()
            .map(|bytes| Aligned::zeroed(*bytes))
            .collect();
        for (index, aligned) in all.iter_mut().enumerate() {
            assert!(aligned.bytes().iter().all(|byte| *byte == 0));
            assert_eq!(aligned.bytes().as_ptr().align_offset(LINE), 0);
            aligned.bytes_mut().fill(index as u8 + 1);
        }
        for (index, aligned) in all.iter().enumerate() {
            assert!(aligned.bytes().iter().all(|byte| *byte == index as u8 + 1));
        }
        assert_eq!(all[4].bytes().len(), PIECE + 64);
    }

    #[test]
    fn what_is_expected_is_zeros_whether_it_comes_or_not() {
        expect(3 * WINDOW / 2);
        let mut first = Aligned::zeroed(WINDOW / 2);
        let mut second = Aligned::zeroed(WINDOW);
        assert!(first.bytes().iter().all(|byte| *byte == 0));
        assert!(second.bytes().iter().all(|byte| *byte == 0));
        first.bytes_mut().fill(1);
        second.bytes_mut().fill(2);
        expect(2 * WINDOW);
        let mut third = Aligned::zeroed(5 << 20);
        third.bytes_mut().fill(3);
        expect_no_more();
        expect_no_more();
        for (number, aligned) in [(1, &first), (2, &second), (3, &third)] {
            assert!(aligned.bytes().iter().all(|byte| *byte == number));
        }
        assert!(Aligned::zeroed(100).bytes().iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_touched_ahead_keeps_what_was_written() {
        let count = 5 * AHEAD / 8;
        let mut numbers = Ahead::zeroed(count);
        for reached in (0..count).step_by(count / 7) {
            numbers[reached] = 1.0;
            numbers.reach(reached + 1);
        }
        assert_eq!(numbers.touched, count * size_of::<f32>());
        assert_eq!(numbers.len(), count);
        assert_eq!(numbers.iter().filter(|number| **number != 0.0).count(), 8);
    }

    #[test]
    fn large_and_small_vectors_are_zeros() {
        assert_eq!(zeros::<f32>(3), [0.0; 3]);
        assert!(zeros::<u64>(3 * HUGE / 8).iter().all(|number| *number == 0));
    }
}
