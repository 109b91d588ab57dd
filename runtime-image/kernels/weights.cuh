// Single numbers of matrices of every kind; how they lie is told in README.md.
#pragma once

#include "device.cuh"

// The scale and the minimum of group `group` (of 8) of a block of Q4_K.
__device__ __forceinline__ float2 q4_k_scale(const unsigned char* block, int group) {
    const auto* halves = reinterpret_cast<const uint16_t*>(block);
    const unsigned char* packed = block + 4;
    int scale, minimum;
    if (group < 4) {
        scale = packed[group] & 63;
        minimum = packed[group + 4] & 63;
    } else {
        scale = (packed[group + 4] & 15) | (packed[group - 4] >> 2 & 48);
        minimum = packed[group + 4] >> 4 | (packed[group] >> 2 & 48);
    }
    return make_float2(half_to_float(halves[0]) * scale, half_to_float(halves[1]) * minimum);
}

__device__ __forceinline__ float fp8_to_float(uint32_t byte) {
    // Exponent and mantissa as those of a float, whose exponents are 120 larger.
    const float size = __uint_as_float((byte & 0x7f) << 20) * __uint_as_float(0x7b800000);
    return byte & 0x80 ? -size : size;
}

__device__ __forceinline__ float weight_at(const void* weights, const void* scales, int kind, uint64_t row, int at, int k) {
    const uint64_t place = row * k + at;
    const auto* bytes = static_cast<const unsigned char*>(weights);
    const auto* halves = static_cast<const uint16_t*>(scales);
    switch (kind) {
    case F32:
        return static_cast<const float*>(weights)[place];
    case BF16:
        return bf16_to_float(static_cast<const uint16_t*>(weights)[place]);
    case F16:
        return half_to_float(static_cast<const uint16_t*>(weights)[place]);
    case Q8_0:
        return static_cast<const signed char*>(weights)[place] * half_to_float(halves[place / 32]);
    case Q4_1: {
        const int q = bytes[place / 32 * 16 + at % 16] >> (at % 32 / 16 * 4) & 15;
        return q * half_to_float(halves[place / 32 * 2]) + half_to_float(halves[place / 32 * 2 + 1]);
    }
    case Q4_K: {
        const int group = at % 256 / 32;
        const float2 scale = q4_k_scale(static_cast<const unsigned char*>(scales) + place / 256 * 16, group);
        const int q = bytes[place / 256 * 128 + group / 2 * 32 + at % 32] >> (group % 2 * 4) & 15;
        return scale.x * q - scale.y;
    }
    default:
        return fp8_to_float(bytes[place]) * static_cast<const float*>(scales)[row];
    }
}
