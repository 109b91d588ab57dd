// Products with few rows: as fast as the weights can be read. A warp takes 16 outputs (or twice as many) and an eighth of the
// inputs; weights go from memory to the tensor cores through registers alone, 16 bytes of a row at a time.
#include "formats.cuh"

// Where number `number` of output `output` (of a block's) and row `row` lies among what a warp leaves.
template <int tiles, int groups>
__device__ __forceinline__ int place_of(int output, int row) {
    const int lane = output % 8 * 4 + row % 8 / 2, number = output % 16 / 8 * 2 + row % 2;
    return ((output / 16 * groups + row / 8) * 32 + lane) * 4 + number;
}

template <typename Format, int tiles, int groups>
__device__ __forceinline__ void add_chunk(float (&sums)[tiles][groups][4], const typename Format::Raw (&raw)[tiles][2],
                                          const Fragments (&x)[groups]) {
    float input_sums[groups][4] = {};
    if (Format::has_minima) {
        const uint4 ones = make_uint4(0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80);
#pragma unroll
        for (int group = 0; group < groups; group++) {
            multiply<false>(input_sums[group], ones, ones, x[group]);
        }
    }
#pragma unroll
    for (int tile = 0; tile < tiles; tile++) {
#pragma unroll
        for (int group = 0; group < groups; group++) {
            Format::add(sums[tile][group], raw[tile][0], raw[tile][1], x[group], input_sums[group]);
        }
    }
}

// The rows of a block's outputs: those of each 16 lie in a part of their own.
template <int tiles>
struct Outputs {
    Part parts[tiles];
};

// Leaves the products of each warp's inputs with all outputs in shared memory.
template <typename Format, int tiles, int groups>
__device__ __forceinline__ void leave_products(const Outputs<tiles>& outputs, const uint16_t* x, int k, int rows) {
    const int warp = warp_number(), g = lane_number() / 4, first_row = blockIdx.y * groups * 8;
    const int chunks = (k + CHUNK - 1) / CHUNK, each = chunks_of_part(k), end = min(chunks, (warp + 1) * each);
    float sums[tiles][groups][4] = {};
    const uint16_t* inputs[groups];
#pragma unroll
    for (int group = 0; group < groups; group++) {
        const int row = first_row + group * 8 + g;
        inputs[group] = row < rows ? x + static_cast<uint64_t>(row) * k : nullptr;
    }
    // Chunks that the warp has on their way at a time; the first ones do not wait for the kernel that makes `x`.
    constexpr int under_way = Format::under_way / tiles;
    typename Format::Raw raw[under_way][tiles][2];
    const auto begin_read = [&](int slot, int chunk) {
        if (chunk < end) {
#pragma unroll
            for (int number = 0; number < tiles * 2; number++) {
                const Part& part = outputs.parts[number / 2];
                const int output = min(part.first + number % 2 * 8 + g, part.n - 1);
                raw[slot][number / 2][number % 2] = Format::read(part, output, chunk, k);
            }
        }
    };
#pragma unroll
    for (int slot = 0; slot < under_way; slot++) {
        begin_read(slot, warp * each + slot);
    }
    wait_for_earlier();
    for (int first = warp * each; first < end; first += under_way) {
#pragma unroll
        for (int slot = 0; slot < under_way; slot++) {
            if (first + slot < end) {
                Fragments own[groups];
#pragma unroll
                for (int group = 0; group < groups; group++) {
                    own[group] = Format::read_input(inputs[group], first + slot, k);
                }
                add_chunk<Format, tiles, groups>(sums, raw[slot], own);
                begin_read(slot, first + slot + under_way);
            }
        }
    }
    auto* left = reinterpret_cast<float4*>(shared_memory()) + warp * tiles * groups * 32;
#pragma unroll
    for (int number = 0; number < tiles * groups; number++) {
        const float(&own)[4] = sums[number / groups][number % groups];
        left[number * 32 + lane_number()] = make_float4(own[0], own[1], own[2], own[3]);
    }
    __syncthreads();
}

// The product of one output and one row of the block, all warps' inputs together.
template <int tiles, int groups, bool by_output>
__device__ __forceinline__ float product(const Part& part, int output, int row) {
    const auto* left = reinterpret_cast<const float*>(shared_memory()) + place_of<tiles, groups>(output, row);
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        sum += left[warp * tiles * groups * 128];
    }
    // No other output's scale where this one is beyond the last.
    const int number = min(part.first + output % 16, part.n - 1);
    return by_output ? sum * static_cast<const float*>(part.scales)[number] : sum;
}

template <typename Format, int tiles, int groups, bool by_output>
__device__ __forceinline__ void thin(Parts3 all, const uint16_t* x, int k, int rows) {
    const Part part = all.own(tiles * 16);
    Outputs<tiles> outputs;
#pragma unroll
    for (int tile = 0; tile < tiles; tile++) {
        outputs.parts[tile] = part;
        outputs.parts[tile].first += tile * 16;
    }
    leave_products<Format, tiles, groups>(outputs, x, k, rows);
    for (int index = threadIdx.x; index < tiles * groups * 128; index += THREADS) {
        const int output = index % (tiles * 16), row = index / (tiles * 16), to = blockIdx.y * groups * 8 + row;
        if (part.first + output < part.n && to < rows) {
            Part own = part;
            own.first += output / 16 * 16;
            part.out[static_cast<uint64_t>(to) * part.n + part.first + output] = product<tiles, groups, by_output>(own, output, row);
        }
    }
}

// 16 outputs of a gate's matrix and the same ones of another, and `silu(gate) * up` of them.
template <typename Format, int groups, bool by_output>
__device__ __forceinline__ void gated(const Part& gate, const Part& up, const uint16_t* x, void* out, int kind, int k, int rows) {
    leave_products<Format, 2, groups>({{gate, up}}, x, k, rows);
    const int pitch = padded(gate.n);
    for (int index = threadIdx.x; index < groups * 128; index += THREADS) {
        const int output = index % 16, row = index / 16, to = blockIdx.y * groups * 8 + row;
        if (gate.first + output < pitch && to < rows) {
            const float open = product<2, groups, by_output>(gate, output, row);
            const float value = silu(open) * product<2, groups, by_output>(up, 16 + output, row);
            write_one(out, kind, static_cast<uint64_t>(to) * pitch + gate.first + output, gate.first + output < gate.n ? value : 0);
        }
    }
}

#define GATED_ARGUMENTS                                                                                                  \
    const void *w0, const void *s0, const void *w1, const void *s1, const void *x, void *out, int kind, int n, int k, int rows
#define GATED(Format, groups, by_output)                                                                                 \
    const int first = blockIdx.x * 16;                                                                                   \
    gated<Format, groups, by_output>({w0, s0, nullptr, n, first}, {w1, s1, nullptr, n, first},                           \
                                     static_cast<const uint16_t*>(x), out, kind, k, rows);

#define THIN(name, Format, by_output)                                                             \
    KERNEL(THREADS, name##_8, THIN_ARGUMENTS) {                                                   \
        thin<Format, 1, 1, by_output>(THIN_PARTS, static_cast<const uint16_t*>(x), k, rows);      \
    }                                                                                             \
    KERNEL(THREADS, name##_16, THIN_ARGUMENTS) {                                                  \
        thin<Format, 2, 2, by_output>(THIN_PARTS, static_cast<const uint16_t*>(x), k, rows);      \
    }                                                                                             \
    KERNEL(THREADS, name##_8_gated, GATED_ARGUMENTS) {                                            \
        GATED(Format, 1, by_output)                                                               \
    }                                                                                             \
    KERNEL(THREADS, name##_16_gated, GATED_ARGUMENTS) {                                           \
        GATED(Format, 2, by_output)                                                               \
    }

THIN(thin_bf16, Floats<false>, false)
THIN(thin_f16, Floats<true>, false)
THIN(thin_q8_0, BytesOfBlocks, false)
THIN(thin_q4_1, NibblesOfBlocks, false)
THIN(thin_q4_k, NibblesOfGroups, false)
THIN(thin_fp8, SmallFloats, true)

// Outputs of a warp and rows, in floats.
constexpr int FLOAT_OUTPUTS = 4;
constexpr int FLOAT_ROWS = 8;

// All floats, without rounding: a lane has every 32nd four inputs, and the lanes' sums are added in their order.
KERNEL(THREADS, thin_f32, THIN_ARGUMENTS) {
    wait_for_earlier();
    const Part part = (THIN_PARTS).own(FLOAT_OUTPUTS * WARPS);
    const int lane = lane_number(), first = part.first + warp_number() * FLOAT_OUTPUTS, first_row = blockIdx.y * FLOAT_ROWS;
    const int count = min(FLOAT_ROWS, rows - first_row);
    const float* inputs = static_cast<const float*>(x) + static_cast<uint64_t>(first_row) * k;
    float sums[FLOAT_OUTPUTS][FLOAT_ROWS] = {};
    for (int at = lane * 4; at < k; at += 128) {
        float4 weights[FLOAT_OUTPUTS];
#pragma unroll
        for (int output = 0; output < FLOAT_OUTPUTS; output++) {
            const uint64_t row = min(first + output, part.n - 1);
            weights[output] = *reinterpret_cast<const float4*>(static_cast<const float*>(part.weights) + row * k + at);
        }
#pragma unroll
        for (int row = 0; row < FLOAT_ROWS; row++) {
            if (row < count) {
                const float4 v = *reinterpret_cast<const float4*>(inputs + static_cast<uint64_t>(row) * k + at);
#pragma unroll
                for (int output = 0; output < FLOAT_OUTPUTS; output++) {
                    const float4 w = weights[output];
                    sums[output][row] = fmaf(v.w, w.w, fmaf(v.z, w.z, fmaf(v.y, w.y, fmaf(v.x, w.x, sums[output][row]))));
                }
            }
        }
    }
    float* left = reinterpret_cast<float*>(shared_memory()) + warp_number() * 32 * 33;
#pragma unroll
    for (int number = 0; number < FLOAT_OUTPUTS * FLOAT_ROWS; number++) {
        left[number * 33 + lane] = sums[number % FLOAT_OUTPUTS][number / FLOAT_OUTPUTS];
    }
    __syncwarp();
    float sum = 0;
    for (int other = 0; other < 32; other++) {
        sum += left[lane * 33 + other];
    }
    const int output = first + lane % FLOAT_OUTPUTS, row = lane / FLOAT_OUTPUTS;
    if (output < part.n && row < count) {
        part.out[static_cast<uint64_t>(first_row + row) * part.n + output] = sum;
    }
}
