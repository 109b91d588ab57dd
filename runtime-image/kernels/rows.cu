// Norms and what is done number by number.
#include "device.cuh"
#include "weights.cuh"

// Reads the row that `picked` names, or this one.
__device__ __forceinline__ uint32_t picked_row(const uint32_t* picked) {
    return picked == nullptr ? blockIdx.x : picked[blockIdx.x];
}

__device__ __forceinline__ int first_of_four() {
    return static_cast<int>(blockIdx.x * THREADS + threadIdx.x) * 4;
}

KERNEL(THREADS, embed, const void* weights, const void* scales, int kind, const uint32_t* tokens, float* out, int width, int k) {
    wait_for_earlier();
    const uint32_t token = tokens[blockIdx.x];
    float* to = out + static_cast<uint64_t>(blockIdx.x) * width;
    for (int at = threadIdx.x; at < width; at += THREADS) {
        to[at] = token == NOBODY ? 0 : weight_at(weights, scales, kind, token, at, k);
    }
}

KERNEL(THREADS, take_tokens, uint32_t* tokens, const uint32_t* pairs, const uint32_t* chosen, int count) {
    wait_for_earlier();
    const int number = blockIdx.x * THREADS + threadIdx.x;
    if (number < count) {
        tokens[pairs[number * 2]] = chosen[pairs[number * 2 + 1]];
    }
}

// `sum[at ..] += scale * x[at ..]`, four numbers of a row.
__device__ __forceinline__ void add_four(float* sum, float scale, const float* x, int at, int width) {
    if (at < width) {
        const float4 a = read_four(sum, at, width), b = read_four(x, at, width);
        write_four(sum, at, width, make_float4(a.x + scale * b.x, a.y + scale * b.y, a.z + scale * b.z, a.w + scale * b.w));
    }
}

__device__ __forceinline__ float squares(float4 v) {
    return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
}

// So much of a row is kept in registers between its sum and its norm: all loads are on their way at once.
constexpr int KEPT = 8;

// Norms row `blockIdx.x` of an Input; `read(at)` gives four numbers of it, and may be asked again for those beyond what is kept.
template <typename Read>
__device__ __forceinline__ void norm_row(Read read, const float* weight, float epsilon, void* out, int kind, int width) {
    const int first = threadIdx.x * 4, pitch = padded(width);
    float4 numbers[KEPT], weights[KEPT];
#pragma unroll
    for (int index = 0; index < KEPT; index++) {
        const int at = first + index * THREADS * 4;
        numbers[index] = weights[index] = make_float4(0, 0, 0, 0);
        if (at < width) {
            numbers[index] = read(at);
            weights[index] = read_four(weight, at, width);
        }
    }
    float own = 0;
#pragma unroll
    for (int index = 0; index < KEPT; index++) {
        own += squares(numbers[index]);
    }
    for (int at = first + KEPT * THREADS * 4; at < width; at += THREADS * 4) {
        own += squares(read(at));
    }
    const float sum = sum_of_block(own, reinterpret_cast<float*>(shared_memory()));
    const float factor = 1.0f / sqrtf(sum / width + epsilon);
    const auto write = [&](int at, float4 v, float4 w) {
        write_input(out, kind, blockIdx.x, pitch, at,
                    make_float4(v.x * factor * w.x, v.y * factor * w.y, v.z * factor * w.z, v.w * factor * w.w));
    };
#pragma unroll
    for (int index = 0; index < KEPT; index++) {
        const int at = first + index * THREADS * 4;
        if (at < pitch) {
            write(at, numbers[index], weights[index]);
        }
    }
    for (int at = first + KEPT * THREADS * 4; at < pitch; at += THREADS * 4) {
        write(at, at < width ? read(at) : make_float4(0, 0, 0, 0), read_four(weight, at, width));
    }
}

KERNEL(THREADS, rms_norm, const float* x, const uint32_t* picked, const float* weight, float epsilon, void* out, int kind,
       int width) {
    wait_for_earlier();
    const uint32_t row = picked_row(picked);
    if (row == NOBODY) {
        return;
    }
    const float* from = x + static_cast<uint64_t>(row) * width;
    norm_row([&](int at) { return read_four(from, at, width); }, weight, epsilon, out, kind, width);
}

KERNEL(THREADS, add_rms_norm, float* sum, const float* x, const float* weight, float epsilon, void* out, int kind, int width) {
    wait_for_earlier();
    float* to = sum + static_cast<uint64_t>(blockIdx.x) * width;
    const float* from = x + static_cast<uint64_t>(blockIdx.x) * width;
    // What is kept is read once, and written then; the rest has been added before.
    for (int at = threadIdx.x * 4 + KEPT * THREADS * 4; at < width; at += THREADS * 4) {
        add_four(to, 1, from, at, width);
    }
    const auto read = [&](int at) {
        const float4 a = read_four(to, at, width);
        if (at >= KEPT * THREADS * 4) {
            return a;
        }
        const float4 b = read_four(from, at, width), both = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
        write_four(to, at, width, both);
        return both;
    };
    norm_row(read, weight, epsilon, out, kind, width);
}

struct Mean {
    float mean, factor;
};

__device__ __forceinline__ Mean mean_of_row(const float* row, float epsilon, int width, float* shared) {
    float sum = 0;
    for (int at = threadIdx.x * 4; at < width; at += THREADS * 4) {
        const float4 v = read_four(row, at, width);
        sum += v.x + v.y + v.z + v.w;
    }
    const float mean = sum_of_block(sum, shared) / width;
    float squares = 0;
    for (int at = threadIdx.x; at < width; at += THREADS) {
        const float apart = row[at] - mean;
        squares += apart * apart;
    }
    return {mean, 1.0f / sqrtf(sum_of_block(squares, shared) / width + epsilon)};
}

__device__ __forceinline__ float4 centred(float4 v, Mean m, float4 w, float4 b) {
    return make_float4((v.x - m.mean) * m.factor * w.x + b.x, (v.y - m.mean) * m.factor * w.y + b.y,
                       (v.z - m.mean) * m.factor * w.z + b.z, (v.w - m.mean) * m.factor * w.w + b.w);
}

KERNEL(THREADS, layer_norm, const float* x, const float* weight, const float* bias, float epsilon, void* out, int kind, int width) {
    wait_for_earlier();
    const float* from = x + static_cast<uint64_t>(blockIdx.x) * width;
    const Mean mean = mean_of_row(from, epsilon, width, reinterpret_cast<float*>(shared_memory()));
    const int pitch = padded(width);
    for (int at = threadIdx.x * 4; at < pitch; at += THREADS * 4) {
        const float4 v = centred(read_four(from, at, width), mean, read_four(weight, at, width), read_four(bias, at, width));
        // Beyond the row the mean is taken from nothing.
        const float4 within = make_float4(at < width ? v.x : 0, at + 1 < width ? v.y : 0, at + 2 < width ? v.z : 0,
                                          at + 3 < width ? v.w : 0);
        write_input(out, kind, blockIdx.x, pitch, at, within);
    }
}

KERNEL(THREADS, layer_norm_in_place, float* x, const float* weight, const float* bias, float epsilon, int width) {
    wait_for_earlier();
    float* row = x + static_cast<uint64_t>(blockIdx.x) * width;
    const Mean mean = mean_of_row(row, epsilon, width, reinterpret_cast<float*>(shared_memory()));
    // Each thread reads what the others need no more: the means are complete.
    for (int at = threadIdx.x * 4; at < width; at += THREADS * 4) {
        const float4 v = centred(read_four(row, at, width), mean, read_four(weight, at, width), read_four(bias, at, width));
        write_four(row, at, width, v);
    }
}

KERNEL(THREADS, norm_heads, float* x, const float* weight, float epsilon, int heads, int width) {
    wait_for_earlier();
    const int head = blockIdx.y * WARPS + warp_number();
    if (head >= heads) {
        return;
    }
    float* from = x + (static_cast<uint64_t>(blockIdx.x) * heads + head) * width;
    float sum = 0;
    for (int at = lane_number(); at < width; at += 32) {
        sum += from[at] * from[at];
    }
    const float factor = 1.0f / sqrtf(sum_of_warp(sum) / width + epsilon);
    for (int at = lane_number(); at < width; at += 32) {
        from[at] = from[at] * factor * weight[at];
    }
}

KERNEL(THREADS, feed, const float* x, void* out, int kind, int width) {
    wait_for_earlier();
    const int at = first_of_four(), pitch = padded(width);
    if (at < pitch) {
        write_input(out, kind, blockIdx.y, pitch, at, read_four(x + static_cast<uint64_t>(blockIdx.y) * width, at, width));
    }
}

KERNEL(THREADS, silu_times, const float* gate, const float* up, void* out, int kind, int width) {
    wait_for_earlier();
    const int at = first_of_four(), pitch = padded(width);
    if (at < pitch) {
        const uint64_t row = static_cast<uint64_t>(blockIdx.y) * width;
        const float4 g = read_four(gate + row, at, width), u = read_four(up + row, at, width);
        write_input(out, kind, blockIdx.y, pitch, at,
                    make_float4(silu(g.x) * u.x, silu(g.y) * u.y, silu(g.z) * u.z, silu(g.w) * u.w));
    }
}

// By the complementary function of the size, which loses nothing in the tails.
__device__ __forceinline__ float gelu_of(float x) {
    const float tail = 0.5f * fabsf(x) * erfcf(fabsf(x) * 0.70710678f);
    return x > 0 ? x - tail : -tail;
}

KERNEL(THREADS, gelu, const float* x, void* out, int kind, int width) {
    wait_for_earlier();
    const int at = first_of_four(), pitch = padded(width);
    if (at < pitch) {
        const float4 v = read_four(x + static_cast<uint64_t>(blockIdx.y) * width, at, width);
        write_input(out, kind, blockIdx.y, pitch, at, make_float4(gelu_of(v.x), gelu_of(v.y), gelu_of(v.z), gelu_of(v.w)));
    }
}

KERNEL(THREADS, add, float* sum, const float* x, uint64_t count) {
    wait_for_earlier();
    const uint64_t at = (static_cast<uint64_t>(blockIdx.x) * THREADS + threadIdx.x) * 4;
    if (at + 4 <= count) {
        auto* to = reinterpret_cast<float4*>(sum + at);
        const float4 a = *to, b = *reinterpret_cast<const float4*>(x + at);
        *to = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
        return;
    }
    for (uint64_t index = at; index < count; index++) {
        sum[index] += x[index];
    }
}

KERNEL(THREADS, add_to_each, float* sum, const float* x, int width) {
    wait_for_earlier();
    add_four(sum + static_cast<uint64_t>(blockIdx.y) * width, 1, x, first_of_four(), width);
}

KERNEL(THREADS, add_scaled, const uint32_t* picked, float scale, float* sum, const float* x, int width) {
    wait_for_earlier();
    const uint32_t row = picked == nullptr ? blockIdx.y : picked[blockIdx.y];
    if (row != NOBODY) {
        add_four(sum + static_cast<uint64_t>(row) * width, scale, x + static_cast<uint64_t>(blockIdx.y) * width, first_of_four(),
                 width);
    }
}

// One number of a row of `interleave`.
__device__ __forceinline__ float interleaved(const float* last, const float* const (&states)[8], int saved, int width, int index) {
    if (index < width) {
        return last[index];
    }
    const int channel = (index - width) / saved, own = (index - width) % saved;
    float value = 0;
#pragma unroll
    for (int state = 0; state < 8; state++) {
        if (state == own && channel < width) {
            value = states[state][channel];
        }
    }
    return value;
}

KERNEL(THREADS, interleave, const float* last, const float* s0, const float* s1, const float* s2, const float* s3, const float* s4,
       const float* s5, const float* s6, const float* s7, int saved, void* out, int kind, int width) {
    wait_for_earlier();
    const int pitch = padded(width * (1 + saved)), at = first_of_four();
    const uint64_t row = static_cast<uint64_t>(blockIdx.y) * width;
    if (at < pitch) {
        const float* const states[8] = {s0 + row, s1 + row, s2 + row, s3 + row, s4 + row, s5 + row, s6 + row, s7 + row};
        const auto one = [&](int index) { return interleaved(last + row, states, saved, width, index); };
        write_input(out, kind, blockIdx.y, pitch, at, make_float4(one(at), one(at + 1), one(at + 2), one(at + 3)));
    }
}
