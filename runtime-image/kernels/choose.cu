// Choosing tokens as the host's sampler does: weights relative to the likeliest token, the likeliest `top_k`, of those the fewest
// that reach `top_p`, and the one at which their sum passes a random part of it. Sums are of whole numbers, so they have no order.
#include "device.cuh"

constexpr int CHOOSING_WARPS = 16;
constexpr int CHOOSING = CHOOSING_WARPS * 32;
// Candidates that fit into shared memory.
constexpr int LISTED = 4096;

// What is asked of one row; as in README.md.
struct Choice {
    float temperature, top_p, min_p;
    uint32_t top_k, uniform_low, uniform_high, row, unused;
};

// How much some candidates weigh, in parts of 2^-40 of the likeliest, and how many they are.
struct Sum {
    uint64_t mass;
    uint32_t count;
};

struct Shared {
    uint64_t masses[CHOOSING_WARPS];
    uint32_t counts[CHOOSING_WARPS];
    float tops[CHOOSING_WARPS];
    uint32_t answer, listed, unused[2];
    uint32_t list[LISTED];
};

// Candidates of one row; others weigh nothing. The bits of a weight are in the order of weights.
struct Candidates {
    const float* weights;
    int count;
    Shared* shared;
};

__device__ __forceinline__ uint64_t mass_of(float weight) {
    return static_cast<uint64_t>(weight * 1099511627776.0f);
}

// Gives each number of a row, with its own number, to one of the threads; four are read at once, and several times four are on
// their way.
template <typename Take>
__device__ __forceinline__ void for_each_number(const float* row, int count, Take take) {
#pragma unroll 4
    for (int at = threadIdx.x * 4; at < count; at += CHOOSING * 4) {
        const float4 four = read_four(row, at, count);
        const float numbers[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int index = 0; index < 4; index++) {
            if (at + index < count) {
                take(numbers[index], at + index);
            }
        }
    }
}

// The sum over a warp, and over all threads.
__device__ __forceinline__ Sum warp_sum(Sum sum) {
    for (int mask = 16; mask > 0; mask /= 2) {
        sum.mass += __shfl_xor_sync(ALL, sum.mass, mask);
        sum.count += __shfl_xor_sync(ALL, sum.count, mask);
    }
    return sum;
}

__device__ __forceinline__ Sum block_sum(Sum sum, Shared* shared) {
    sum = warp_sum(sum);
    __syncthreads();
    if (lane_number() == 0) {
        shared->masses[warp_number()] = sum.mass;
        shared->counts[warp_number()] = sum.count;
    }
    __syncthreads();
    sum = {0, 0};
    for (int warp = 0; warp < CHOOSING_WARPS; warp++) {
        sum.mass += shared->masses[warp];
        sum.count += shared->counts[warp];
    }
    return sum;
}

// The first of the largest logits; nobody where that is no finite number.
__device__ __forceinline__ uint32_t likeliest(const float* logits, int count, Shared* shared) {
    float top = -INFINITY;
    uint32_t first = NOBODY;
    const auto take = [&](float other, uint32_t number) {
        if (other > top || (other == top && number < first)) {
            top = other;
            first = number;
        }
    };
    for_each_number(logits, count, take);
    for (int mask = 16; mask > 0; mask /= 2) {
        const float other = __shfl_xor_sync(ALL, top, mask);
        take(other, __shfl_xor_sync(ALL, first, mask));
    }
    if (lane_number() == 0) {
        shared->tops[warp_number()] = top;
        shared->counts[warp_number()] = first;
    }
    __syncthreads();
    for (int warp = 0; warp < CHOOSING_WARPS; warp++) {
        take(shared->tops[warp], shared->counts[warp]);
    }
    return fabsf(top) < INFINITY ? first : NOBODY;
}

// Those of the candidates that lie before a place in the order of weights, largest first.
struct Place {
    uint32_t bits;
    // How many with exactly this weight, by their numbers.
    uint32_t equals;
    // All of them together.
    Sum sum;
};

// The sum of the candidates with bits from `from` to below `end`.
__device__ __forceinline__ Sum sum_between(const Candidates& all, bool listed, uint32_t from, uint32_t end) {
    Sum sum = {0, 0};
    const auto take = [&](uint32_t own) {
        if (own >= from && own < end) {
            sum.mass += mass_of(__uint_as_float(own));
            sum.count++;
        }
    };
    if (listed) {
        for (uint32_t number = threadIdx.x; number < all.shared->listed; number += CHOOSING) {
            take(all.shared->list[number]);
        }
    } else {
        for_each_number(all.weights, all.count, [&](float weight, int) { take(__float_as_uint(weight)); });
    }
    return block_sum(sum, all.shared);
}

// Puts the candidates between two weights into shared memory.
__device__ __forceinline__ void list_between(const Candidates& all, uint32_t from, uint32_t end) {
    if (threadIdx.x == 0) {
        all.shared->listed = 0;
    }
    __syncthreads();
    for_each_number(all.weights, all.count, [&](float weight, int) {
        const uint32_t own = __float_as_uint(weight);
        if (own >= from && own < end) {
            all.shared->list[atomicAdd(&all.shared->listed, 1U)] = own;
        }
    });
    __syncthreads();
}

// The fewest of the likeliest candidates that weigh `mass` and are `count`; all of them together are `whole` and reach that.
__device__ __forceinline__ Place reach(const Candidates& all, Sum whole, uint64_t mass, uint32_t count) {
    Sum above = {0, 0}, within = whole;
    uint32_t from = 1, end = 0x3f800001;
    bool listed = false;
    __syncthreads();
    while (end - from > 1) {
        if (!listed && within.count <= LISTED) {
            list_between(all, from, end);
            listed = true;
        }
        const uint32_t middle = from + (end - from) / 2;
        const Sum upper = sum_between(all, listed, middle, end);
        if (above.mass + upper.mass >= mass && above.count + upper.count >= count) {
            from = middle;
            within = upper;
        } else {
            end = middle;
            above = {above.mass + upper.mass, above.count + upper.count};
            within = {within.mass - upper.mass, within.count - upper.count};
        }
    }
    const uint64_t each = mass_of(__uint_as_float(from));
    uint32_t equals = count > above.count ? count - above.count : 1;
    if (mass > above.mass + equals * each) {
        equals = static_cast<uint32_t>((mass - above.mass + each - 1) / each);
    }
    return {from, equals, {above.mass + equals * each, above.count + equals}};
}

// The number of the candidate, by their numbers, with which the sum of `value(weight)` reaches `goal`.
template <typename Value>
__device__ __forceinline__ uint32_t reach_in_order(const Candidates& all, uint64_t goal, Value value) {
    const int lane = lane_number(), warp = warp_number();
    const int each = (all.count + CHOOSING - 1) / CHOOSING * 32, first = warp * each, end = min(all.count, first + each);
    Sum own = {0, 0};
    for (int number = first + lane; number < end; number += 32) {
        own.mass += value(all.weights[number]);
    }
    own = warp_sum(own);
    __syncthreads();
    if (lane == 0) {
        all.shared->masses[warp] = own.mass;
    }
    __syncthreads();
    uint64_t before = 0;
    for (int other = 0; other < warp; other++) {
        before += all.shared->masses[other];
    }
    if (before < goal && goal <= before + own.mass) {
        for (int start = first; start < end && before < goal; start += 32) {
            const int number = start + lane;
            uint64_t sum = number < end ? value(all.weights[number]) : 0;
            for (int apart = 1; apart < 32; apart *= 2) {
                const uint64_t other = __shfl_sync(ALL, sum, max(lane - apart, 0));
                sum += lane >= apart ? other : 0;
            }
            const uint64_t previous = __shfl_sync(ALL, sum, max(lane - 1, 0));
            if (before + sum >= goal && (lane == 0 || before + previous < goal)) {
                all.shared->answer = number;
            }
            before += __shfl_sync(ALL, sum, 31);
        }
    }
    __syncthreads();
    return all.shared->answer;
}

__device__ __forceinline__ uint32_t draw(const Candidates& all, Sum whole, const Choice& choice) {
    const bool fewer = choice.top_k > 0 && choice.top_k < whole.count, narrow = fewer || choice.top_p < 1;
    Sum kept = whole;
    if (fewer) {
        kept = reach(all, whole, 0, choice.top_k).sum;
    }
    if (choice.top_p < 1) {
        const auto wanted = static_cast<uint64_t>(ceil(static_cast<double>(kept.mass) * choice.top_p));
        kept = reach(all, whole, wanted < kept.mass ? wanted : kept.mass, 1).sum;
    }
    const double part = __longlong_as_double(static_cast<int64_t>(choice.uniform_high) << 32 | choice.uniform_low);
    const auto passed = static_cast<uint64_t>(part * static_cast<double>(kept.mass)) + 1;
    const uint64_t goal = passed < kept.mass ? passed : kept.mass;
    if (!narrow) {
        return reach_in_order(all, goal, mass_of);
    }
    const Place place = reach(all, whole, goal, 1);
    return reach_in_order(all, place.equals, [&](float weight) -> uint64_t { return __float_as_uint(weight) == place.bits; });
}

KERNEL(CHOOSING, choose, const float* logits, int vocabulary, const uint32_t* choices, float* weights, uint32_t* tokens) {
    wait_for_earlier();
    auto* shared = reinterpret_cast<Shared*>(shared_memory());
    const Choice choice = reinterpret_cast<const Choice*>(choices)[blockIdx.x];
    if (choice.row == NOBODY) {
        return;
    }
    const float* own = logits + static_cast<uint64_t>(choice.row) * vocabulary;
    uint32_t token = likeliest(own, vocabulary, shared);
    if (token != NOBODY && choice.temperature > 0 && choice.top_k != 1) {
        float* to = weights + static_cast<uint64_t>(choice.row) * vocabulary;
        const float top = own[token];
        // All have read the top before the weights may take the logits' place.
        __syncthreads();
        Sum whole = {0, 0};
        for_each_number(own, vocabulary, [&](float logit, int number) {
            // Those below e^-40 of the likeliest cannot matter to any sum; what is no number is no candidate.
            const float exponent = (logit - top) / choice.temperature;
            const float weight = exponent > -40 ? expf(exponent) : 0;
            const bool candidate = weight > 0 && weight >= choice.min_p;
            to[number] = candidate ? weight : 0;
            whole.mass += candidate ? mass_of(weight) : 0;
            whole.count += candidate;
        });
        whole = block_sum(whole, shared);
        token = draw({to, vocabulary, shared}, whole, choice);
    }
    if (threadIdx.x == 0) {
        tokens[blockIdx.x] = token;
    }
}

// What the host adds to a token's logit, and what it divides it by because the token was there before; as in README.md.
struct Adjustment {
    uint32_t row, token;
    float bias, repetition, less;
    uint32_t unused[3];
};

KERNEL(THREADS, adjust, float* logits, int vocabulary, const uint32_t* adjustments, int count) {
    wait_for_earlier();
    const int number = blockIdx.x * THREADS + threadIdx.x;
    if (number < count) {
        const Adjustment own = reinterpret_cast<const Adjustment*>(adjustments)[number];
        float& logit = logits[static_cast<uint64_t>(own.row) * vocabulary + own.token];
        const float biased = logit + own.bias;
        logit = (biased > 0 ? biased / own.repetition : biased * own.repetition) - own.less;
    }
}

KERNEL(THREADS, restrict_to, float* logits, int vocabulary, const uint32_t* rows, const uint32_t* masks, int words) {
    wait_for_earlier();
    const int at = blockIdx.x * THREADS + threadIdx.x;
    if (at < vocabulary) {
        const uint32_t mask = at / 32 < words ? masks[static_cast<uint64_t>(blockIdx.y) * words + at / 32] : 0;
        if ((mask >> at % 32 & 1) == 0) {
            logits[static_cast<uint64_t>(rows[blockIdx.y]) * vocabulary + at] = -INFINITY;
        }
    }
}
