// The CUDA language on the host, as far as the kernels here use it.
//
// Blocks run one after the other on the calling thread; the threads of a block are fibers. A fiber runs until it must wait
// for others: at a block's barrier, or where the lanes of a warp do something together.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#define __device__
#define __global__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict

struct uint3 {
    uint32_t x, y, z;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline uint2 make_uint2(uint32_t x, uint32_t y) {
    return {x, y};
}
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return {x, y, z, w};
}

namespace emulated {

// What the running fiber sees.
struct Now {
    uint3 thread, block, threads, blocks;
    unsigned char* shared;
};

extern thread_local Now now __attribute__((tls_model("initial-exec")));

// Waits for all threads of the block.
void wait_for_block();

// Lets the 32 lanes do `work` together, on what each of them passes; no lane goes on before it is done.
// `kind` tells different works apart.
using Work = void (*)(void** lanes);
void together(const char* kind, void* mine, Work work);

// Begins to copy 16 bytes, or zeros from nowhere, for the running thread; no number is there until it has waited for them.
void begin_copy(uint4* to, const uint4* from);

// Makes a group of the copies that were begun since the last one.
void end_group();

// Waits until at most so many groups of the running thread's are still under way.
void wait_for_copies(size_t under_way);

// Ends the launch with an error.
[[noreturn]] void fault(const char* what);

using Invoke = void (*)(void** arguments);

// A kernel that can be launched by name.
struct Kernel {
    const char* name;
    uint32_t most_threads;
    Invoke invoke;
    Kernel* next;
    Kernel(const char* name, uint32_t most_threads, Invoke invoke);
};

template <auto function>
struct Invoked;

template <typename... Arguments, void (*function)(Arguments...)>
struct Invoked<function> {
    template <size_t... index>
    static void with(void** arguments, std::index_sequence<index...>) {
        function(*static_cast<Arguments*>(arguments[index])...);
    }
    static void invoke(void** arguments) {
        with(arguments, std::index_sequence_for<Arguments...>());
    }
};

template <typename Value>
struct Shuffled {
    Value value;
    uint32_t source;
    Value result;
};

template <typename Value>
inline Value shuffle(Value value, uint32_t source) {
    Shuffled<Value> mine = {value, source & 31, value};
    together("shuffle", &mine, [](void** lanes) {
        for (int lane = 0; lane < 32; lane++) {
            auto* to = static_cast<Shuffled<Value>*>(lanes[lane]);
            to->result = static_cast<Shuffled<Value>*>(lanes[to->source])->value;
        }
    });
    return mine.result;
}

}  // namespace emulated

#define threadIdx (emulated::now.thread)
#define blockIdx (emulated::now.block)
#define blockDim (emulated::now.threads)
#define gridDim (emulated::now.blocks)

#define KERNEL(threads, name, ...)                                                                \
    extern "C" void name(__VA_ARGS__);                                                            \
    static emulated::Kernel kernel_##name(#name, threads, emulated::Invoked<name>::invoke);       \
    extern "C" void name(__VA_ARGS__)

#define KERNEL_BESIDE(blocks, threads, name, ...) KERNEL(threads, name, __VA_ARGS__)

inline unsigned char* shared_memory() {
    return emulated::now.shared;
}

inline void __syncthreads() {
    emulated::wait_for_block();
}
inline void __syncwarp() {
    emulated::together("warp barrier", nullptr, [](void**) {});
}

template <typename Value>
inline Value __shfl_sync(uint32_t, Value value, int source) {
    return emulated::shuffle(value, source);
}
template <typename Value>
inline Value __shfl_xor_sync(uint32_t, Value value, int mask) {
    return emulated::shuffle(value, (threadIdx.x & 31) ^ mask);
}

inline bool __all_sync(uint32_t, bool mine) {
    bool all = mine;
    emulated::together("vote", &all, [](void** lanes) {
        bool all = true;
        for (int lane = 0; lane < 32; lane++) {
            all = all && *static_cast<bool*>(lanes[lane]);
        }
        for (int lane = 0; lane < 32; lane++) {
            *static_cast<bool*>(lanes[lane]) = all;
        }
    });
    return all;
}

inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline double __longlong_as_double(int64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
// Blocks run one after the other, and a fiber is not interrupted.
inline uint32_t atomicAdd(uint32_t* sum, uint32_t more) {
    const uint32_t before = *sum;
    *sum += more;
    return before;
}
inline int min(int a, int b) {
    return a < b ? a : b;
}
inline int max(int a, int b) {
    return a > b ? a : b;
}
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    uint32_t result = 0;
    for (int index = 0; index < 4; index++) {
        result |= uint32_t(bytes >> ((selector >> index * 4 & 7) * 8) & 255) << index * 8;
    }
    return result;
}

#include "numbers.h"
