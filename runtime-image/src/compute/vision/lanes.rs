//! Sixteen numbers in registers: what kernels are written in whose loops the compiler does not keep there by itself.
//!
//! All implementations give the same bits: multiplication and addition are one rounding in `mul_add` and two elsewhere.

/// Numbers in one value.
pub(super) const COUNT: usize = 16;

/// Sixteen numbers.
///
/// # Safety
/// Of each function: the processor has the instructions of the implementation, and pointers lead to [`COUNT`] numbers.
pub(super) trait Lanes: Copy {
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn splat(value: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + sum`, rounded once.
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self;
    /// `self` where it is larger, else `other`.
    unsafe fn max(self, other: Self) -> Self;
    /// `self` where it is smaller, else `other`.
    unsafe fn min(self, other: Self) -> Self;
    /// Adds the bits of `power`, moved to the exponent, to the bits of `self`.
    unsafe fn raise(self, power: Self) -> Self;

    /// The largest of them.
    unsafe fn largest(self) -> f32;

    /// e to their power, with the bits of [`exp`](crate::compute::elementwise::exp).
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: by this trait's contract.
        unsafe {
            let of = |value: f32| Self::splat(value);
            let x = of(-87.0).max(of(88.0).min(self));
            let rounder = of(12_582_912.0);
            let shifted = x.mul(of(std::f32::consts::LOG2_E)).add(rounder);
            let whole = shifted.sub(rounder);
            let rest = x.sub(whole.mul(of(0.693_359_4)));
            let rest = rest.add(whole.mul(of(2.121_944_4e-4)));
            let mut sum = of(1.987_569_1e-4);
            for factor in [
                1.398_199_9e-3,
                8.333_452e-3,
                4.166_579_6e-2,
                0.166_666_66,
                0.5,
            ] {
                sum = sum.mul(rest).add(of(factor));
            }
            let power = sum.mul(rest).mul(rest).add(rest).add(of(1.0));
            power.raise(shifted)
        }
    }
}

impl Lanes for [f32; COUNT] {
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by this trait's contract.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by this trait's contract.
        unsafe { to.cast::<Self>().write_unaligned(self) };
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; COUNT]
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|at| self[at] + other[at])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|at| self[at] - other[at])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        std::array::from_fn(|at| self[at] * other[at])
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        std::array::from_fn(|at| self[at].mul_add(factor[at], sum[at]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|at| {
            if self[at] > other[at] {
                self[at]
            } else {
                other[at]
            }
        })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        std::array::from_fn(|at| {
            if self[at] < other[at] {
                self[at]
            } else {
                other[at]
            }
        })
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.into_iter().fold(
            f32::NEG_INFINITY,
            |one, other| if one > other { one } else { other },
        )
    }
    #[inline(always)]
    unsafe fn raise(self, power: Self) -> Self {
        std::array::from_fn(|at| {
            let exponent = power[at].to_bits() << 23;
            f32::from_bits(self[at].to_bits().wrapping_add(exponent))
        })
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m256, __m512, _mm256_add_epi32, _mm256_add_ps, _mm256_castps_si256, _mm256_castsi256_ps,
        _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps,
        _mm256_set1_ps, _mm256_slli_epi32, _mm256_storeu_ps, _mm256_sub_ps, _mm512_add_epi32,
        _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
        _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps, _mm512_reduce_max_ps, _mm512_set1_ps,
        _mm512_slli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
    };

    use super::Lanes;

    /// Each function by the intrinsic that does the same.
    macro_rules! lanes {
        ($type:ty, |$self:ident, $other:ident, $sum:ident, $to:ident| $load:expr, $store:expr, $splat:expr, $add:expr, $sub:expr, $mul:expr, $mul_add:expr, $max:expr, $min:expr, $largest:expr, $raise:expr) => {
            impl Lanes for $type {
                #[inline(always)]
                unsafe fn load($to: *const f32) -> Self {
                    // SAFETY: by the trait's contract, here and below.
                    unsafe { $load }
                }
                #[inline(always)]
                unsafe fn store($self, $to: *mut f32) {
                    // SAFETY: as above.
                    unsafe { $store }
                }
                #[inline(always)]
                unsafe fn splat($to: f32) -> Self {
                    // SAFETY: as above.
                    unsafe { $splat }
                }
                #[inline(always)]
                unsafe fn add($self, $other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $add }
                }
                #[inline(always)]
                unsafe fn sub($self, $other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $sub }
                }
                #[inline(always)]
                unsafe fn mul($self, $other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $mul }
                }
                #[inline(always)]
                unsafe fn mul_add($self, $other: Self, $sum: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $mul_add }
                }
                #[inline(always)]
                unsafe fn max($self, $other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $max }
                }
                #[inline(always)]
                unsafe fn min($self, $other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $min }
                }
                #[inline(always)]
                unsafe fn largest($self) -> f32 {
                    // SAFETY: as above.
                    unsafe { $largest }
                }
                #[inline(always)]
                unsafe fn raise($self, $other: Self) -> Self {
                    // SAFETY: as above.
                    unsafe { $raise }
                }
            }
        };
    }

    lanes!(
        __m512,
        |self, other, sum, to| _mm512_loadu_ps(to),
        _mm512_storeu_ps(to, self),
        _mm512_set1_ps(to),
        _mm512_add_ps(self, other),
        _mm512_sub_ps(self, other),
        _mm512_mul_ps(self, other),
        _mm512_fmadd_ps(self, other, sum),
        _mm512_max_ps(self, other),
        _mm512_min_ps(self, other),
        _mm512_reduce_max_ps(self),
        _mm512_castsi512_ps(_mm512_add_epi32(
            _mm512_castps_si512(self),
            _mm512_slli_epi32::<23>(_mm512_castps_si512(other)),
        ))
    );

    lanes!(
        [__m256; 2],
        |self, other, sum, to| [_mm256_loadu_ps(to), _mm256_loadu_ps(to.add(8))],
        {
            _mm256_storeu_ps(to, self[0]);
            _mm256_storeu_ps(to.add(8), self[1]);
        },
        [_mm256_set1_ps(to); 2],
        [
            _mm256_add_ps(self[0], other[0]),
            _mm256_add_ps(self[1], other[1]),
        ],
        [
            _mm256_sub_ps(self[0], other[0]),
            _mm256_sub_ps(self[1], other[1]),
        ],
        [
            _mm256_mul_ps(self[0], other[0]),
            _mm256_mul_ps(self[1], other[1]),
        ],
        [
            _mm256_fmadd_ps(self[0], other[0], sum[0]),
            _mm256_fmadd_ps(self[1], other[1], sum[1]),
        ],
        [
            _mm256_max_ps(self[0], other[0]),
            _mm256_max_ps(self[1], other[1]),
        ],
        [
            _mm256_min_ps(self[0], other[0]),
            _mm256_min_ps(self[1], other[1]),
        ],
        {
            let both = _mm256_max_ps(self[0], self[1]);
            let mut values = [0.0; 8];
            _mm256_storeu_ps(values.as_mut_ptr(), both);
            values.into_iter().fold(f32::NEG_INFINITY, f32::max)
        },
        [
            _mm256_castsi256_ps(_mm256_add_epi32(
                _mm256_castps_si256(self[0]),
                _mm256_slli_epi32::<23>(_mm256_castps_si256(other[0])),
            )),
            _mm256_castsi256_ps(_mm256_add_epi32(
                _mm256_castps_si256(self[1]),
                _mm256_slli_epi32::<23>(_mm256_castps_si256(other[1])),
            )),
        ]
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::elementwise::exp;

    #[test]
    fn powers_have_the_bits_of_those_of_single_numbers() {
        let numbers = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            10.3,
            -10.3,
            87.9,
            88.0,
            1e9,
            -86.9,
            -87.0,
            -1e9,
            3e-8,
            f32::NEG_INFINITY,
            f32::INFINITY,
        ];
        // SAFETY: needs no instructions.
        let found = unsafe { <[f32; COUNT]>::load(numbers.as_ptr()).exp() };
        assert_eq!(
            found.map(f32::to_bits),
            numbers.map(|number| exp(number).to_bits())
        );
    }
}
