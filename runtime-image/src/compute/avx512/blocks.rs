//! Products of quantised weights: a block of two groups stays in registers while rows of the input go by.
//!
//! `vpdpbusd` multiplies unsigned by signed bytes, so weights are kept unsigned and inputs signed.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_slli_epi32, _mm512_srli_epi16,
    _mm512_storeu_ps,
};
use std::mem::MaybeUninit;

use super::{by_tiles, halves, store};
use crate::compute::activation::{BlockInput, Head};
use crate::compute::matmul::GroupOutput;
use crate::compute::matrix::{BLOCK, GROUP};
use crate::compute::quants::NON_LINEAR;
use crate::compute::turns::{FEW, SPAN};

/// Registers of four columns each that a block of one group takes.
const QUADS: usize = BLOCK / 4;

/// Rows of a tile. Fewer than [`FEW`] rows are multiplied so: they wait for weights, which come faster piece by piece.
const TILE: usize = 4;

/// How a block's weights lie: as bytes from 0 to 255 around 128.
pub(in crate::compute) const BYTES: u8 = 0;
/// As nibbles that name such bytes.
pub(in crate::compute) const NAMES: u8 = 1;
/// As nibbles with a minimum.
pub(in crate::compute) const NIBBLES: u8 = 2;

/// The weights of `G` neighbouring groups; minima only with [`NIBBLES`].
pub(in crate::compute) struct Groups<'a> {
    pub(in crate::compute) quants: &'a [u8],
    pub(in crate::compute) scales: &'a [u8],
    pub(in crate::compute) mins: &'a [u8],
}

/// Multiplies all rows with `G` groups.
///
/// # Safety
/// The processor has the instructions; the slices hold `G * input.blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
pub(in crate::compute) unsafe fn multiply<const KIND: u8, const G: usize>(
    groups: &Groups<'_>,
    input: &BlockInput<'_>,
    outs: &[GroupOutput; G],
) {
    if input.rows < FEW {
        by_tiles!(TILE, input.rows, |first, N| {
            // SAFETY: `first + N` is at most the number of rows; the rest by this function's contract.
            unsafe { tile::<KIND, N, G>(groups, input, first, outs) }
        });
        return;
    }
    let whole = outs.iter().all(|out| out.of(0).len() == GROUP);
    let mut kept = [const { MaybeUninit::<[__m512; G]>::uninit() }; SPAN];
    for span in input.turns.spans() {
        let between = (kept.as_mut_ptr().cast::<f32>(), G * GROUP);
        let mut sums = Sums {
            from: (ZEROS.as_ptr(), 0),
            to: between,
        };
        for block in 0..input.blocks {
            if block + 1 == input.blocks && whole {
                // The groups' outputs are neighbours.
                sums.to = outs[0].from(span.start);
            }
            // SAFETY: the block lies in the slices by this function's contract, and rows that take turns in the input.
            unsafe {
                let weights = Weights::<G>::read::<KIND>(groups, input.blocks, block);
                groups.fetch::<KIND, G>(input.blocks, block + 1);
                let first = input.at(span.start, block);
                let (short, long) = input.turns.of(&span, block);
                add_all::<KIND, 1, G>(&weights, input, short, first, &sums);
                add_all::<KIND, 2, G>(&weights, input, long, first, &sums);
            }
            sums.from = (between.0.cast_const(), between.1);
        }
        if !whole {
            // SAFETY: the instructions are there, and the sums of the span's rows were written.
            unsafe { store(kept[..span.len()].assume_init_ref(), span.start, outs) };
        }
    }
}

/// Multiplies `N` rows from `first` on with `G` groups.
///
/// # Safety
/// As [`multiply`], for rows of the input.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn tile<const KIND: u8, const N: usize, const G: usize>(
    groups: &Groups<'_>,
    input: &BlockInput<'_>,
    first: usize,
    outs: &[GroupOutput; G],
) {
    let mut sums = [[_mm512_setzero_ps(); G]; N];
    for block in 0..input.blocks {
        // SAFETY: block and rows lie in the slices by this function's contract.
        unsafe {
            let mut products: [[[__m512i; G]; 2]; N] = std::array::from_fn(|row| {
                let at = input.at(first + row, block);
                begin::<KIND, 2, G>(&*input.heads.as_ptr().add(at))
            });
            for index in 0..QUADS / 2 {
                for index in [index, QUADS / 2 + index] {
                    let quads: [__m512i; G] = std::array::from_fn(|group| {
                        groups.quad::<KIND>(group * input.blocks + block, index)
                    });
                    for (row, products) in products.iter_mut().enumerate() {
                        let at = input.at(first + row, block);
                        add_quads(products, &quads, input, at, index);
                    }
                }
            }
            let (scales, mins) = groups.floats::<KIND, G>(input.blocks, block);
            for (row, (products, sums)) in products.iter().zip(&mut sums).enumerate() {
                let head = &*input.heads.as_ptr().add(input.at(first + row, block));
                add_block::<KIND, 2, G>(sums, products, (&scales, &mins), head);
            }
        }
    }
    // SAFETY: the instructions are there.
    unsafe { store(&sums, first, outs) };
}

/// Adds a block's products to the sums of rows whose numbers have `WIDTH` bytes there; rows are counted from the first of
/// their span, whose block is the input's `first`.
///
/// # Safety
/// As [`multiply`], for blocks in the input.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn add_all<const KIND: u8, const WIDTH: usize, const G: usize>(
    weights: &Weights<G>,
    input: &BlockInput<'_>,
    rows: &[u8],
    first: usize,
    sums: &Sums,
) {
    for row in rows {
        // SAFETY: by this function's contract.
        unsafe {
            let mut own = sums.load::<G>(*row);
            let at = first + usize::from(*row);
            add::<KIND, WIDTH, G>(weights, input, at, &mut own);
            sums.store(*row, &own);
        }
    }
}

/// The sums of every row before the first block.
const ZEROS: [f32; 2 * GROUP] = [0.0; 2 * GROUP];

/// Where the sums of a span's rows are before a block is added, and where they go: the first row's, and how many numbers on
/// those of the next are.
struct Sums {
    from: (*const f32, usize),
    to: (*mut f32, usize),
}

impl Sums {
    /// # Safety
    /// The span has this row, with the sums of `G` groups.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load<const G: usize>(&self, row: u8) -> [__m512; G] {
        let from = self.from.0.wrapping_add(usize::from(row) * self.from.1);
        // SAFETY: by this function's contract.
        std::array::from_fn(|group| unsafe { _mm512_loadu_ps(from.add(group * GROUP)) })
    }

    /// # Safety
    /// As [`Sums::load`], and nobody else reads or writes these.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store<const G: usize>(&self, row: u8, sums: &[__m512; G]) {
        let to = self.to.0.wrapping_add(usize::from(row) * self.to.1);
        for (group, sum) in sums.iter().enumerate() {
            // SAFETY: by this function's contract.
            unsafe { _mm512_storeu_ps(to.add(group * GROUP), *sum) };
        }
    }
}

impl Groups<'_> {
    /// Four columns of a block, as a byte each for sixteen outputs; `at` is the block's number among those of all groups.
    ///
    /// # Safety
    /// The processor has the instructions, and the block is there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn quad<const KIND: u8>(&self, at: usize, index: usize) -> __m512i {
        let registers = if KIND == BYTES { QUADS } else { QUADS / 2 };
        // SAFETY: by this function's contract.
        let bytes = unsafe {
            let from = self
                .quants
                .as_ptr()
                .add((at * registers + index % registers) * 64);
            _mm512_loadu_si512(from.cast::<__m512i>())
        };
        if KIND == BYTES {
            return bytes;
        }
        let bytes = if index < registers {
            bytes
        } else {
            _mm512_srli_epi16::<4>(bytes)
        };
        let nibbles = _mm512_and_si512(bytes, _mm512_set1_epi8(15));
        if KIND == NIBBLES {
            return nibbles;
        }
        // SAFETY: the table fills a register.
        let codes = unsafe { _mm512_loadu_si512(CODES.as_ptr().cast::<__m512i>()) };
        _mm512_shuffle_epi8(codes, nibbles)
    }

    /// Has a block of `G` groups of `blocks` blocks fetched from memory while another is multiplied; one that is not there
    /// harms nothing.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fetch<const KIND: u8, const G: usize>(&self, blocks: usize, block: usize) {
        let bytes = if KIND == BYTES {
            QUADS * 64
        } else {
            QUADS * 32
        };
        for group in 0..G {
            let at = group * blocks + block;
            let from = self.quants.as_ptr().wrapping_add(at * bytes);
            for line in (0..bytes).step_by(64) {
                _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast());
            }
        }
    }

    /// The scales of a block of `G` groups of `blocks` blocks, and its minima or nothing.
    ///
    /// # Safety
    /// The processor has the instructions, and the block is there.
    #[inline]
    #[target_feature(enable = "avx512f,f16c")]
    unsafe fn floats<const KIND: u8, const G: usize>(
        &self,
        blocks: usize,
        block: usize,
    ) -> ([__m512; G], [__m512; G]) {
        let (mut scales, mut mins) = ([_mm512_setzero_ps(); G], [_mm512_setzero_ps(); G]);
        for group in 0..G {
            let at = (group * blocks + block) * 32;
            // SAFETY: by this function's contract.
            unsafe {
                scales[group] = halves(self.scales.as_ptr().add(at));
                if KIND == NIBBLES {
                    mins[group] = halves(self.mins.as_ptr().add(at));
                }
            }
        }
        (scales, mins)
    }
}

/// One block of `G` groups: bytes of four columns by sixteen outputs each.
struct Weights<const G: usize> {
    quads: [[__m512i; G]; QUADS],
    scales: [__m512; G],
    mins: [__m512; G],
}

impl<const G: usize> Weights<G> {
    /// # Safety
    /// As [`multiply`]; the groups have `blocks` blocks, `block` is one of them.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
    unsafe fn read<const KIND: u8>(groups: &Groups<'_>, blocks: usize, block: usize) -> Self {
        let mut quads = [[_mm512_setzero_si512(); G]; QUADS];
        for (index, quads) in quads.iter_mut().enumerate() {
            for (group, quad) in quads.iter_mut().enumerate() {
                // SAFETY: by this function's contract.
                *quad = unsafe { groups.quad::<KIND>(group * blocks + block, index) };
            }
        }
        // SAFETY: as above.
        let (scales, mins) = unsafe { groups.floats::<KIND, G>(blocks, block) };
        Self {
            quads,
            scales,
            mins,
        }
    }
}

/// [`NON_LINEAR`] from 0 to 255 around 128, in every quarter of a register.
const CODES: [u8; 64] = {
    let mut codes = [0; 64];
    let mut index = 0;
    while index < codes.len() {
        codes[index] = NON_LINEAR[index % 16].cast_unsigned() ^ 0x80;
        index += 1;
    }
    codes
};

/// Adds a block's products to the sums of one row, whose block is at `at` in the input.
///
/// # Safety
/// As [`add_all`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,f16c")]
unsafe fn add<const KIND: u8, const WIDTH: usize, const G: usize>(
    weights: &Weights<G>,
    input: &BlockInput<'_>,
    at: usize,
    sums: &mut [__m512; G],
) {
    // SAFETY: by this function's contract.
    unsafe {
        let head = &*input.heads.as_ptr().add(at);
        let mut products = begin::<KIND, WIDTH, G>(head);
        for (index, quads) in weights.quads.iter().enumerate() {
            add_quads(&mut products, quads, input, at, index);
        }
        let floats = (&weights.scales, &weights.mins);
        add_block::<KIND, WIDTH, G>(sums, &products, floats, head);
    }
}

/// What a row's products of a block begin with: what undoes the weights' offset.
///
/// # Safety
/// As [`add_quads`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn begin<const KIND: u8, const WIDTH: usize, const G: usize>(
    head: &Head,
) -> [[__m512i; G]; WIDTH] {
    if KIND == NIBBLES {
        return [[_mm512_setzero_si512(); G]; WIDTH];
    }
    std::array::from_fn(|byte| [_mm512_set1_epi32(head.offsets[2 - WIDTH + byte]); G])
}

/// Adds the products of four columns: for each of `WIDTH` bytes of the input's numbers those of `G` groups.
///
/// # Safety
/// The processor has the instructions, and a block is at `at` in the input.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn add_quads<const WIDTH: usize, const G: usize>(
    products: &mut [[__m512i; G]; WIDTH],
    quads: &[__m512i; G],
    input: &BlockInput<'_>,
    at: usize,
    index: usize,
) {
    for (byte, products) in products.iter_mut().enumerate() {
        // SAFETY: inside the row's block of the input.
        let x = unsafe {
            let from = input
                .quants
                .as_ptr()
                .add((at * 2 + 2 - WIDTH + byte) * BLOCK);
            quad(from.add(index * 4))
        };
        for (sum, quads) in products.iter_mut().zip(quads) {
            *sum = _mm512_dpbusd_epi32(*sum, *quads, x);
        }
    }
}

/// Adds a block's products, scaled, to a row's sums; the scales count the last of the `WIDTH` bytes.
///
/// # Safety
/// As [`add_quads`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn add_block<const KIND: u8, const WIDTH: usize, const G: usize>(
    sums: &mut [__m512; G],
    products: &[[__m512i; G]; WIDTH],
    (scales, mins): (&[__m512; G], &[__m512; G]),
    head: &Head,
) {
    let (scale, total) = (_mm512_set1_ps(head.scale), _mm512_set1_ps(head.sum));
    for (group, sum) in sums.iter_mut().enumerate() {
        let mut whole = products[0][group];
        if WIDTH == 2 {
            whole = _mm512_add_epi32(_mm512_slli_epi32::<7>(whole), products[1][group]);
        }
        let scale = _mm512_mul_ps(scales[group], scale);
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, *sum);
        if KIND == NIBBLES {
            *sum = _mm512_fmadd_ps(mins[group], total, *sum);
        }
    }
}

/// Four signed bytes of an input row, in every lane.
///
/// # Safety
/// `at` points to four readable bytes; the processor has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn quad(at: *const i8) -> __m512i {
    // SAFETY: by this function's contract; alignment is not needed.
    _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() })
}
