// Attention on tensor cores: queries, keys and values as the fragments of `mma_bf16`.
//
// A product's sum does not mind the order of what is summed, so each lane takes numbers that lie together: 8 of every 32
// numbers of a key (4 of the last 16 where the width is an odd number of 16), which make the fragments of two steps. In the
// same way the columns of a result are dealt out so that a lane reads 16 bytes of each of its values and ends with 16 numbers
// of the result that lie together.
#pragma once

#include "device.cuh"

// Of a width: steps of 16 numbers, and parts of 64 and of 16 that the columns of a result are dealt out in.
template <int width>
struct Parts {
    static constexpr int steps = width / 16;
    static constexpr int wide = width / 64;
    static constexpr int narrow = width % 64 / 16;
    static_assert(narrow <= 1 && width % 16 == 0);
};

// The result of 16 rows, in the order of the lanes' columns.
template <int width>
struct Result {
    float wide[Parts<width>::wide + 1][8][4];
    float narrow[2][4];
};

// Rows `g` and `g + 8` of 16 queries; null for a row of zeros.
template <int width>
__device__ __forceinline__ void load_queries(uint32_t (&queries)[Parts<width>::steps][4], const float* first, const float* second) {
    const int t = lane_number() % 4;
#pragma unroll
    for (int step = 0; step < Parts<width>::steps; step++) {
        const bool last = width % 32 == 16 && step == Parts<width>::steps - 1;
        const int at = last ? step * 16 + t * 4 : step / 2 * 32 + t * 8 + step % 2 * 4;
        const float4 zeros = make_float4(0, 0, 0, 0);
        const float4 a = first == nullptr ? zeros : *reinterpret_cast<const float4*>(first + at);
        const float4 b = second == nullptr ? zeros : *reinterpret_cast<const float4*>(second + at);
        queries[step][0] = pack_bf16(a.x, a.y);
        queries[step][1] = pack_bf16(b.x, b.y);
        queries[step][2] = pack_bf16(a.z, a.w);
        queries[step][3] = pack_bf16(b.z, b.w);
    }
}

// Adds the products of 16 queries, or several times as many, with 8 keys; `key` is key number `g` of them, null where it is not
// seen.
template <int width, int tiles>
__device__ __forceinline__ void add_scores(float (&scores)[tiles][4], const uint32_t (&queries)[tiles][Parts<width>::steps][4],
                                           const uint16_t* key) {
    const int t = lane_number() % 4;
#pragma unroll
    for (int step = 0; step + 1 < Parts<width>::steps; step += 2) {
        uint4 four = make_uint4(0, 0, 0, 0);
        if (key != nullptr) {
            four = *reinterpret_cast<const uint4*>(key + step * 16 + t * 8);
        }
        const uint32_t low[2] = {four.x, four.y}, high[2] = {four.z, four.w};
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
            mma_bf16(scores[tile], queries[tile][step], low);
            mma_bf16(scores[tile], queries[tile][step + 1], high);
        }
    }
    if (width % 32 == 16) {
        constexpr int step = Parts<width>::steps - 1;
        uint2 two = make_uint2(0, 0);
        if (key != nullptr) {
            two = *reinterpret_cast<const uint2*>(key + step * 16 + t * 4);
        }
        const uint32_t both[2] = {two.x, two.y};
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
            mma_bf16(scores[tile], queries[tile][step], both);
        }
    }
}

// The low or the high halves of two words.
__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) {
    return __byte_perm(a, b, 0x5410);
}
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) {
    return __byte_perm(a, b, 0x7632);
}

// One word of each of values 2t, 2t + 1, 2t + 8 and 2t + 9: the fragments of two columns.
struct Columns {
    uint32_t even[2], odd[2];

    __device__ __forceinline__ Columns(uint32_t a, uint32_t b, uint32_t c, uint32_t d)
        : even{low_halves(a, b), low_halves(c, d)}, odd{high_halves(a, b), high_halves(c, d)} {}
};

// Adds 16 values by their weights; `values` are those of this lane, 2t, 2t + 1, 2t + 8 and 2t + 9, null where they are not seen.
template <int width, int tiles>
__device__ __forceinline__ void add_values(Result<width> (&results)[tiles], const uint32_t (&weights)[tiles][4],
                                           const uint16_t* const (&values)[4]) {
    const int g = lane_number() / 4;
#pragma unroll
    for (int part = 0; part < Parts<width>::wide; part++) {
        uint4 four[4];
#pragma unroll
        for (int index = 0; index < 4; index++) {
            four[index] = make_uint4(0, 0, 0, 0);
            if (values[index] != nullptr) {
                four[index] = *reinterpret_cast<const uint4*>(values[index] + part * 64 + g * 8);
            }
        }
        const Columns columns[4] = {{four[0].x, four[1].x, four[2].x, four[3].x},
                                    {four[0].y, four[1].y, four[2].y, four[3].y},
                                    {four[0].z, four[1].z, four[2].z, four[3].z},
                                    {four[0].w, four[1].w, four[2].w, four[3].w}};
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
#pragma unroll
            for (int index = 0; index < 4; index++) {
                mma_bf16(results[tile].wide[part][index * 2], weights[tile], columns[index].even);
                mma_bf16(results[tile].wide[part][index * 2 + 1], weights[tile], columns[index].odd);
            }
        }
    }
    if (Parts<width>::narrow > 0) {
        uint32_t one[4];
#pragma unroll
        for (int index = 0; index < 4; index++) {
            one[index] = 0;
            if (values[index] != nullptr) {
                one[index] = *reinterpret_cast<const uint32_t*>(values[index] + Parts<width>::wide * 64 + g * 2);
            }
        }
        const Columns columns(one[0], one[1], one[2], one[3]);
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
            mma_bf16(results[tile].narrow[0], weights[tile], columns.even);
            mma_bf16(results[tile].narrow[1], weights[tile], columns.odd);
        }
    }
}

template <int width>
__device__ __forceinline__ void clear(Result<width>& result) {
#pragma unroll
    for (int number = 0; number < 4; number++) {
#pragma unroll
        for (int column = 0; column < 8; column++) {
#pragma unroll
            for (int part = 0; part < Parts<width>::wide; part++) {
                result.wide[part][column][number] = 0;
            }
        }
        result.narrow[0][number] = result.narrow[1][number] = 0;
    }
}

// Multiplies rows `g` and `g + 8`.
template <int width>
__device__ __forceinline__ void scale(Result<width>& result, float first, float second) {
#pragma unroll
    for (int number = 0; number < 4; number++) {
        const float factor = number < 2 ? first : second;
#pragma unroll
        for (int column = 0; column < 8; column++) {
#pragma unroll
            for (int part = 0; part < Parts<width>::wide; part++) {
                result.wide[part][column][number] *= factor;
            }
        }
        result.narrow[0][number] *= factor;
        result.narrow[1][number] *= factor;
    }
}

// Gives `write(at, four numbers)` this lane's part of row `g` (`half` 0) or `g + 8` (1).
template <int width, typename Write>
__device__ __forceinline__ void for_each_four(const Result<width>& result, int half, Write write) {
    const int t = lane_number() % 4;
#pragma unroll
    for (int part = 0; part < Parts<width>::wide; part++) {
#pragma unroll
        for (int four = 0; four < 4; four++) {
            const float(&from)[8][4] = result.wide[part];
            const int column = four % 2 * 4, number = half * 2 + four / 2;
            write(part * 64 + t * 16 + four * 4, make_float4(from[column][number], from[column + 1][number], from[column + 2][number],
                                                             from[column + 3][number]));
        }
    }
    if (Parts<width>::narrow > 0) {
        const float(&from)[2][4] = result.narrow;
        write(Parts<width>::wide * 64 + t * 4,
              make_float4(from[0][half * 2], from[1][half * 2], from[0][half * 2 + 1], from[1][half * 2 + 1]));
    }
}

// The largest, and the sum, over the four lanes that have a row.
__device__ __forceinline__ float most_of_row(float value) {
    value = fmaxf(value, __shfl_xor_sync(ALL, value, 1));
    return fmaxf(value, __shfl_xor_sync(ALL, value, 2));
}
__device__ __forceinline__ float sum_of_row(float value) {
    value += __shfl_xor_sync(ALL, value, 1);
    return value + __shfl_xor_sync(ALL, value, 2);
}
