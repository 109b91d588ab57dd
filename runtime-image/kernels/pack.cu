// Matrices as kernels want them, from what stands in files.
#include "device.cuh"
#include "weights.cuh"

// The nearest number of FP8 (E4M3), ties to even; `size` is at most 448.
__device__ __forceinline__ uint32_t fp8_bits(float size) {
    // Below 2^-6 numbers are 2^-9 apart.
    if (size < 0.015625f) {
        return static_cast<uint32_t>(rintf(size * 512));
    }
    const uint32_t bits = __float_as_uint(size);
    return ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - 120 * 8;
}

KERNEL(THREADS, pack_fp8, const void* from, int kind, unsigned char* weights, float* scales, int k) {
    wait_for_earlier();
    auto* shared = reinterpret_cast<float*>(shared_memory());
    const uint64_t row = blockIdx.x;
    float largest = 0;
    for (int at = threadIdx.x; at < k; at += THREADS) {
        largest = fmaxf(largest, fabsf(weight_at(from, nullptr, kind, row, at, k)));
    }
    largest = most_of_warp(largest);
    if (lane_number() == 0) {
        shared[warp_number()] = largest;
    }
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++) {
        largest = fmaxf(largest, shared[warp]);
    }
    const float scale = largest == 0 ? 1 : largest / 448;
    for (int at = threadIdx.x; at < k; at += THREADS) {
        const float number = weight_at(from, nullptr, kind, row, at, k) / scale;
        const uint32_t bits = fp8_bits(fminf(fabsf(number), 448)) | (number < 0 ? 0x80 : 0);
        weights[row * k + at] = static_cast<unsigned char>(bits);
    }
    if (threadIdx.x == 0) {
        scales[row] = scale;
    }
}

// Bytes of a block of GGUF, of which the first are scales.
struct Block {
    int bytes, scales;
};

__device__ __forceinline__ Block block_of(int kind) {
    return kind == Q8_0 ? Block{34, 2} : kind == Q4_1 ? Block{20, 4} : Block{144, 16};
}

// Scales and numbers of blocks of GGUF apart; two bytes for a thread.
KERNEL(THREADS, pack_blocks, const uint16_t* from, int kind, uint16_t* weights, uint16_t* scales, uint64_t blocks) {
    wait_for_earlier();
    const Block block = block_of(kind);
    const uint64_t at = static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x;
    const uint64_t number = at / (block.bytes / 2);
    const int within = static_cast<int>(at % (block.bytes / 2)), own = block.scales / 2;
    if (number < blocks) {
        if (within < own) {
            scales[number * own + within] = from[at];
        } else {
            weights[number * (block.bytes / 2 - own) + within - own] = from[at];
        }
    }
}
