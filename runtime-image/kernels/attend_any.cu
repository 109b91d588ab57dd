// Attention in floats, for every width: a block for a row and a head, a page for a warp at a time, a key for a lane.
#include "device.cuh"
#include "spans.cuh"

__device__ __forceinline__ float2 two_numbers(const float* from) {
    return *reinterpret_cast<const float2*>(from);
}
__device__ __forceinline__ float2 two_numbers(const uint16_t* from) {
    const uint32_t both = *reinterpret_cast<const uint32_t*>(from);
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000));
}
__device__ __forceinline__ float one_number(const float* from) {
    return *from;
}
__device__ __forceinline__ float one_number(const uint16_t* from) {
    return bf16_to_float(*from);
}

// What one warp has seen so far: its largest score and its sum are the same in every lane, its result lies in shared memory.
struct Running {
    float largest, sum;
    float* result;
    float* weights;
};

template <typename Number>
__device__ __forceinline__ void see_page(Running& running, const float* query, const Number* keys, const Number* values, Page page,
                                         int width) {
    const int lane = lane_number();
    const bool there = lane >= page.begin && lane < page.end;
    float score = NOTHING;
    if (there) {
        float sum = 0;
        for (int at = 0; at < width; at += 2) {
            const float2 key = two_numbers(keys + lane * width + at);
            sum += query[at] * key.x + query[at + 1] * key.y;
        }
        score = sum * score_factor(width) + page.bonus;
    }
    const float largest = fmaxf(running.largest, most_of_warp(score));
    const float fade = exp2f(running.largest - largest), weight = exp2f(score - largest);
    running.largest = largest;
    running.sum = running.sum * fade + sum_of_warp(weight);
    __syncwarp();
    running.weights[lane] = weight;
    __syncwarp();
    for (int at = lane; at < width; at += 32) {
        float result = running.result[at] * fade;
        for (int slot = page.begin; slot < page.end; slot++) {
            result += running.weights[slot] * one_number(values + slot * width + at);
        }
        running.result[at] = result;
    }
}

template <typename Number>
__device__ __forceinline__ void attend_any(const float* query, const Number* arena, const Seen seen, const Span* spans,
                                           const uint32_t* blocks, int queries, int width, Cache cache, void* out, int kind) {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    float *own_query = shared, *results = shared + width, *weights = results + WARPS * width, *totals = weights + THREADS;
    const int warp = warp_number(), head = blockIdx.x;
    Running running = {NOTHING, 0, results + warp * width, weights + warp * 32};
    for (int at = threadIdx.x; at < width; at += THREADS) {
        own_query[at] = query[(static_cast<uint64_t>(seen.row) * queries + head) * width + at];
    }
    for (int at = lane_number(); at < width; at += 32) {
        running.result[at] = 0;
    }
    __syncthreads();
    for (uint32_t index = warp;; index += WARPS) {
        const Page page = find_page(spans + seen.first_span, seen.spans, blocks, index, NOBODY);
        if (page.begin >= page.end) {
            break;
        }
        const Number* block = arena + page.block * cache.block_numbers;
        see_page(running, own_query, block + cache.keys_at, block + cache.values_at, page, width);
    }
    if (lane_number() == 0) {
        totals[warp] = running.largest;
        totals[WARPS + warp] = running.sum;
    }
    __syncthreads();
    float largest = NOTHING, sum = 0;
    for (int other = 0; other < WARPS; other++) {
        largest = fmaxf(largest, totals[other]);
    }
    for (int other = 0; other < WARPS; other++) {
        sum += totals[WARPS + other] == 0 ? 0 : totals[WARPS + other] * exp2f(totals[other] - largest);
    }
    const uint64_t to = static_cast<uint64_t>(seen.row) * padded(queries * width) + head * width;
    for (int at = threadIdx.x; at < width; at += THREADS) {
        float result = 0;
        for (int other = 0; other < WARPS; other++) {
            result += totals[WARPS + other] == 0 ? 0 : results[other * width + at] * exp2f(totals[other] - largest);
        }
        write_one(out, kind, to + at, sum == 0 ? 0 : result / sum);
    }
    // What fills the row up.
    const int rest = queries * width + threadIdx.x;
    if (head == queries - 1 && rest < padded(queries * width)) {
        write_one(out, kind, static_cast<uint64_t>(seen.row) * padded(queries * width) + rest, 0);
    }
}

#define ATTEND_ANY(name, Number)                                                                                                \
    KERNEL(THREADS, name, const float* query, const void* arena, const uint32_t* seen, const uint32_t* spans,                   \
           const uint32_t* blocks, int queries, int keys, int width, uint64_t block_numbers, uint64_t layer_at, void* out,      \
           int kind) {                                                                                                          \
        wait_for_earlier();                                                                                                     \
        const Seen row = reinterpret_cast<const Seen*>(seen)[blockIdx.y];                                                       \
        const Cache cache(block_numbers, layer_at, keys, blockIdx.x / (queries / keys), width);                                 \
        if (row.row != NOBODY) {                                                                                                \
            attend_any(query, static_cast<const Number*>(arena), row, reinterpret_cast<const Span*>(spans), blocks, queries,    \
                       width, cache, out, kind);                                                                                \
        }                                                                                                                       \
    }

ATTEND_ANY(attend_any_f32, float)
ATTEND_ANY(attend_any_bf16, uint16_t)
