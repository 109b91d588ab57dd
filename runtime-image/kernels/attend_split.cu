// Attention of single rows: the pages that a row sees are cut into splits of eight, a warp for each page, and the splits are
// put together by a second kernel. How a row's keys are cut depends on that row alone.
#include "device.cuh"
#include "fragments.cuh"
#include "spans.cuh"

// Heads of queries that are computed together: the rows of a fragment.
constexpr int HEADS = 16;

// What the warps of a block leave for each other.
struct Left {
    float* largest;
    float* sums;
    float* results;
};

template <int width>
__device__ __forceinline__ void see_page(const uint32_t (&query)[1][Parts<width>::steps][4], const uint16_t* keys, const uint16_t* values,
                                         Page page, int heads, Left left) {
    const int g = lane_number() / 4, t = lane_number() % 4, warp = warp_number();
    const auto seen = [&](const uint16_t* numbers, int slot) {
        return slot >= page.begin && slot < page.end ? numbers + slot * width : nullptr;
    };
    float scores[4][1][4] = {};
#pragma unroll
    for (int group = 0; group < 4; group++) {
        add_scores<width, 1>(scores[group], query, seen(keys, group * 8 + g));
    }
    const float factor = score_factor(width);
    float largest[2] = {NOTHING, NOTHING}, sums[2] = {0, 0};
#pragma unroll
    for (int group = 0; group < 4; group++) {
#pragma unroll
        for (int number = 0; number < 4; number++) {
            const int slot = group * 8 + t * 2 + number % 2;
            float& score = scores[group][0][number];
            score = slot >= page.begin && slot < page.end ? score * factor + page.bonus : NOTHING;
            largest[number / 2] = fmaxf(largest[number / 2], score);
        }
    }
    largest[0] = most_of_row(largest[0]);
    largest[1] = most_of_row(largest[1]);
#pragma unroll
    for (int group = 0; group < 4; group++) {
#pragma unroll
        for (int number = 0; number < 4; number++) {
            scores[group][0][number] = exp2f(scores[group][0][number] - largest[number / 2]);
            sums[number / 2] += scores[group][0][number];
        }
    }
    Result<width> results[1];
    clear(results[0]);
#pragma unroll
    for (int part = 0; part < 2; part++) {
        const float(&a)[4] = scores[part * 2][0];
        const float(&b)[4] = scores[part * 2 + 1][0];
        const uint32_t weights[1][4] = {{pack_bf16(a[0], a[1]), pack_bf16(a[2], a[3]), pack_bf16(b[0], b[1]), pack_bf16(b[2], b[3])}};
        const int slot = part * 16 + t * 2;
        const uint16_t* const rows[4] = {seen(values, slot), seen(values, slot + 1), seen(values, slot + 8), seen(values, slot + 9)};
        add_values<width, 1>(results, weights, rows);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float sum = sum_of_row(sums[half]);
        const int head = g + half * 8;
        if (head < heads) {
            if (t == 0) {
                left.largest[warp * HEADS + head] = largest[half];
                left.sums[warp * HEADS + head] = sum;
            }
            float* to = left.results + (warp * heads + head) * width;
            for_each_four(results[0], half, [&](int at, float4 four) { *reinterpret_cast<float4*>(to + at) = four; });
        }
    }
}

// Puts together what the warps left of one head and writes it.
__device__ __forceinline__ void write_split(Left left, int head, int heads, int width, float* partial, float* sums) {
    float largest = NOTHING, sum = 0, factors[WARPS];
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        largest = fmaxf(largest, left.largest[warp * HEADS + head]);
    }
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
        const float own = left.largest[warp * HEADS + head];
        factors[warp] = own == NOTHING ? 0 : exp2f(own - largest);
        sum += own == NOTHING ? 0 : factors[warp] * left.sums[warp * HEADS + head];
    }
    for (int at = lane_number(); at < width; at += 32) {
        float result = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            result += factors[warp] == 0 ? 0 : factors[warp] * left.results[(warp * heads + head) * width + at];
        }
        partial[at] = result;
    }
    if (lane_number() == 0) {
        *reinterpret_cast<float2*>(sums) = make_float2(largest, sum);
    }
}

template <int width>
__device__ __forceinline__ void attend_split(const float* query, const uint16_t* arena, Seen seen, const Span* spans,
                                             const uint32_t* blocks, int queries, int keys, uint64_t block_numbers,
                                             uint64_t layer_at, float* partial, float* sums) {
    if (seen.pages != 0 && blockIdx.x * WARPS >= seen.pages) {
        return;
    }
    const int group = queries / keys, parts = (group + HEADS - 1) / HEADS;
    const int key_head = blockIdx.y / parts, first = blockIdx.y % parts * HEADS, heads = min(HEADS, group - first);
    const int splits = gridDim.x, warp = warp_number(), first_head = key_head * group + first;
    const uint64_t at = (static_cast<uint64_t>(blockIdx.z) * queries + first_head) * splits + blockIdx.x;
    const Span* own = spans + seen.first_span;
    const uint32_t count = seen.row == NOBODY ? 0 : seen.spans;
    const Page start = find_page(own, count, blocks, blockIdx.x * WARPS, NOBODY);
    if (start.begin >= start.end) {
        if (static_cast<int>(threadIdx.x) < heads) {
            *reinterpret_cast<float2*>(sums + (at + static_cast<uint64_t>(threadIdx.x) * splits) * 2) = make_float2(NOTHING, 0);
        }
        return;
    }
    auto* shared = reinterpret_cast<float*>(shared_memory());
    const Left left = {shared, shared + WARPS * HEADS, shared + 2 * WARPS * HEADS};
    const Page page = find_page(own, count, blocks, blockIdx.x * WARPS + warp, NOBODY);
    if (page.begin < page.end) {
        const int g = lane_number() / 4;
        const float* heads_of_row = query + (static_cast<uint64_t>(seen.row) * queries + first_head) * width;
        uint32_t fragments[1][Parts<width>::steps][4];
        load_queries<width>(fragments[0], g < heads ? heads_of_row + g * width : nullptr,
                            g + 8 < heads ? heads_of_row + (g + 8) * width : nullptr);
        const Cache cache(block_numbers, layer_at, keys, key_head, width);
        const uint16_t* block = arena + page.block * block_numbers;
        see_page<width>(fragments, block + cache.keys_at, block + cache.values_at, page, heads, left);
    } else if (lane_number() < HEADS) {
        left.largest[warp * HEADS + lane_number()] = NOTHING;
    }
    __syncthreads();
    for (int head = warp; head < heads; head += WARPS) {
        const uint64_t to = at + static_cast<uint64_t>(head) * splits;
        write_split(left, head, heads, width, partial + to * width, sums + to * 2);
    }
}

#define ATTEND_SPLIT(width)                                                                                                      \
    KERNEL_BESIDE(2, THREADS, attend_split_bf16_##width, const float* query, const void* arena, const uint32_t* seen, const uint32_t* spans, \
           const uint32_t* blocks, int queries, int keys, uint64_t block_numbers, uint64_t layer_at, float* partial, float* sums) { \
        wait_for_earlier();                                                                                                         \
        attend_split<width>(query, static_cast<const uint16_t*>(arena), reinterpret_cast<const Seen*>(seen)[blockIdx.z],          \
                            reinterpret_cast<const Span*>(spans), blocks, queries, keys, block_numbers, layer_at, partial, sums); \
    }

ATTEND_SPLIT(16)
ATTEND_SPLIT(64)
ATTEND_SPLIT(80)
ATTEND_SPLIT(128)

constexpr int COMBINING = 128;

KERNEL(COMBINING, attend_combine, const uint32_t* seen, const float* partial, const float* sums, int splits, int queries, int width,
       void* out, int kind) {
    wait_for_earlier();
    auto* factors = reinterpret_cast<float*>(shared_memory());
    float* tops = factors + splits;
    const Seen row = reinterpret_cast<const Seen*>(seen)[blockIdx.y];
    if (row.row == NOBODY) {
        return;
    }
    const int head = blockIdx.x, thread = threadIdx.x;
    const int used = row.pages == 0 ? splits : (row.pages + WARPS - 1) / WARPS;
    const uint64_t at = (static_cast<uint64_t>(blockIdx.y) * queries + head) * splits;
    const auto* own = reinterpret_cast<const float2*>(sums) + at;
    float largest = NOTHING;
    for (int split = thread; split < used; split += COMBINING) {
        largest = fmaxf(largest, own[split].x);
    }
    for (int mask = 16; mask > 0; mask /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, mask));
    }
    if (lane_number() == 0) {
        tops[warp_number()] = largest;
    }
    __syncthreads();
    largest = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
    float sum = 0;
    for (int split = thread; split < used; split += COMBINING) {
        const float2 both = own[split];
        factors[split] = both.x == NOTHING ? 0 : exp2f(both.x - largest);
        sum += both.x == NOTHING ? 0 : factors[split] * both.y;
    }
    sum = sum_of_warp(sum);
    if (lane_number() == 0) {
        tops[4 + warp_number()] = sum;
    }
    __syncthreads();
    sum = tops[4] + tops[5] + tops[6] + tops[7];
    const int pitch = padded(queries * width), end = head == queries - 1 ? pitch - head * width : width;
    for (int number = thread; number < end; number += COMBINING) {
        float result = 0;
        for (int split = 0; number < width && split < used; split++) {
            if (factors[split] != 0) {
                result += factors[split] * partial[(at + split) * width + number];
            }
        }
        write_one(out, kind, static_cast<uint64_t>(row.row) * pitch + head * width + number, sum == 0 ? 0 : result / sum);
    }
}
