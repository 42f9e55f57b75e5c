// More than 48 KB of shared memory, which a kernel may use only after it was asked for on that device.
#pragma once
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>

namespace vlprune {

// Asked for once a device: of the first 64, that is; of others each time.
template <auto kernel>
cudaError_t allow_shared_memory(int bytes) {
    static std::atomic<uint64_t> allowed{0};
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
    if (allowed.load(std::memory_order_acquire) & bit) return cudaSuccess;
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_release);
    return error;
}

}  // namespace vlprune
