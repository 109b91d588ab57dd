// What `device.cuh` wraps of PTX, on the host: rounding to small floats, tensor cores, copies to shared memory.
#pragma once

// To the nearest, ties to even.
inline uint32_t bf16_bits(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000) {
        return 0x7fff;
    }
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline uint32_t half_bits(float value) {
    const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000;
    const uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000) {
        return 0x7fff;
    }
    if (size >= 0x477ff000) {
        return sign | 0x7c00;
    }
    if (size < 0x38800000) {
        // Subnormal: the float that has the half's last place as its own rounds it.
        const float rounded = __uint_as_float(size) + 0.5f;
        return sign | (__float_as_uint(rounded) - 0x3f000000);
    }
    return sign | (((size + 0xfff + (size >> 13 & 1)) >> 13) - 0x1c000);
}

inline uint32_t pack_bf16(float low, float high) {
    return bf16_bits(low) | bf16_bits(high) << 16;
}

inline uint32_t round_to_half(float low, float high) {
    return half_bits(low) | half_bits(high) << 16;
}

inline float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, size = half & 0x7fff;
    if (size >= 0x7c00) {
        return __uint_as_float(sign | 0x7f800000 | (size & 0x3ff) << 13);
    }
    if (size < 0x400) {
        const float value = float(size) / 16777216.0f;
        return sign ? -value : value;
    }
    return __uint_as_float(sign | (size + 0x1c000) << 13);
}

inline float bf16_to_float(uint32_t bits) {
    return __uint_as_float(bits << 16);
}

inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    const auto one = [](uint32_t a, uint32_t b, uint32_t c) {
        return std::fma(bf16_to_float(a), bf16_to_float(b), bf16_to_float(c));
    };
    return pack_bf16(one(a & 0xffff, b & 0xffff, c & 0xffff), one(a >> 16, b >> 16, c >> 16));
}

inline float power_of_two(float x) {
    return x < -126 ? 0 : std::exp2(x);
}

namespace emulated {

struct Mma {
    float* c;
    const uint32_t* a;
    const uint32_t* b;
};

inline float bf16_number(uint32_t bits) {
    return bf16_to_float(bits & 0xffff);
}
inline float half_number(uint32_t bits) {
    return half_to_float(uint16_t(bits));
}

// m16n8k16: where each lane's numbers stand in the three matrices is told in the PTX manual.
template <float (*number)(uint32_t)>
inline void mma(void** lanes) {
    float a[16][16], b[16][8], c[16][8];
    for (int lane = 0; lane < 32; lane++) {
        const Mma& mine = *static_cast<Mma*>(lanes[lane]);
        const int group = lane / 4, pair = lane % 4 * 2;
        for (int part = 0; part < 4; part++) {
            float* to = &a[group + part % 2 * 8][pair + part / 2 * 8];
            to[0] = number(mine.a[part]);
            to[1] = number(mine.a[part] >> 16);
            c[group + part / 2 * 8][pair + part % 2] = mine.c[part];
        }
        for (int part = 0; part < 2; part++) {
            b[pair + part * 8][group] = number(mine.b[part]);
            b[pair + part * 8 + 1][group] = number(mine.b[part] >> 16);
        }
    }
    for (int row = 0; row < 16; row++) {
        for (int k = 0; k < 16; k++) {
            for (int column = 0; column < 8; column++) {
                c[row][column] += a[row][k] * b[k][column];
            }
        }
    }
    for (int lane = 0; lane < 32; lane++) {
        const Mma& mine = *static_cast<Mma*>(lanes[lane]);
        for (int part = 0; part < 4; part++) {
            mine.c[part] = c[lane / 4 + part / 2 * 8][lane % 4 * 2 + part % 2];
        }
    }
}

}  // namespace emulated

inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated::Mma mine = {c, a, b};
    emulated::together("mma bf16", &mine, emulated::mma<emulated::bf16_number>);
}
inline void mma_half(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated::Mma mine = {c, a, b};
    emulated::together("mma half", &mine, emulated::mma<emulated::half_number>);
}

inline void copy_async(void* shared, const void* global, bool there) {
    emulated::begin_copy(static_cast<uint4*>(shared), there ? static_cast<const uint4*>(global) : nullptr);
}
inline void copies_commit() {
    emulated::end_group();
}
template <int under_way>
inline void copies_wait() {
    emulated::wait_for_copies(under_way);
}

inline void wait_for_earlier() {}

inline uint4 load_once(const uint4* from) {
    return *from;
}
inline uint2 load_once(const uint2* from) {
    return *from;
}
