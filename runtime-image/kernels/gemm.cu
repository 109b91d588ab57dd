// Products with many rows: 128 outputs and 64 rows for a block, 64 inputs at a time, which are copied to shared memory while those
// before them are used. Sums are added in the order of `thin.cu`: a row has the same bits in both.
#include "formats.cuh"

constexpr int OUTPUTS = 128;
constexpr int ROWS = 64;
constexpr int DEPTH = 64;
// Bytes between rows in shared memory: so that eight lanes that read together read from different banks.
constexpr int GEMM_PITCH = DEPTH * 2 + 64;
constexpr int STAGE = (OUTPUTS + ROWS) * GEMM_PITCH;

// Copies inputs `at ..` of the block's outputs and rows; zeros beyond the end.
__device__ __forceinline__ void copy_stage(unsigned char* stage, const uint16_t* w, const uint16_t* x, int at, int n, int k, int rows) {
    constexpr int pieces = DEPTH / 8;
    for (int index = threadIdx.x; index < (OUTPUTS + ROWS) * pieces; index += THREADS) {
        const int row = index / pieces, from = at + index % pieces * 8;
        const bool weights = row < OUTPUTS;
        const int number = weights ? blockIdx.x * OUTPUTS + row : blockIdx.y * ROWS + row - OUTPUTS;
        const bool there = from < k && number < (weights ? n : rows);
        const uint16_t* base = weights ? w : x;
        copy_async(stage + row * GEMM_PITCH + index % pieces * 16, there ? base + static_cast<uint64_t>(number) * k + from : base, there);
    }
    copies_commit();
}

__device__ __forceinline__ uint4 read_piece(const unsigned char* stage, int row, int chunk) {
    return *reinterpret_cast<const uint4*>(stage + row * GEMM_PITCH + chunk * CHUNK * 2 + lane_number() % 4 * 16);
}

template <bool half>
__device__ __forceinline__ void gemm(const uint16_t* w, const uint16_t* x, float* out, int n, int k, int rows) {
    unsigned char* shared = shared_memory();
    const int warp = warp_number(), g = lane_number() / 4, t = lane_number() % 4;
    const int first = warp % 4 * 32, first_row = warp / 4 * 32;
    const int chunks = (k + CHUNK - 1) / CHUNK, each = chunks_of_part(k), stages = (k + DEPTH - 1) / DEPTH;
    float totals[2][4][4] = {}, sums[2][4][4] = {};
    copy_stage(shared, w, x, 0, n, k, rows);
    int in_part = 0;
    for (int number = 0; number < stages; number++) {
        copy_stage(shared + (number + 1) % 2 * STAGE, w, x, (number + 1) * DEPTH, n, k, rows);
        copies_wait<1>();
        __syncthreads();
        const unsigned char* stage = shared + number % 2 * STAGE;
#pragma unroll
        for (int chunk = 0; chunk < DEPTH / CHUNK; chunk++) {
            Fragments columns[4];
#pragma unroll
            for (int group = 0; group < 4; group++) {
                const uint4 four = read_piece(stage, OUTPUTS + first_row + group * 8 + g, chunk);
                columns[group] = {{four.x, four.y}, {four.z, four.w}};
            }
#pragma unroll
            for (int tile = 0; tile < 2; tile++) {
                const uint4 a = read_piece(stage, first + tile * 16 + g, chunk), b = read_piece(stage, first + tile * 16 + 8 + g, chunk);
#pragma unroll
                for (int group = 0; group < 4; group++) {
                    multiply<half>(sums[tile][group], a, b, columns[group]);
                }
            }
            if (++in_part == each || number * (DEPTH / CHUNK) + chunk == chunks - 1) {
                in_part = 0;
#pragma unroll
                for (int index = 0; index < 32; index++) {
                    totals[index / 16][index / 4 % 4][index % 4] += sums[index / 16][index / 4 % 4][index % 4];
                    sums[index / 16][index / 4 % 4][index % 4] = 0;
                }
            }
        }
        __syncthreads();
    }
    copies_wait<0>();
#pragma unroll
    for (int index = 0; index < 32; index++) {
        const int number = index % 4;
        const int output = blockIdx.x * OUTPUTS + first + index / 16 * 16 + number / 2 * 8 + g;
        const int row = blockIdx.y * ROWS + first_row + index / 4 % 4 * 8 + t * 2 + number % 2;
        if (output < n && row < rows) {
            out[static_cast<uint64_t>(row) * n + output] = totals[index / 16][index / 4 % 4][number];
        }
    }
}

KERNEL_BESIDE(1, THREADS, gemm_bf16, const void* w, const void* x, float* out, int n, int k, int rows) {
    wait_for_earlier();
    gemm<false>(static_cast<const uint16_t*>(w), static_cast<const uint16_t*>(x), out, n, k, rows);
}

KERNEL_BESIDE(1, THREADS, gemm_f16, const void* w, const void* x, float* out, int n, int k, int rows) {
    wait_for_earlier();
    gemm<true>(static_cast<const uint16_t*>(w), static_cast<const uint16_t*>(x), out, n, k, rows);
}

KERNEL(THREADS, dequantise, const void* weights, const void* scales, int kind, void* out, int first, int k) {
    wait_for_earlier();
    const int at = (blockIdx.x * THREADS + threadIdx.x) * 4;
    if (at < k) {
        const uint64_t row = first + blockIdx.y;
        const auto one = [&](int index) { return weight_at(weights, scales, kind, row, index, k); };
        write_input(out, BF16, blockIdx.y, k, at, make_float4(one(at), one(at + 1), one(at + 2), one(at + 3)));
    }
}
