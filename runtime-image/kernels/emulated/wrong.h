// Kernels that do what kernels must not do, for tests of what is told about them.
#pragma once

#include "../device.cuh"

KERNEL(64, wrong_barrier, float* out) {
    if (threadIdx.x < 40) {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

KERNEL(64, wrong_lanes, float* out) {
    if (threadIdx.x < 40) {
        out[threadIdx.x] = __shfl_xor_sync(ALL, 1.0f, 1);
    } else {
        __syncwarp();
    }
}

// No barrier between what a thread writes and what others read.
KERNEL(64, wrong_order, float* out) {
    auto* shared = reinterpret_cast<float*>(shared_memory());
    shared[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = shared[63 - threadIdx.x];
}

// Four numbers at once from where no four begin.
KERNEL(64, wrong_address, float* out) {
    *reinterpret_cast<float4*>(out + 1) = make_float4(1, 2, 3, 4);
}

// Copies four numbers a thread from so many bytes on, and waits for all groups of copies but some.
template <int under_way>
inline void copied(const float* from, int bytes, float* out) {
    auto* own = reinterpret_cast<float*>(shared_memory()) + threadIdx.x * 4;
    copy_async(own, reinterpret_cast<const char*>(from) + bytes, true);
    copies_commit();
    copies_wait<under_way>();
    out[threadIdx.x] = own[0];
    copies_wait<0>();
}

KERNEL(32, right_wait, const float* from, int bytes, float* out) {
    copied<0>(from, bytes, out);
}

// Reads what has not come.
KERNEL(32, wrong_wait, const float* from, int bytes, float* out) {
    copied<1>(from, bytes, out);
}

// Ends before all has come.
KERNEL(32, wrong_end, const float* from) {
    copy_async(shared_memory() + threadIdx.x * 16, from, true);
}
