// What stands between the products of a layer and its attention: norms of heads, rotation, keys and values into the arena.
#include "device.cuh"

// The head of one warp, in shared memory.
struct Head {
    float* numbers;
    int width;
};

__device__ __forceinline__ void norm(Head head, const float* weight, float epsilon) {
    float sum = 0;
    for (int at = lane_number(); at < head.width; at += 32) {
        sum += head.numbers[at] * head.numbers[at];
    }
    const float factor = 1.0f / sqrtf(sum_of_warp(sum) / head.width + epsilon);
    for (int at = lane_number(); at < head.width; at += 32) {
        head.numbers[at] = head.numbers[at] * factor * weight[at];
    }
    __syncwarp();
}

__device__ __forceinline__ void rotate(Head head, const float* cosines, const float* sines, int pairs, int neighbours) {
    for (int pair = lane_number(); pair < pairs; pair += 32) {
        const int first = neighbours ? 2 * pair : pair, second = neighbours ? 2 * pair + 1 : pair + pairs;
        const float a = head.numbers[first], b = head.numbers[second];
        head.numbers[first] = a * cosines[pair] - b * sines[pair];
        head.numbers[second] = b * cosines[pair] + a * sines[pair];
    }
    __syncwarp();
}

__device__ __forceinline__ void write_head(Head head, void* arena, int kind, uint64_t place) {
    for (int at = lane_number() * 2; at < head.width; at += 64) {
        const float a = head.numbers[at], b = head.numbers[at + 1];
        if (kind == F32) {
            *reinterpret_cast<float2*>(static_cast<float*>(arena) + place + at) = make_float2(a, b);
        } else {
            *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(arena) + place + at) = pack_bf16(a, b);
        }
    }
}

// A warp for each head of queries, of keys and of values of one row.
KERNEL(THREADS, store, float* query, float* key, const float* value, const float* query_norm, const float* key_norm, float epsilon,
       const float* cosines, const float* sines, int pairs, int neighbours, const uint32_t* places, void* arena, int kind,
       int queries, int keys, int width, uint64_t block_numbers, uint64_t layer_at) {
    wait_for_earlier();
    const uint64_t row = blockIdx.x;
    const uint32_t place = places[row];
    int number = blockIdx.y * WARPS + warp_number();
    if (number >= queries + 2 * keys) {
        return;
    }
    const bool is_query = number < queries, is_value = number >= queries + keys;
    number -= is_query ? 0 : is_value ? queries + keys : queries;
    const Head head = {reinterpret_cast<float*>(shared_memory()) + warp_number() * width, width};
    float* own = is_query ? query + (row * queries + number) * width : key + (row * keys + number) * width;
    const float* from = is_value ? value + (row * keys + number) * width : own;
    for (int at = lane_number(); at < width; at += 32) {
        head.numbers[at] = from[at];
    }
    __syncwarp();
    // Only now, so that the place is on its way together with the numbers.
    if (place == NOBODY) {
        return;
    }
    if (!is_value) {
        const float* weight = is_query ? query_norm : key_norm;
        if (weight != nullptr) {
            norm(head, weight, epsilon);
        }
        rotate(head, cosines + row * pairs, sines + row * pairs, pairs, neighbours);
        for (int at = lane_number(); at < width; at += 32) {
            own[at] = head.numbers[at];
        }
    }
    if (!is_query) {
        const uint64_t part = static_cast<uint64_t>(keys) * PAGE * width;
        const uint64_t slot = (static_cast<uint64_t>(number) * PAGE + place % PAGE) * width;
        write_head(head, arena, kind, place / PAGE * block_numbers + layer_at + (is_value ? part : 0) + slot);
    }
}
