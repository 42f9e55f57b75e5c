// The instructions of sm_80 and later that the kernel is made of, by the names that its code uses.
#pragma once
#include <cuda_runtime.h>

#include "cuda/linear24_sm80_types.h"

namespace vlprune::sm80 {

class DeviceMachine {
public:
    __device__ __forceinline__ explicit DeviceMachine(const void* shared)
        : shared_(static_cast<uint32_t>(__cvta_generic_to_shared(shared))) {}

    // Read anew by each function that asks: what is derived from it would hold registers through the main loop.
    __device__ __forceinline__ int thread() const {
        int x;
        asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
        __builtin_assume(x >= 0 && x < 1024);
        return x;
    }
    __device__ __forceinline__ void sync() { __syncthreads(); }

    // 16 bytes from global to shared memory, past L1, in the background.
    __device__ __forceinline__ void copy(int to, const void* from) {
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(shared_ + to),
                     "l"(__cvta_generic_to_global(from))
                     : "memory");
    }
    // A predicate, not a branch: the instructions around it stay one stream.
    __device__ __forceinline__ void copy_if(bool wanted, int to, const void* from) {
        asm volatile(
            "{\n"
            ".reg .pred wanted;\n"
            "setp.ne.b32 wanted, %2, 0;\n"
            "@wanted cp.async.cg.shared.global.L2::128B [%0], [%1], 16;\n"
            "}" ::"r"(shared_ + to),
            "l"(__cvta_generic_to_global(from)), "r"(static_cast<int>(wanted))
            : "memory");
    }
    __device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
    template <int StillOpen>
    __device__ __forceinline__ void wait_copies() {
        asm volatile("cp.async.wait_group %0;" ::"n"(StillOpen) : "memory");
    }

    __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], int from) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_ + from)
                     : "memory");
    }
    __device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], int from) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(shared_ + from)
                     : "memory");
    }
    __device__ __forceinline__ uint32_t load_word(int from) {
        uint32_t word;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(shared_ + from) : "memory");
        return word;
    }
    __device__ __forceinline__ void store_word(int to, uint32_t word) {
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(shared_ + to), "r"(word) : "memory");
    }

    // Sparse weight times x. The indices ascend in each group; that said, sm_120 need not sort them, which
    // makes it several times faster there.
    template <class T, int Selector>
    __device__ __forceinline__ void mma(float (&sums)[4], const uint32_t (&values)[4], const uint32_t (&x)[4],
                                        uint32_t meta) {
#define VLPRUNE_MMA(type)                                                                                     \
    asm("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." type "." type ".f32 "                    \
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"                   \
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                                          \
        : "r"(values[0]), "r"(values[1]), "r"(values[2]), "r"(values[3]), "r"(x[0]), "r"(x[1]), "r"(x[2]),    \
          "r"(x[3]), "r"(meta), "n"(Selector))
        if constexpr (is_bfloat16<T>)
            VLPRUNE_MMA("bf16");
        else
            VLPRUNE_MMA("f16");
#undef VLPRUNE_MMA
    }

    // A warp's 8 x 8 block of 16-bit numbers, two a lane, transposed.
    __device__ __forceinline__ uint32_t transpose(uint32_t pair) {
        uint32_t transposed;
        asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(pair));
        return transposed;
    }
    template <class T>
    __device__ __forceinline__ uint32_t rounded(float low, float high) {
        uint32_t pair;
        if constexpr (is_bfloat16<T>)
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        else
            asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        return pair;
    }

    __device__ __forceinline__ uint32_t load_16(const uint16_t* from) { return __ldg(from); }
    // 8 results from shared to global memory.
    __device__ __forceinline__ void store_8(uint16_t* to, int from) {
        uint4 results;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(results.x), "=r"(results.y), "=r"(results.z), "=r"(results.w)
                     : "r"(shared_ + from)
                     : "memory");
        *reinterpret_cast<uint4*>(to) = results;
    }

    // Sums that other blocks write or read meet in L2.
    __device__ __forceinline__ void store_partial(float* to, const float (&sums)[4]) {
        __stcg(reinterpret_cast<float4*>(to), make_float4(sums[0], sums[1], sums[2], sums[3]));
    }
    __device__ __forceinline__ void load_partial(const float* from, float (&sums)[4]) {
        const float4 quad = __ldcg(reinterpret_cast<const float4*>(from));
        sums[0] = quad.x, sums[1] = quad.y, sums[2] = quad.z, sums[3] = quad.w;
    }
    // Whether this block is the last of `parts` to come here; it leaves the counter at 0 for the next launch.
    __device__ __forceinline__ bool last_to_arrive(uint32_t* arrived, int parts) {
        __threadfence();
        __syncthreads();
        bool last = false;
        if (threadIdx.x == 0) {
            last = atomicAdd(arrived, 1u) == static_cast<uint32_t>(parts - 1);
            if (last) *arrived = 0;
        }
        last = __syncthreads_or(last);
        __threadfence();
        return last;
    }

private:
    uint32_t shared_;
};

}  // namespace vlprune::sm80
