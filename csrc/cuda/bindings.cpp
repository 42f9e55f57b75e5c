// Python sees the CUDA operators as plain functions over device addresses and a stream, so one build serves
// every torch; a Launcher keeps addresses from one launch to the next, and its owner what lies there. Nothing is
// checked here: vlprune.ops validates once and asks why_not before it runs.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <string>

#include "cuda/linear24.h"

namespace py = pybind11;
using namespace vlprune;

namespace {

using Address = std::uintptr_t;

const void* at(Address address) { return reinterpret_cast<const void*>(address); }

// What an architecture offers, under its prefix.
struct Architecture {
    std::string prefix;
    int (*configs)();
    ConfigInfo (*config)(int);
    size_t (*workspace)(int, const Linear24Call&);
    const char* (*why_not)(int, const Linear24Call&);
    int (*run)(int, const Linear24Call&);
};

// The sizes of a call whose tensors are contiguous; there are no addresses yet.
Linear24Call contiguous(int64_t tokens, int64_t out, int64_t in, int dtype) {
    Linear24Call call{};
    call.ldx = in;
    call.ldr = call.ldy = out;
    call.tokens = tokens;
    call.out = out;
    call.in = in;
    call.dtype = static_cast<DType>(dtype);
    call.y_dtype = DType::bf16;  // of the two, which are alike in size
    return call;
}

py::list described(const Architecture& architecture) {
    py::list all;
    for (int config = 0; config < architecture.configs(); ++config) {
        const ConfigInfo info = architecture.config(config);
        all.append(py::dict(py::arg("name") = info.name, py::arg("out") = info.out,
                            py::arg("tokens") = info.tokens, py::arg("in") = info.in,
                            py::arg("stages") = info.stages, py::arg("split") = info.split));
    }
    return all;
}

// A call that lacks only what differs from one to the next.
struct Launcher {
    int (*run)(int, const Linear24Call&);
    int config;
    Linear24Call prepared;

    int launch(Address x, Address residual, Address y, Address stream, int64_t ldx, int64_t ldr, int64_t ldy,
               Address workspace, size_t workspace_bytes, bool workspace_is_fresh) const {
        Linear24Call call = prepared;
        call.x = at(x);
        call.ldx = ldx;
        call.residual = at(residual);
        call.ldr = residual ? ldr : 0;
        call.y = reinterpret_cast<void*>(y);
        call.ldy = ldy;
        call.stream = reinterpret_cast<cudaStream_t>(stream);
        call.workspace = reinterpret_cast<void*>(workspace);
        call.workspace_bytes = workspace_bytes;
        call.workspace_is_fresh = workspace_is_fresh;
        return run(config, call);
    }
};

void bind(py::module_& m, const Architecture& a) {
    m.def((a.prefix + "_configs").c_str(), [a] { return described(a); });
    m.def(
        (a.prefix + "_workspace").c_str(),
        [a](int config, int64_t tokens, int64_t out, int64_t in, int dtype) {
            return a.workspace(config, contiguous(tokens, out, in, dtype));
        },
        py::arg("config"), py::arg("tokens"), py::arg("out"), py::arg("in_"), py::arg("dtype"));
    m.def(
        (a.prefix + "_why_not").c_str(),
        [a](int config, int64_t tokens, int64_t out, int64_t in, int dtype, int activation, bool residual) {
            Linear24Call call = contiguous(tokens, out, in, dtype);
            call.activation = static_cast<Activation>(activation);
            if (!residual) call.ldr = 0;
            return a.why_not(config, call);
        },
        py::arg("config"), py::arg("tokens"), py::arg("out"), py::arg("in_"), py::arg("dtype"),
        py::arg("activation"), py::arg("residual"));
    // In two steps, since turning integers into C++ takes the host longer than the rest: what stays from call to
    // call is given once.
    m.def(
        (a.prefix + "_launcher").c_str(),
        [a](int config, Address values, Address meta, Address bias, int64_t tokens, int64_t out, int64_t in,
            int dtype, int activation, int sms, Address x_scale, Address w_scale, int y_dtype) {
            Linear24Call call = contiguous(tokens, out, in, dtype);
            call.values = at(values);
            call.meta = at(meta);
            call.bias = at(bias);
            call.activation = static_cast<Activation>(activation);
            call.sms = sms;
            call.x_scale = static_cast<const float*>(at(x_scale));
            call.w_scale = static_cast<const float*>(at(w_scale));
            call.y_dtype = static_cast<DType>(y_dtype);
            return Launcher{a.run, config, call};
        },
        py::arg("config"), py::arg("values"), py::arg("meta"), py::arg("bias"), py::arg("tokens"),
        py::arg("out"), py::arg("in_"), py::arg("dtype"), py::arg("activation"), py::arg("sms"),
        py::arg("x_scale") = 0, py::arg("w_scale") = 0, py::arg("y_dtype") = 0);
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
    m.doc() = "CUDA operators of vlprune, with addresses and streams as integers; see csrc/cuda/linear24.h.";
    m.def(
        "error_name",
        [](int code) {
            const auto error = static_cast<cudaError_t>(code);
            return std::string(cudaGetErrorName(error)) + ": " + cudaGetErrorString(error);
        },
        py::arg("code"));
    // A method, since `__call__` takes the host longer.
    py::class_<Launcher>(m, "Launcher")
        .def("launch", &Launcher::launch, py::arg("x"), py::arg("residual"), py::arg("y"), py::arg("stream"),
             py::arg("ldx"), py::arg("ldr"), py::arg("ldy"), py::arg("workspace") = 0,
             py::arg("workspace_bytes") = 0, py::arg("workspace_is_fresh") = false,
             py::call_guard<py::gil_scoped_release>());
    bind(m, {"sm90", sm90_configs, sm90_config, sm90_workspace, sm90_why_not, sm90_run});
    bind(m, {"sm90_scaled", sm90_scaled_configs, sm90_scaled_config, sm90_scaled_workspace, sm90_scaled_why_not,
             sm90_scaled_run});
    bind(m, {"sm80", sm80_configs, sm80_config, sm80_workspace, sm80_why_not, sm80_run});
}
