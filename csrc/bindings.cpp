// Python sees the CPU operators as plain functions over addresses, so one build serves every torch.
// Nothing is checked here: vlprune.ops validates once, before it asks for the addresses.
#include <pybind11/pybind11.h>

#include <string>

#include "cpu/ops.h"
#include "cpu/parallel.h"
#include "cuda/linear24_meta.h"

namespace py = pybind11;
using namespace vlprune;

#ifdef VLPRUNE_EMULATE_AVX512
#define VLPRUNE_MODULE _C_emulated
#else
#define VLPRUNE_MODULE _C
#endif

namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}
DType dtype_of(int code) { return static_cast<DType>(code); }
Isa isa_of(int code) { return static_cast<Isa>(code); }

// The order of a packed weight's indices that a GPU architecture wants; made on the host.
void bind_meta(py::module_& m, const std::string& prefix, int64_t (*bytes)(int64_t, int64_t),
               void (*reorder)(const uint8_t*, int64_t, int64_t, uint8_t*)) {
    m.def((prefix + "_meta_bytes").c_str(), bytes, py::arg("out"), py::arg("in_"));
    m.def(
        (prefix + "_reorder_meta").c_str(),
        [reorder](Address meta, int64_t out, int64_t in, Address to) {
            reorder(at<uint8_t>(meta), out, in, at<uint8_t>(to));
        },
        py::arg("meta"), py::arg("out"), py::arg("in_"), py::arg("to"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace

PYBIND11_MODULE(VLPRUNE_MODULE, m) {
    m.doc() = "CPU operators of vlprune. Addresses are integers; dtype 0 float32, 1 bfloat16, 2 float16; "
              "activation 0 none, 1 gelu, 2 quick_gelu; isa 0 portable, 1 avx2, 2 avx512, 3 avx512_bf16.";
    using nogil = py::call_guard<py::gil_scoped_release>;

    m.def("best_isa", [] { return static_cast<int>(best_isa()); });
    m.def("isa_runs", [](int isa) { return isa_runs(isa_of(isa)); }, py::arg("isa"));
    m.def(
        "set_openmp",
        [](Address gomp_parallel, Address get_thread_num, Address get_num_threads) {
            set_openmp(at<void>(gomp_parallel), at<void>(get_thread_num), at<void>(get_num_threads));
        },
        py::arg("gomp_parallel"), py::arg("get_thread_num"), py::arg("get_num_threads"));

    m.def(
        "column_sumsq",
        [](Address x, int dtype, int64_t rows, int64_t cols, int64_t ld, Address weight, Address out, int threads,
           int isa) {
            column_sumsq(at<void>(x), dtype_of(dtype), rows, cols, ld, at<float>(weight), at<float>(out), threads,
                         isa_of(isa));
        },
        py::arg("x"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("ld"), py::arg("weight"),
        py::arg("out"), py::arg("threads"), py::arg("isa"), nogil());
    m.def(
        "wanda_mask",
        [](Address weight, int dtype, int64_t rows, int64_t cols, Address norm, int64_t group, int64_t prune,
           Address keep, int threads, int isa) {
            return wanda_mask(at<void>(weight), dtype_of(dtype), rows, cols, at<float>(norm), group, prune,
                              at<bool>(keep), threads, isa_of(isa));
        },
        py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("norm"), py::arg("group"),
        py::arg("prune"), py::arg("keep"), py::arg("threads"), py::arg("isa"), nogil());
    m.def(
        "wanda_pack24",
        [](Address weight, int dtype, int64_t rows, int64_t cols, Address norm, Address values, Address meta,
           int threads, int isa) {
            return wanda_pack24(at<void>(weight), dtype_of(dtype), rows, cols, at<float>(norm), at<void>(values),
                                at<uint8_t>(meta), threads, isa_of(isa));
        },
        py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("norm"), py::arg("values"),
        py::arg("meta"), py::arg("threads"), py::arg("isa"), nogil());
    m.def(
        "pack24",
        [](Address weight, int dtype, int64_t rows, int64_t cols, Address values, Address meta, int threads,
           int isa) {
            return pack24(at<void>(weight), dtype_of(dtype), rows, cols, at<void>(values), at<uint8_t>(meta),
                          threads, isa_of(isa));
        },
        py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("values"), py::arg("meta"),
        py::arg("threads"), py::arg("isa"), nogil());
    m.def(
        "unpack24",
        [](Address values, Address meta, int dtype, int64_t rows, int64_t cols, Address weight, int threads,
           int isa) {
            unpack24(at<void>(values), at<uint8_t>(meta), dtype_of(dtype), rows, cols, at<void>(weight), threads,
                     isa_of(isa));
        },
        py::arg("values"), py::arg("meta"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("weight"),
        py::arg("threads"), py::arg("isa"), nogil());

    m.def(
        "linear24_few_below", [](int dtype, int isa) { return linear24_few_below(dtype_of(dtype), isa_of(isa)); },
        py::arg("dtype"), py::arg("isa"));
    m.def(
        "linear24_prepared_bytes",
        [](int dtype, int64_t out, int64_t in, bool few, int isa) {
            return linear24_prepared_bytes(dtype_of(dtype), out, in, few, isa_of(isa));
        },
        py::arg("dtype"), py::arg("out"), py::arg("in_"), py::arg("few"), py::arg("isa"));
    m.def(
        "linear24_prepare",
        [](Address values, Address meta, int dtype, int64_t out, int64_t in, bool few, Address prepared, int isa) {
            linear24_prepare(at<void>(values), at<uint8_t>(meta), dtype_of(dtype), out, in, few, at<void>(prepared),
                             isa_of(isa));
        },
        py::arg("values"), py::arg("meta"), py::arg("dtype"), py::arg("out"), py::arg("in_"), py::arg("few"),
        py::arg("prepared"), py::arg("isa"), nogil());
    m.def(
        "linear24",
        [](Address x, int64_t ldx, Address norm_weight, Address norm_bias, float norm_eps, Address prepared, bool few,
           Address bias, Address residual, int dtype, int64_t tokens, int64_t out, int64_t in, int activation,
           Address y, int threads, int isa) {
            if (!norm_weight != !norm_bias)
                throw std::invalid_argument("linear24: a layer norm is a weight and a bias");
            const LayerNorm norm{at<float>(norm_weight), at<float>(norm_bias), norm_eps};
            linear24(at<void>(x), ldx, norm_weight ? &norm : nullptr, at<void>(prepared), few, at<void>(bias),
                     at<void>(residual), dtype_of(dtype), tokens, out, in, static_cast<Activation>(activation),
                     at<void>(y), threads, isa_of(isa));
        },
        py::arg("x"), py::arg("ldx"), py::arg("norm_weight"), py::arg("norm_bias"), py::arg("norm_eps"),
        py::arg("prepared"), py::arg("few"), py::arg("bias"), py::arg("residual"), py::arg("dtype"), py::arg("tokens"),
        py::arg("out"), py::arg("in_"), py::arg("activation"), py::arg("y"), py::arg("threads"), py::arg("isa"),
        nogil());

    m.def(
        "head_attention",
        [](Address qkv, int dtype, int64_t batch_stride, int64_t token_stride, int64_t batch, int64_t length,
           int64_t heads, int64_t dim, bool causal, float scale, Address out, int threads, int isa) {
            head_attention(at<void>(qkv), dtype_of(dtype), batch_stride, token_stride, batch, length, heads, dim,
                           causal, scale, at<void>(out), threads, isa_of(isa));
        },
        py::arg("qkv"), py::arg("dtype"), py::arg("batch_stride"), py::arg("token_stride"), py::arg("batch"), py::arg("length"),
        py::arg("heads"), py::arg("dim"), py::arg("causal"), py::arg("scale"), py::arg("out"), py::arg("threads"),
        py::arg("isa"), nogil());

    m.def(
        "masked_update",
        [](Address weight, int dtype, int64_t rows, int64_t cols, Address a, Address b, int64_t rank, Address keep,
           Address out, int threads, int isa) {
            masked_update(at<void>(weight), dtype_of(dtype), rows, cols, at<float>(a), at<float>(b), rank,
                          at<bool>(keep), at<void>(out), threads, isa_of(isa));
        },
        py::arg("weight"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("a"), py::arg("b"),
        py::arg("rank"), py::arg("keep"), py::arg("out"), py::arg("threads"), py::arg("isa"), nogil());
    m.def(
        "masked_update_backward",
        [](Address grad, int dtype, int64_t rows, int64_t cols, Address a, Address b, int64_t rank, Address keep,
           Address for_a, Address for_b, int threads, int isa) {
            masked_update_backward(at<void>(grad), dtype_of(dtype), rows, cols, at<float>(a), at<float>(b), rank,
                                   at<bool>(keep), at<float>(for_a), at<float>(for_b), threads, isa_of(isa));
        },
        py::arg("grad"), py::arg("dtype"), py::arg("rows"), py::arg("cols"), py::arg("a"), py::arg("b"),
        py::arg("rank"), py::arg("keep"), py::arg("for_a"), py::arg("for_b"), py::arg("threads"), py::arg("isa"),
        nogil());

#ifdef VLPRUNE_WHY_NO_CUDA
    m.attr("why_no_cuda") = VLPRUNE_WHY_NO_CUDA;
#endif
    bind_meta(m, "sm90", sm90_meta_bytes, sm90_reorder_meta);
    bind_meta(m, "sm90_scaled", sm90_scaled_meta_bytes, sm90_scaled_reorder_meta);
    bind_meta(m, "sm80", sm80_meta_bytes, sm80_reorder_meta);
}
