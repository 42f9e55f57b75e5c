// linear24 on NVIDIA's GPUs, free of torch: one call, and what each architecture's file offers for it.
//
// y[t, o] = act(sum_i x[t, i] W[o, i] + bias[o]) + residual[t, o], summed and activated in float32.
// x [tokens, in], residual and y [tokens, out] are row-major with a stride from token to token; `values`
// [out, in/2] is the packed weight as it is stored, `meta` its indices in the order of that architecture
// (linear24_meta.h). All pointers are on the device of `stream`; nothing is allocated, nothing waits.
//
// With x and W of 8 bits the sum is multiplied by x_scale[t] * w_scale[o] before the bias is added: int8 is
// summed in int32.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "codes.h"

namespace vlprune {

struct Linear24Call {
    const void* x;
    int64_t ldx;
    const void* values;
    const void* meta;
    const void* bias;      // [out], may be null; float32 where there are scales
    const void* residual;  // may be null
    int64_t ldr;
    void* y;
    int64_t ldy;
    int64_t tokens, out, in;
    DType dtype;  // of x and values; without scales of bias, residual and y too
    Activation activation;
    void* workspace;  // of at least workspace_bytes, which smXX_workspace says
    size_t workspace_bytes;
    bool workspace_is_fresh;  // not zero yet where it has to be: the call sees to that
    int sms;  // multiprocessors to fill
    cudaStream_t stream;
    const float* x_scale;  // [tokens] and [out], for s8 and e4m3 alone
    const float* w_scale;
    DType y_dtype;  // of residual and y, where there are scales: bf16 or f16
};

// One way to cut the product into tiles. Numbers of configs are per architecture, from 0.
struct ConfigInfo {
    const char* name;
    int out, tokens, in;  // tile
    int stages;           // tiles of `in` in flight
    int split;            // parts that `in` is summed in: 1, or 0 where the kernel chooses at run time
};

// Of a workspace, this many bytes at either end are to be zero before the first call that uses it, unless it is
// said to be fresh; every call leaves them fit for the next one on the same stream, of whatever sizes.
constexpr size_t zeroed_workspace = 4096 + 128;

// For each architecture: configs are numbered from 0, and only `config` asks for a number that exists. why_not
// says in a sentence why a config cannot run a call (null: it can), judging sizes, strides, dtype and activation
// (null pointers are not judged). workspace is 0 where none is needed or the config cannot. run returns a
// cudaError_t. All but run need neither a GPU nor a driver.
int sm90_configs();
ConfigInfo sm90_config(int config);
size_t sm90_workspace(int config, const Linear24Call& call);
const char* sm90_why_not(int config, const Linear24Call& call);
int sm90_run(int config, const Linear24Call& call);

// The same for x and W of 8 bits, with configs and numbers of their own.
int sm90_scaled_configs();
ConfigInfo sm90_scaled_config(int config);
size_t sm90_scaled_workspace(int config, const Linear24Call& call);
const char* sm90_scaled_why_not(int config, const Linear24Call& call);
int sm90_scaled_run(int config, const Linear24Call& call);

int sm80_configs();
ConfigInfo sm80_config(int config);
size_t sm80_workspace(int config, const Linear24Call& call);
const char* sm80_why_not(int config, const Linear24Call& call);
int sm80_run(int config, const Linear24Call& call);

}  // namespace vlprune
