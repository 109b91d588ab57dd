//! Large results, made by all processors at once.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::thread;

/// Bytes of a result for which a thread of its own is worth it.
const WORTH: usize = 1 << 18;

/// Calls `work` with the number of the first part and the bytes of each band of parts, which have so many bytes each, every band on a
/// thread of its own; what each call gave, in order.
pub(super) fn by_bands<R: Send>(
    bytes: &mut [u8],
    part: usize,
    work: impl Fn(usize, &mut [u8]) -> R + Sync,
) -> Vec<R> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let bands = processors.min(bytes.len() / WORTH).max(1);
    let parts = (bytes.len() / part).div_ceil(bands).max(1);
    thread::scope(|scope| {
        let work = &work;
        let mut bands = bytes.chunks_mut(parts * part).enumerate();
        let own = bands.next();
        let others: Vec<_> = bands
            .map(|(index, band)| scope.spawn(move || work(index * parts, band)))
            .collect();
        let own = own.map(|(_, band)| work(0, band));
        let others = others
            .into_iter()
            .map(|other| other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        own.into_iter().chain(others).collect()
    })
}
