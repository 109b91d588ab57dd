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
