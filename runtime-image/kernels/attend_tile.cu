// Attention of many rows that see the same keys: 64 or 128 rows of one head of keys for a block, 64 keys at a time, which are copied to
// shared memory while those before them are used. Heads that share keys are rows of the same tile.
#include "device.cuh"
#include "fragments.cuh"
#include "spans.cuh"

constexpr int TILE_WARPS = 4;
constexpr int TILE_THREADS = TILE_WARPS * 32;
constexpr int TILE_KEYS = 64;

// How far keys and values are apart in shared memory, in bytes: so that the lanes that read together read from different banks.
template <int width>
struct Pitch {
    static constexpr int keys = (width * 2 + 63) / 128 * 128 + 64;
    static constexpr int values = width * 2 + 16;
    static constexpr int stage = TILE_KEYS * (keys + values);
};

// Copies one page's keys and values; those that are not seen become zeros.
template <int width>
__device__ __forceinline__ void copy_page(unsigned char* keys, unsigned char* values, const uint16_t* arena, Cache cache, Page page) {
    constexpr int pieces = width / 8;
    const uint16_t* block = arena + page.block * cache.block_numbers;
    for (int index = threadIdx.x; index < PAGE * pieces; index += TILE_THREADS) {
        const int slot = index / pieces, piece = index % pieces;
        const bool there = slot >= page.begin && slot < page.end;
        const uint64_t from = slot * width + piece * 8;
        copy_async(keys + slot * Pitch<width>::keys + piece * 16, block + cache.keys_at + from, there);
        copy_async(values + slot * Pitch<width>::values + piece * 16, block + cache.values_at + from, there);
    }
}

// Of a warp, 16 rows each; more where there are registers for them, since all of them use what is read of keys and values.
template <int width>
constexpr int tiles_of_warp = width == 64 || width == 80 ? 2 : 1;

// One warp's rows.
template <int width, int tiles>
struct Rows {
    uint32_t queries[tiles][Parts<width>::steps][4];
    Result<width> results[tiles];
    float largest[tiles][2], sums[tiles][2];
    // The last keys that rows `g` and `g + 8` see.
    int last[tiles][2];
};

// Scores of 16 rows as exponents of two, those that are not seen away.
template <int width, int tiles>
__device__ __forceinline__ void hide(const Rows<width, tiles>& rows, float (&scores)[4][tiles][4], const Page& page, int tile) {
    const int t = lane_number() % 4;
    const float factor = score_factor(width);
#pragma unroll
    for (int index = 0; index < 16; index++) {
        const int group = index / 4, slot = group * 8 + t * 2 + index % 2;
        const bool seen = slot >= page.begin && slot < page.end && page.first_key + slot <= rows.last[tile][index % 4 / 2];
        float& score = scores[group][tile][index % 4];
        score = seen ? score * factor + page.bonus : NOTHING;
    }
}

// Scores of 16 rows times `factor`, which are exponents of two then, as weights; brings what was summed so far up to date.
template <int width, int tiles>
__device__ __forceinline__ void weigh(Rows<width, tiles>& rows, float (&scores)[4][tiles][4], float factor, int tile) {
    float largest[2] = {NOTHING, NOTHING}, fade[2], base[2];
#pragma unroll
    for (int index = 0; index < 16; index++) {
        largest[index % 4 / 2] = fmaxf(largest[index % 4 / 2], scores[index / 4][tile][index % 4]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        largest[half] = fmaxf(rows.largest[tile][half], most_of_row(largest[half]) * factor);
        // A row that has seen nothing yet.
        base[half] = largest[half] == NOTHING ? 0 : largest[half];
        fade[half] = power_of_two(rows.largest[tile][half] - base[half]);
        rows.largest[tile][half] = largest[half];
        rows.sums[tile][half] *= fade[half];
    }
    if (!__all_sync(ALL, fade[0] == 1 && fade[1] == 1)) {
        scale(rows.results[tile], fade[0], fade[1]);
    }
#pragma unroll
    for (int index = 0; index < 16; index++) {
        const int half = index % 4 / 2;
        float& score = scores[index / 4][tile][index % 4];
        score = power_of_two(fmaf(score, factor, -base[half]));
        rows.sums[tile][half] += score;
    }
}

__device__ __forceinline__ bool is_whole(const Page& page, int last) {
    return page.begin == 0 && page.end == PAGE && page.bonus == 0 && page.first_key + PAGE - 1 <= last;
}

// One page, whose keys and values lie in shared memory. `first_last` is the last key that the warp's first row sees; the others see
// as many or more.
template <int width, int tiles>
__device__ __forceinline__ void see_page(Rows<width, tiles>& rows, const unsigned char* keys, const unsigned char* values,
                                         const Page& page, int first_last) {
    const int g = lane_number() / 4, t = lane_number() % 4;
    float scores[4][tiles][4] = {};
#pragma unroll
    for (int group = 0; group < 4; group++) {
        const unsigned char* key = keys + (group * 8 + g) * Pitch<width>::keys;
        add_scores<width, tiles>(scores[group], rows.queries, reinterpret_cast<const uint16_t*>(key));
    }
    const bool whole = is_whole(page, first_last);
#pragma unroll
    for (int tile = 0; tile < tiles; tile++) {
        if (!whole) {
            hide<width, tiles>(rows, scores, page, tile);
        }
        weigh<width, tiles>(rows, scores, whole ? score_factor(width) : 1, tile);
    }
#pragma unroll
    for (int part = 0; part < 2; part++) {
        uint32_t weights[tiles][4];
#pragma unroll
        for (int tile = 0; tile < tiles; tile++) {
            const float(&a)[4] = scores[part * 2][tile];
            const float(&b)[4] = scores[part * 2 + 1][tile];
            weights[tile][0] = pack_bf16(a[0], a[1]);
            weights[tile][1] = pack_bf16(a[2], a[3]);
            weights[tile][2] = pack_bf16(b[0], b[1]);
            weights[tile][3] = pack_bf16(b[2], b[3]);
        }
        const auto value = [&](int slot) {
            return reinterpret_cast<const uint16_t*>(values + (part * 16 + slot) * Pitch<width>::values);
        };
        const uint16_t* const own[4] = {value(t * 2), value(t * 2 + 1), value(t * 2 + 8), value(t * 2 + 9)};
        add_values<width, tiles>(rows.results, weights, own);
    }
}

template <int width>
__device__ __forceinline__ void attend_tile(const float* query, const uint16_t* arena, Tile tile, const Span* spans,
                                            const uint32_t* blocks, int queries, int keys, Cache cache, void* out, int kind) {
    constexpr int tiles = tiles_of_warp<width>;
    const int group = queries / keys, first_head = blockIdx.y * group, first = warp_number() * tiles * 16, g = lane_number() / 4;
    const int count = static_cast<int>(tile.rows) * group;
    const auto number_of = [&](int index, int half) { return first + index * 16 + half * 8 + g; };
    const auto row_of = [&](int number) { return static_cast<uint64_t>(tile.first_row + number / group); };
    const auto head_of = [&](int number) { return first_head + number % group; };
    // The last keys that the warp's first and last row see.
    const auto last_of = [&](int number) { return tile.causal ? static_cast<int>(tile.first_position) + number / group : 0x7fffffff; };
    const int first_last = last_of(first), last_last = last_of(first + tiles * 16 - 1);
    Rows<width, tiles> rows;
#pragma unroll
    for (int index = 0; index < tiles; index++) {
        const float* from[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int number = number_of(index, half);
            from[half] = number < count ? query + (row_of(number) * queries + head_of(number)) * width : nullptr;
            rows.largest[index][half] = NOTHING;
            rows.sums[index][half] = 0;
            rows.last[index][half] = last_of(number);
        }
        clear(rows.results[index]);
        load_queries<width>(rows.queries[index], from[0], from[1]);
    }
    const uint32_t most = tile.causal ? tile.first_position + tile.rows : NOBODY;
    const Span* own = spans + tile.first_span;
    unsigned char* shared = shared_memory();
    const auto page = [&](uint32_t index) { return find_page(own, tile.spans, blocks, index, most); };
    // Begins to copy 64 keys; whether there are any.
    const auto copy = [&](uint32_t index) {
        unsigned char* stage = shared + index % 2 * Pitch<width>::stage;
        bool any = false;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const Page next = page(index * 2 + half);
            copy_page<width>(stage + half * PAGE * Pitch<width>::keys,
                             stage + TILE_KEYS * Pitch<width>::keys + half * PAGE * Pitch<width>::values, arena, cache, next);
            any = any || next.begin < next.end;
        }
        copies_commit();
        return any;
    };
    bool more = copy(0);
    for (uint32_t index = 0; more; index++) {
        more = copy(index + 1);
        copies_wait<1>();
        __syncthreads();
        if (first < count) {
            const unsigned char* keys_at = shared + index % 2 * Pitch<width>::stage;
            const unsigned char* values_at = keys_at + TILE_KEYS * Pitch<width>::keys;
            // One after the other: both at a time take more registers than there are.
#pragma unroll 1
            for (int half = 0; half < 2; half++) {
                const Page seen = page(index * 2 + half);
                if (seen.begin < seen.end && seen.first_key <= last_last) {
                    see_page<width, tiles>(rows, keys_at + half * PAGE * Pitch<width>::keys,
                                           values_at + half * PAGE * Pitch<width>::values, seen, first_last);
                }
            }
        }
        __syncthreads();
    }
    copies_wait<0>();
    const int pitch = padded(queries * width);
#pragma unroll
    for (int index = 0; index < tiles * 2; index++) {
        const int half = index % 2, number = number_of(index / 2, half);
        const float sum = sum_of_row(rows.sums[index / 2][half]), factor = sum == 0 ? 0 : 1 / sum;
        if (number < count) {
            for_each_four(rows.results[index / 2], half, [&](int at, float4 four) {
                write_input(out, kind, row_of(number), pitch, head_of(number) * width + at,
                            make_float4(four.x * factor, four.y * factor, four.z * factor, four.w * factor));
            });
        }
    }
}

#define ATTEND_TILE(width, beside)                                                                                                       \
    KERNEL_BESIDE(beside, TILE_THREADS, attend_tile_bf16_##width, const float* query, const void* arena, const uint32_t* tiles,                 \
           const uint32_t* spans, const uint32_t* blocks, int queries, int keys, uint64_t block_numbers, uint64_t layer_at,      \
           void* out, int kind) {                                                                                                \
        wait_for_earlier();                                                                                                      \
        attend_tile<width>(query, static_cast<const uint16_t*>(arena), reinterpret_cast<const Tile*>(tiles)[blockIdx.x],         \
                           reinterpret_cast<const Span*>(spans), blocks, queries, keys,                                          \
                           Cache(block_numbers, layer_at, keys, blockIdx.y, width), out, kind);                                  \
    }

ATTEND_TILE(16, 4)
ATTEND_TILE(64, 2)
ATTEND_TILE(80, 2)
ATTEND_TILE(128, 2)
