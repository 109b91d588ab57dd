// Weights of each kind as fragments of `mma`: rows `g` and `g + 8` of 16 outputs, a chunk of 32 inputs at a time.
//
// A kind says how many chunks are on their way to a lane (`under_way`), what it reads of a row's chunk (`Raw`), which of the
// chunk's inputs those are (`read_input`), and how the
// products are added to the sums. Whole numbers are multiplied as such, which is exact, and scaled afterwards.
#pragma once

#include "products.cuh"
#include "weights.cuh"

struct Fragments {
    uint32_t low[2], high[2];
};

// Eight inputs of a lane that lie together; zeros beyond the row's end.
__device__ __forceinline__ Fragments read_eight(const uint16_t* row, int chunk, int k) {
    const int at = chunk * CHUNK + lane_number() % 4 * 8;
    if (row == nullptr || at >= k) {
        return {{0, 0}, {0, 0}};
    }
    const uint4 four = *reinterpret_cast<const uint4*>(row + at);
    return {{four.x, four.y}, {four.z, four.w}};
}

template <bool half>
__device__ __forceinline__ void multiply(float (&sums)[4], const uint4& first, const uint4& second, const Fragments& x) {
    const uint32_t low[4] = {first.x, second.x, first.y, second.y}, high[4] = {first.z, second.z, first.w, second.w};
    if (half) {
        mma_half(sums, low, x.low);
        mma_half(sums, high, x.high);
    } else {
        mma_bf16(sums, low, x.low);
        mma_bf16(sums, high, x.high);
    }
}

// `BF16` and `F16`.
template <bool half>
struct Floats {
    using Raw = uint4;
    static constexpr int under_way = 8;
    static constexpr bool has_minima = false;

    static __device__ __forceinline__ Raw read(const Part& part, int row, int chunk, int k) {
        const int at = chunk * CHUNK + lane_number() % 4 * 8;
        if (at >= k) {
            return make_uint4(0, 0, 0, 0);
        }
        return load_once(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(part.weights) + static_cast<uint64_t>(row) * k + at));
    }
    static __device__ __forceinline__ Fragments read_input(const uint16_t* row, int chunk, int k) {
        return read_eight(row, chunk, k);
    }
    static __device__ __forceinline__ void add(float (&sums)[4], const Raw& first, const Raw& second, const Fragments& x, const float*) {
        multiply<half>(sums, first, second, x);
    }
};

// Adds the products of whole numbers by the scales, and the sum of the inputs by the minima.
__device__ __forceinline__ void add_scaled_sums(float (&sums)[4], const uint4& first, const uint4& second, const Fragments& x,
                                                float2 first_scale, float2 second_scale, const float* input_sums) {
    float products[4] = {};
    multiply<false>(products, first, second, x);
    // Each sum and product in one rounding, so that every kernel gives the same bits.
    sums[0] = fmaf(first_scale.x, products[0], sums[0]);
    sums[1] = fmaf(first_scale.x, products[1], sums[1]);
    sums[2] = fmaf(second_scale.x, products[2], sums[2]);
    sums[3] = fmaf(second_scale.x, products[3], sums[3]);
    if (input_sums != nullptr) {
        sums[0] = fmaf(first_scale.y, input_sums[0], sums[0]);
        sums[1] = fmaf(first_scale.y, input_sums[1], sums[1]);
        sums[2] = fmaf(second_scale.y, input_sums[0], sums[2]);
        sums[3] = fmaf(second_scale.y, input_sums[1], sums[3]);
    }
}

// Two bytes of `word` in the low ends of two halves.
template <uint32_t selector>
__device__ __forceinline__ uint32_t spread(uint32_t word) {
    return __byte_perm(word, 0, selector);
}

// Four bytes as whole numbers from -128 on.
__device__ __forceinline__ uint2 signed_bytes(uint32_t word) {
    // The bits of 2^23 + u for a byte u without sign, which has its first bit the other way round.
    const uint32_t bytes = word ^ 0x80808080;
    float numbers[4];
#pragma unroll
    for (uint32_t index = 0; index < 4; index++) {
        numbers[index] = __uint_as_float(__byte_perm(bytes, 0x4b000000, 0x7440 + index)) - 8388736.0f;
    }
    return make_uint2(pack_bf16(numbers[0], numbers[1]), pack_bf16(numbers[2], numbers[3]));
}

// The low nibbles of four bytes as whole numbers.
__device__ __forceinline__ uint2 nibbles(uint32_t word) {
    const uint32_t low = word & 0x0f0f0f0f;
    // The bits of 128 + q, less 128.
    const uint32_t one = 0x3f803f80, less = 0xc300c300;
    return make_uint2(fma_bf16x2(spread<0x4140>(low) | 0x43004300, one, less), fma_bf16x2(spread<0x4342>(low) | 0x43004300, one, less));
}

// Four numbers of FP8.
__device__ __forceinline__ uint2 small_floats(uint32_t word) {
    const auto two = [](uint32_t halves) {
        // Exponent and mantissa as those of a bf16, whose exponents are 120 larger.
        const uint32_t size = (halves & 0x7f007f00) >> 4;
        return fma_bf16x2(size | (halves & 0x80008000), 0x7b807b80, 0x80008000);
    };
    return make_uint2(two(spread<0x1404>(word)), two(spread<0x3424>(word)));
}

struct BytesOfBlocks {
    struct Raw {
        uint2 bytes;
        uint16_t scale;
    };
    static constexpr int under_way = 8;
    static constexpr bool has_minima = false;

    static __device__ __forceinline__ Raw read(const Part& part, int row, int chunk, int k) {
        const uint64_t place = static_cast<uint64_t>(row) * (k / CHUNK) + chunk;
        const auto* bytes = static_cast<const unsigned char*>(part.weights) + place * CHUNK + lane_number() % 4 * 8;
        return {load_once(reinterpret_cast<const uint2*>(bytes)), static_cast<const uint16_t*>(part.scales)[place]};
    }
    static __device__ __forceinline__ Fragments read_input(const uint16_t* row, int chunk, int k) {
        return read_eight(row, chunk, k);
    }
    static __device__ __forceinline__ uint4 numbers(const Raw& raw) {
        const uint2 low = signed_bytes(raw.bytes.x), high = signed_bytes(raw.bytes.y);
        return make_uint4(low.x, low.y, high.x, high.y);
    }
    static __device__ __forceinline__ void add(float (&sums)[4], const Raw& first, const Raw& second, const Fragments& x, const float*) {
        add_scaled_sums(sums, numbers(first), numbers(second), x, make_float2(half_to_float(first.scale), 0),
                        make_float2(half_to_float(second.scale), 0), nullptr);
    }
};

// `Q4_1`: a lane has four numbers of the first and four of the second half of a block.
struct NibblesOfBlocks {
    struct Raw {
        uint32_t nibbles, scale;
    };
    static constexpr int under_way = 10;
    static constexpr bool has_minima = true;

    static __device__ __forceinline__ Raw read(const Part& part, int row, int chunk, int k) {
        const uint64_t place = static_cast<uint64_t>(row) * (k / CHUNK) + chunk;
        return {static_cast<const uint32_t*>(part.weights)[place * 4 + lane_number() % 4], static_cast<const uint32_t*>(part.scales)[place]};
    }
    static __device__ __forceinline__ Fragments read_input(const uint16_t* row, int chunk, int) {
        if (row == nullptr) {
            return {{0, 0}, {0, 0}};
        }
        const auto* own = reinterpret_cast<const uint2*>(row + chunk * CHUNK + lane_number() % 4 * 4);
        const uint2 low = own[0], high = own[4];
        return {{low.x, low.y}, {high.x, high.y}};
    }
    static __device__ __forceinline__ uint4 numbers(const Raw& raw) {
        const uint2 low = nibbles(raw.nibbles), high = nibbles(raw.nibbles >> 4);
        return make_uint4(low.x, low.y, high.x, high.y);
    }
    static __device__ __forceinline__ float2 scale(const Raw& raw) {
        return make_float2(half_to_float(static_cast<uint16_t>(raw.scale)), half_to_float(static_cast<uint16_t>(raw.scale >> 16)));
    }
    static __device__ __forceinline__ void add(float (&sums)[4], const Raw& first, const Raw& second, const Fragments& x,
                                               const float* input_sums) {
        add_scaled_sums(sums, numbers(first), numbers(second), x, scale(first), scale(second), input_sums);
    }
};

// `Q4_K`: even chunks are the low, odd ones the high nibbles of 32 bytes.
struct NibblesOfGroups {
    struct Raw {
        uint2 bytes;
        float2 scale;
    };
    static constexpr int under_way = 4;
    static constexpr bool has_minima = true;

    static __device__ __forceinline__ Raw read(const Part& part, int row, int chunk, int k) {
        const uint64_t block = static_cast<uint64_t>(row) * (k / 256) + chunk / 8;
        const auto* bytes = static_cast<const unsigned char*>(part.weights) + block * 128 + chunk % 8 / 2 * 32;
        uint2 own = reinterpret_cast<const uint2*>(bytes)[lane_number() % 4];
        if (chunk % 2 == 1) {
            own = make_uint2(own.x >> 4, own.y >> 4);
        }
        return {own, q4_k_scale(static_cast<const unsigned char*>(part.scales) + block * 16, chunk % 8)};
    }
    static __device__ __forceinline__ Fragments read_input(const uint16_t* row, int chunk, int k) {
        return read_eight(row, chunk, k);
    }
    static __device__ __forceinline__ uint4 numbers(const Raw& raw) {
        const uint2 low = nibbles(raw.bytes.x), high = nibbles(raw.bytes.y);
        return make_uint4(low.x, low.y, high.x, high.y);
    }
    static __device__ __forceinline__ void add(float (&sums)[4], const Raw& first, const Raw& second, const Fragments& x,
                                               const float* input_sums) {
        add_scaled_sums(sums, numbers(first), numbers(second), x, make_float2(first.scale.x, -first.scale.y),
                        make_float2(second.scale.x, -second.scale.y), input_sums);
    }
};

struct SmallFloats {
    using Raw = uint2;
    static constexpr int under_way = 12;
    static constexpr bool has_minima = false;

    static __device__ __forceinline__ Raw read(const Part& part, int row, int chunk, int k) {
        const int at = chunk * CHUNK + lane_number() % 4 * 8;
        if (at >= k) {
            return make_uint2(0, 0);
        }
        return load_once(reinterpret_cast<const uint2*>(static_cast<const unsigned char*>(part.weights) + static_cast<uint64_t>(row) * k + at));
    }
    static __device__ __forceinline__ Fragments read_input(const uint16_t* row, int chunk, int k) {
        return read_eight(row, chunk, k);
    }
    static __device__ __forceinline__ uint4 numbers(const Raw& raw) {
        const uint2 low = small_floats(raw.x), high = small_floats(raw.y);
        return make_uint4(low.x, low.y, high.x, high.y);
    }
    static __device__ __forceinline__ void add(float (&sums)[4], const Raw& first, const Raw& second, const Fragments& x, const float*) {
        multiply<false>(sums, numbers(first), numbers(second), x);
    }
};
