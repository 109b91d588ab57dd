// What all kernels share: the few instructions that C++ has no words for, and sums over a warp and a block.
#pragma once

#ifdef EMULATED
#include "emulated/cuda.h"
#else
#include <stdint.h>

#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
// So many blocks fit on a multiprocessor at a time, as far as registers go.
#define KERNEL_BESIDE(blocks, threads, name, ...) extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)

__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ uint4 shared_bytes[];
    return reinterpret_cast<unsigned char*>(shared_bytes);
}

// Two floats to the nearest numbers of 16 bits, ties to even; `low` comes first in memory.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ uint32_t round_to_half(float low, float high) {
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

__device__ __forceinline__ float half_to_float(uint16_t half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
}

__device__ __forceinline__ float bf16_to_float(uint32_t bits) {
    return __uint_as_float(bits << 16);
}

// `a * b + c` in both halves.
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

// `c += a * b` for 16 x 16 and 16 x 8 numbers that lie over the lanes of a warp: with `g = lane / 4` and `t = lane % 4`,
// a: rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8; b: rows 2t, 2t + 8 of column g; each with its next one;
// c: row g at columns 2t, 2t + 1, then row g + 8.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Two to the power of `x` to about 22 bits; results below the smallest normal number are 0.
__device__ __forceinline__ float power_of_two(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

// Starts to copy 16 bytes; zeros where nothing is `there`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copies_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most so many groups of copies are still under way.
template <int under_way>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(under_way) : "memory");
}

// Where kernels are launched so that they may begin before the one before them has ended, waits for its end, and lets the next
// one begin. Nothing that another kernel writes is read before.
__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Weights are read once: they need no place in the first cache.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 value;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
        : "l"(from));
    return value;
}

__device__ __forceinline__ uint2 load_once(const uint2* from) {
    uint2 value;
    asm("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from));
    return value;
}
#endif

constexpr uint32_t ALL = 0xffffffff;
constexpr uint32_t NOBODY = 0xffffffff;
// Tokens in a block of the arena.
constexpr int PAGE = 32;
// Blocks of threads that work on rows.
constexpr int WARPS = 8;
constexpr int THREADS = WARPS * 32;

enum Kind { F32, BF16, F16, Q8_0, Q4_1, Q4_K, FP8 };

__device__ __forceinline__ int lane_number() {
    return static_cast<int>(threadIdx.x) % 32;
}
__device__ __forceinline__ int warp_number() {
    return static_cast<int>(threadIdx.x) / 32;
}

// A number beyond the largest of 16 bits becomes that one, and no infinity.
__device__ __forceinline__ float within_half(float value) {
    return value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
}

// Two floats as `pack_bf16` has them, as halves.
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
    return round_to_half(within_half(low), within_half(high));
}

__device__ __forceinline__ int padded(int width) {
    return (width + 7) / 8 * 8;
}

__device__ __forceinline__ float silu(float x) {
    return x / (1.0f + expf(-x));
}

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float sum_of_warp(float value) {
    for (int mask = 16; mask > 0; mask /= 2) {
        value += __shfl_xor_sync(ALL, value, mask);
    }
    return value;
}

__device__ __forceinline__ float most_of_warp(float value) {
    for (int mask = 16; mask > 0; mask /= 2) {
        value = fmaxf(value, __shfl_xor_sync(ALL, value, mask));
    }
    return value;
}

// The sum over a block of `THREADS`; `shared` has `WARPS` places that nobody else uses. All threads must come.
__device__ __forceinline__ float sum_of_block(float value, float* shared) {
    value = sum_of_warp(value);
    __syncthreads();
    if (lane_number() == 0) {
        shared[warp_number()] = value;
    }
    __syncthreads();
    float sum = 0;
    for (int warp = 0; warp < WARPS; warp++) {
        sum += shared[warp];
    }
    return sum;
}

// Four numbers of a row, or fewer at its end; zeros beyond it.
__device__ __forceinline__ float4 read_four(const float* row, int at, int width) {
    if (width % 4 == 0 && at < width) {
        return *reinterpret_cast<const float4*>(row + at);
    }
    return make_float4(at < width ? row[at] : 0, at + 1 < width ? row[at + 1] : 0, at + 2 < width ? row[at + 2] : 0,
                       at + 3 < width ? row[at + 3] : 0);
}

__device__ __forceinline__ void write_four(float* row, int at, int width, float4 value) {
    if (width % 4 == 0 && at < width) {
        *reinterpret_cast<float4*>(row + at) = value;
        return;
    }
    const float values[4] = {value.x, value.y, value.z, value.w};
    for (int index = 0; index < 4; index++) {
        if (at + index < width) {
            row[at + index] = values[index];
        }
    }
}

// Numbers `at` to `at + 3` of row `row` of an Input; `at` and `pitch` are multiples of 4.
__device__ __forceinline__ void write_input(void* out, int kind, uint64_t row, int pitch, int at, float4 value) {
    const uint64_t place = row * pitch + at;
    if (kind == F32) {
        *reinterpret_cast<float4*>(static_cast<float*>(out) + place) = value;
    } else {
        const uint2 packed = kind == BF16 ? make_uint2(pack_bf16(value.x, value.y), pack_bf16(value.z, value.w))
                                          : make_uint2(pack_half(value.x, value.y), pack_half(value.z, value.w));
        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(out) + place) = packed;
    }
}

// One number of an Input.
__device__ __forceinline__ void write_one(void* out, int kind, uint64_t place, float value) {
    if (kind == F32) {
        static_cast<float*>(out)[place] = value;
    } else {
        const uint32_t packed = kind == BF16 ? pack_bf16(value, 0) : pack_half(value, 0);
        static_cast<uint16_t*>(out)[place] = static_cast<uint16_t>(packed);
    }
}
