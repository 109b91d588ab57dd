// What the kernels of products share.
#pragma once

#include "device.cuh"

// Numbers of the inputs that two steps of `mma` take; each lane has eight of them that lie together.
constexpr int CHUNK = 32;

// A matrix among those of a launch, and this block's first output in it.
struct Part {
    const void* weights;
    const void* scales;
    float* out;
    int n, first;
};

// Up to three matrices; a block has `outputs` outputs of one of them.
struct Parts3 {
    Part parts[3];

    __device__ __forceinline__ Part own(int outputs) const {
        int block = blockIdx.x;
        Part part = parts[0];
#pragma unroll
        for (int next = 1; next < 3; next++) {
            const int blocks = (part.n + outputs - 1) / outputs;
            if (block >= blocks) {
                block -= blocks;
                part = parts[next];
            } else {
                break;
            }
        }
        part.first = block * outputs;
        return part;
    }
};

#define THIN_ARGUMENTS                                                                                                     \
    const void *w0, const void *s0, float *out0, int n0, const void *w1, const void *s1, float *out1, int n1, const void *w2, \
        const void *s2, float *out2, int n2, const void *x, int k, int rows
#define THIN_PARTS                                                    \
    Parts3 {                                                          \
        { {w0, s0, out0, n0, 0}, {w1, s1, out1, n1, 0}, {w2, s2, out2, n2, 0} } \
    }

// The sum over all inputs is that of eight parts, whole chunks one after the other; so many chunks make a part.
__device__ __forceinline__ int chunks_of_part(int k) {
    return ((k + CHUNK - 1) / CHUNK + WARPS - 1) / WARPS;
}
