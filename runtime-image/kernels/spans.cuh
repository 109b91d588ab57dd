// Which keys a row sees, page by page.
#pragma once

#include "device.cuh"

// Keys that lie in blocks one after the other.
struct Span {
    uint32_t blocks_at, begin, end, repeats;
};

// A row of queries and its spans; how many pages they have, or 0 where that is not told.
struct Seen {
    uint32_t row, first_span, spans, pages;
};

// Rows of queries that see the same.
struct Tile {
    uint32_t first_row, rows, first_span, spans, causal, first_position, unused[2];
};

// Where keys and values of one head lie.
struct Cache {
    uint64_t block_numbers, keys_at, values_at;

    // `keys` heads of `width` numbers; this is head number `head`.
    __device__ __forceinline__ Cache(uint64_t block_numbers, uint64_t layer_at, int keys, int head, int width)
        : block_numbers(block_numbers),
          keys_at(layer_at + static_cast<uint64_t>(head) * PAGE * width),
          values_at(keys_at + static_cast<uint64_t>(keys) * PAGE * width) {}
};

// A block, and which of its slots are seen: none where `begin` is not below `end`.
struct Page {
    uint64_t block;
    int begin, end;
    // The number of its first key, which a row's position is compared with.
    int first_key;
    // What is added to the exponents of its keys, which are powers of two.
    float bonus;
};

// Page number `index` of all the pages of the spans; `most` is the last span's end where it ends earlier.
__device__ __forceinline__ Page find_page(const Span* spans, uint32_t count, const uint32_t* blocks, uint32_t index, uint32_t most) {
    for (uint32_t number = 0; number < count; number++) {
        const Span span = spans[number];
        const uint32_t end = span.end < most ? span.end : most;
        const uint32_t first = span.begin / PAGE, pages = end > span.begin ? (end - 1) / PAGE - first + 1 : 0;
        if (index < pages) {
            const int first_key = static_cast<int>((first + index) * PAGE);
            const int begin = static_cast<int>(span.begin) - first_key, last = static_cast<int>(end) - first_key;
            const float bonus = span.repeats == 1 ? 0.0f : log2f(static_cast<float>(span.repeats));
            return {blocks[span.blocks_at + first + index], begin > 0 ? begin : 0, last < PAGE ? last : PAGE, first_key, bonus};
        }
        index -= pages;
    }
    return {0, 0, 0, 0, 0};
}

// Scores are turned to powers of two.
__device__ __forceinline__ float score_factor(int width) {
    return 1.44269504f / sqrtf(static_cast<float>(width));
}

constexpr float NOTHING = -INFINITY;
