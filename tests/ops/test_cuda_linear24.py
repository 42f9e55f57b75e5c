"""linear24 on a GPU: every backend and config against float64; in graphs, compiled, on streams, trained."""

import pytest
import torch

from vlprune import ops
from vlprune.nn import Linear24, QuantizedLinear24
from vlprune.ops import backend, functional, reference
from vlprune.ops.cuda24 import entry, forms, measure
from vlprune.ops.cuda24.chooser import able_forms
from vlprune.ops.cuda24.problem import Problem

from .test_linear24 import ACTIVATIONS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

TOKENS = (1, 7, 50, 197, 257, 577, 4096)
# [out, in]: real ones, one tile or less, and no multiples of tiles.
SHAPES = ((1024, 1024), (768, 3072), (8, 64), (200, 704), (1000, 336), (136, 80))
BACKENDS = ("sm90", "sm80", "triton", "cusparselt")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SCALED = {"int8": torch.int8, "e4m3": torch.float8_e4m3fn}
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    # Whatever the environment asks for, and whatever was measured before.
    monkeypatch.setattr(backend, "_override", lambda: "auto")
    monkeypatch.setenv("VLPRUNE_CACHE", str(tmp_path))


def skip_where_it_cannot(name, problem):
    sizes = {"tokens": problem.tokens, "in_features": problem.inputs, "out_features": problem.out}
    reason = ops.why_not(name, "linear24", dtype=problem.dtype, device=CUDA, **sizes)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_config(name, dtype, shape):
    problem = Problem(1, *shape, dtype)
    skip_where_it_cannot(name, problem)
    form, run = forms.FORMS["linear24"][name], []
    # Triton's are compiled for each number of tokens; tests/kernels goes through more of them.
    jitted = name == "triton"
    if jitted and shape not in SHAPES[1:4:2]:
        pytest.skip("Triton's kernels are compiled for fewer sizes")
    for tokens in (1, 50, 257) if jitted else TOKENS:
        ends = (None, False, False) if tokens % 2 else ("gelu", True, True)
        problem = Problem(tokens, *shape, dtype, *ends)
        operands = measure.Operands(problem, CUDA, 1)
        weight = operands.weights(form)[0]
        for config in form.able(problem)[: 2 if jitted else None]:
            # Within twice the dense product's error of float64, in memory that held NaN.
            right = measure.trusted(operands, lambda y, c=config: operands.run(form, c, weight, y=y))  # noqa: B023
            assert right, (config, tokens)
            run.append(config)
    assert run


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", SCALED.values(), ids=SCALED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_scaled_config(dtype, out_dtype, shape):
    form, run = forms.FORMS["linear24_scaled"]["sm90"], []
    sizes = {"tokens": 1, "in_features": shape[1], "out_features": shape[0]}
    if (reason := ops.why_not("sm90", "linear24_scaled", dtype=dtype, device=CUDA, **sizes)) is not None:
        pytest.skip(reason)
    for tokens in TOKENS:
        ends = (None, False, False) if tokens % 2 else ("gelu", True, True)
        operands = measure.Operands(Problem(tokens, *shape, dtype, *ends, out_dtype), CUDA, 1)
        weight = operands.weights(form)[0]
        for config in form.able(operands.problem):
            right = measure.trusted(operands, lambda y, c=config: operands.run(form, c, weight, y=y))  # noqa: B023
            assert right, (config, tokens)
            run.append(config)
    assert len(set(run)) == 4


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("shape", [*SHAPES, (24, 20)], ids=str)
def test_int8_is_exact(shape, tokens):
    """Scales that are powers of two and sums below 2^8: nothing is rounded, on any backend."""
    values, meta = measure.random_packed(*shape, torch.bfloat16, CUDA)
    few = torch.randperm(shape[1], device=CUDA)[:16]
    x = torch.zeros(tokens, shape[1], dtype=torch.int8, device=CUDA)
    x[:, few] = torch.randint(-4, 5, (tokens, len(few)), dtype=torch.int8, device=CUDA)
    values = (values.sign() * 3).to(torch.int8)
    x_scale = 2.0 ** torch.randint(-3, 4, (tokens,), device=CUDA)
    weight_scale = 2.0 ** torch.randint(-3, 4, (shape[0],), device=CUDA)
    got = ops.linear24_scaled(x, x_scale, values, meta, weight_scale)
    on_cpu = [t.cpu() for t in (x, x_scale, values, meta, weight_scale)]
    assert torch.equal(got.cpu(), ops.linear24_scaled(*on_cpu))


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("tokens", [3, 70])
@pytest.mark.parametrize("inputs", [4096, 4100])
def test_int8_is_summed_exactly_beyond_what_float32_holds(inputs, tokens, backend):
    values, meta = measure.random_packed(64, inputs, torch.float32, CUDA)
    values = torch.randint(100, 128, values.shape, dtype=torch.int8, device=CUDA)
    x = torch.randint(100, 128, (1, inputs), dtype=torch.int8, device=CUDA).repeat(tokens, 1)
    x[1:, :4] -= 1
    # sums of about 2.6e7, of which the first token's are taken off as bias: bfloat16 holds what is left
    scales = torch.ones(tokens, device=CUDA), torch.ones(64, device=CUDA)
    exact = x.double() @ reference.unpack24(values.double(), meta).T
    bias = -exact[0].float()
    got = ops.linear24_scaled(x, scales[0], values, meta, scales[1], bias, backend=backend)
    assert torch.equal(got, (exact.float() + bias).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", SCALED.values(), ids=SCALED)
def test_scaled_surroundings_and_strides(dtype):
    values, meta = measure.random_packed(136, 192, torch.float32, CUDA)
    q, weight_scale = ops.quantize_rows(values, dtype)
    x, x_scale = ops.quantize_rows(torch.randn(77, 192, device=CUDA), dtype)
    # 127 in int8, NaN in E4M3: whatever is read of it would be seen.
    around = torch.full((79, 224), 127, dtype=torch.int8, device=CUDA).view(dtype)
    around[1:-1, 16:-16] = x
    residual, bias = surrounded(77, 136), surrounded(1, 136)[0].float()
    given = (around[1:-1, 16:-16], x_scale, q, meta, weight_scale, bias, "gelu")
    got = ops.linear24_scaled(*given, residual=residual)
    right = ops.linear24_scaled(
        *(t.cpu() if torch.is_tensor(t) else t for t in given), residual=residual.cpu()
    )
    # A rounding of bfloat16 to either side, at the largest of the numbers.
    assert measure.error_of(got.cpu(), right) < 2**-8 * float(right.abs().max() / right.float().std()) * 2


@pytest.mark.parametrize("dtype", SCALED.values(), ids=SCALED)
def test_a_quantized_layer(dtype):
    _, layer = layer_of()
    made = QuantizedLinear24.from_linear24(layer, dtype)
    x = torch.randn(3, 50, 192, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        eager, right = made(x), layer(x).float()
        # As the operator's own test on the CPU has it.
        assert (eager.float() - right).norm() / right.norm() < (0.02 if dtype is torch.int8 else 0.06)
        torch._dynamo.reset()
        compiled = torch.compile(made, fullgraph=True)(x)
        assert measure.error_of(compiled, eager) < 6e-2
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = made(x)
        y.fill_(float("nan"))
        graph.replay()
        assert torch.equal(y, eager)


def surrounded(*shape, dtype=torch.bfloat16):
    """Random numbers between NaN, which are to reach nothing."""
    around = torch.full((shape[0] + 2, shape[1] + 32), float("nan"), dtype=dtype, device=CUDA)
    inside = around[1:-1, 16:-16]
    inside.copy_(torch.randn(shape, device=CUDA))
    return inside


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_strides_and_surroundings(name, activation):
    problem = Problem(77, 136, 192, torch.bfloat16, activation, True, True)
    if name != "auto":
        skip_where_it_cannot(name, problem)
    values, meta = measure.random_packed(136, 192, torch.bfloat16, CUDA)
    x, residual, bias = surrounded(77, 192), surrounded(77, 136), surrounded(1, 136)[0]
    got = ops.linear24(x, values, meta, bias, activation, backend=name, residual=residual)
    double = [t.double() for t in (x, values, bias, residual)]
    right = ops.linear24(double[0], double[1], meta, double[2], activation, residual=double[3])
    peer = ops.linear24(x, values, meta, bias, activation, backend="torch", residual=residual)
    slack = torch.finfo(torch.bfloat16).eps
    assert measure.error_of(got, right) <= 2 * measure.error_of(peer, right) + slack


def layer_of(out=256, inputs=192, dtype=torch.bfloat16, name="auto", activation="gelu"):
    layer = torch.nn.Linear(inputs, out, device=CUDA, dtype=dtype)
    values, meta = measure.random_packed(out, inputs, dtype, CUDA)
    layer.weight.data = ops.unpack24(values, meta)
    return layer, Linear24.from_linear(layer, activation, backend=name)


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_in_a_graph(name):
    if name != "auto":
        skip_where_it_cannot(name, Problem(50, 256, 192, torch.bfloat16))
    _, layer = layer_of(name=name)
    x = torch.randn(50, 192, device=CUDA, dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    # Of the compiled kernels nothing ran before: a weight's form was made with the layer, and what is not
    # measured is chosen by counting. Triton compiles at the first call, and a library makes its own form.
    if not {name, *able_forms(Problem(50, 256, 192, torch.bfloat16), name, CUDA)} & {"sm90", "sm80"}:
        layer(x)
    with torch.no_grad(), torch.cuda.graph(graph):
        y = layer(x)
    for seed in range(3):
        x.normal_(generator=torch.Generator(CUDA).manual_seed(seed))
        y.fill_(float("nan"))
        graph.replay()
        right = ops.linear24(x, layer.values, layer.meta, layer.bias, "gelu", backend="torch")
        assert measure.error_of(y, right) < 6e-2  # roundings of bfloat16, as vlprune.measure allows
        with torch.no_grad():
            layer.values.mul_(-1)  # read where they are
        if name == "cusparselt":
            break


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_host_does_not_wait(name):
    if name != "auto":
        skip_where_it_cannot(name, Problem(50, 256, 192, torch.bfloat16))
    _, layer = layer_of(name=name)
    x = torch.randn(50, 192, device=CUDA, dtype=torch.bfloat16)
    residual = torch.randn(50, 256, device=CUDA, dtype=torch.bfloat16)
    arguments = (x, layer.values, layer.meta, layer.bias, "gelu")
    with torch.no_grad():
        before = ops.linear24(*arguments, backend=name, residual=residual)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            after = ops.linear24(*arguments, backend=name, residual=residual)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(before, after)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_made_again_at_once(monkeypatch, mode):
    _, layer = layer_of()
    x = torch.randn(3, 50, 192, device=CUDA, dtype=torch.bfloat16)
    with mode():
        for _ in range(2):
            layer(x)
        assert entry.OUTSIDE._metas[id(layer.meta)].calls
        # the operator is not called any more
        monkeypatch.setattr(functional, "_linear24", None)
        for seed in range(3):
            x.normal_(generator=torch.Generator(CUDA).manual_seed(seed))
            layer.values.data.mul_(-1)
            right = torch.ops.vlprune.linear24(x, layer.values, layer.meta, layer.bias, "gelu", "torch")
            y = layer(x)
            assert y.shape == right.shape
            assert y.is_inference() == right.is_inference()
            assert measure.error_of(y, right) < 6e-2


def test_made_again_in_a_graph():
    _, layer = layer_of()
    x = torch.randn(50, 192, device=CUDA, dtype=torch.bfloat16)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        for _ in range(3):
            before = layer(x)
        with torch.cuda.graph(graph):
            y = layer(x)
        y.fill_(torch.nan)
        graph.replay()
    assert torch.equal(y, before)


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_compiled(mode):
    _, layer = layer_of()
    x = torch.randn(3, 50, 192, device=CUDA, dtype=torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    with torch.no_grad():
        for _ in range(4):
            assert torch.equal(compiled(x).clone(), layer(x))


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_gradients(activation):
    _, layer = layer_of(activation=activation)
    x = torch.randn(77, 192, device=CUDA, dtype=torch.bfloat16)
    slope, residual = (torch.randn(77, 256, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    grads = {}
    for name, dtype in (("auto", torch.bfloat16), ("torch", torch.bfloat16), ("right", torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, layer.values, layer.bias, residual)]
        asked = "auto" if name == "auto" else "torch"
        y = ops.linear24(*leaves[:2], layer.meta, leaves[2], activation, backend=asked, residual=leaves[3])
        grads[name] = torch.autograd.grad(y, leaves, slope.to(dtype))
    slack = torch.finfo(torch.bfloat16).eps
    for mine, peer, right in zip(grads["auto"], grads["torch"], grads["right"], strict=True):
        assert measure.error_of(mine, right) <= 2 * measure.error_of(peer, right) + slack


def test_training_in_place_is_seen():
    _, layer = layer_of(activation=None)
    x = torch.randn(50, 192, device=CUDA, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        before = layer(x)
        before.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        right = ops.linear24(x, layer.values, layer.meta, layer.bias, backend="torch")
        assert not torch.equal(layer(x), before)
        assert measure.error_of(layer(x), right) < 6e-2
    # Other places: meta is another tensor's, or changed where it is.
    values, meta = measure.random_packed(256, 192, torch.bfloat16, CUDA)
    layer.load_state_dict({**layer.state_dict(), "values": values, "meta": meta})
    right = ops.linear24(x, values, meta, layer.bias, backend="torch")
    assert measure.error_of(layer(x), right) < 6e-2


def test_under_autocast():
    # Measured inside it, where a dense product of float32 would be one of bfloat16.
    _, layer = layer_of(out=264, dtype=torch.float32)
    x = torch.randn(50, 192, device=CUDA)
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        got = layer(x)
    assert got.dtype is torch.float32
    right = ops.linear24(x.double(), layer.values.double(), layer.meta, layer.bias.double(), "gelu")
    assert measure.error_of(got, right) < 1e-4


def test_writes_that_pytorch_does_not_count():
    _, layer = layer_of(activation=None)
    x = torch.randn(50, 192, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        before = layer(x)
        layer.meta.data.copy_(measure.random_packed(256, 192, torch.bfloat16, CUDA)[1])
        ops.prepare24(layer.values, layer.meta)
        right = ops.linear24(x, layer.values, layer.meta, layer.bias, backend="torch")
        assert not torch.equal(layer(x), before)
        assert measure.error_of(layer(x), right) < 6e-2


def test_a_layer_made_where_the_device_is_the_default():
    with CUDA:
        _, layer = layer_of()
        x = torch.randn(50, 192, dtype=torch.bfloat16)
        right = ops.linear24(x, layer.values, layer.meta, layer.bias, "gelu", backend="torch")
        assert measure.error_of(layer(x), right) < 6e-2


def test_on_another_stream():
    _, layer = layer_of()
    x = torch.randn(4096, 192, device=CUDA, dtype=torch.bfloat16)
    with torch.no_grad():
        layer(x)
        torch.cuda.synchronize()
        side = torch.cuda.Stream()
        torch.cuda._sleep(20_000_000)
        x.neg_()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            got = layer(x)
        side.synchronize()
        assert torch.equal(got, layer(x))


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_opcheck(name):
    if name != "auto":
        skip_where_it_cannot(name, Problem(10, 64, 64, torch.bfloat16))
    values, meta = measure.random_packed(64, 64, torch.bfloat16, CUDA)
    x = torch.randn(2, 5, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=True)
    bias, residual = torch.randn(64, device=CUDA).bfloat16(), torch.randn(2, 5, 64, device=CUDA).bfloat16()
    values.requires_grad_()
    # The operator's own call is compared with itself, so its results have to be the same each time.
    torch.library.opcheck(
        torch.ops.vlprune.linear24.default, (x, values, meta, bias, "gelu", name, residual.requires_grad_())
    )


def test_a_choice_is_remembered(monkeypatch, tmp_path):
    choice = ops.tune24(50, 1024, 1024)
    if choice is None:
        pytest.skip("nothing but PyTorch runs it here")
    assert choice.seconds > 0
    assert choice.dense > 0
    assert ops.tune24(50, 1024, 1024) == choice


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
def test_second_device():
    _, layer = layer_of()
    layer = layer.to("cuda:1")
    x = torch.randn(50, 192, device="cuda:1", dtype=torch.bfloat16)
    assert torch.cuda.current_device() == 0
    with torch.no_grad():
        right = ops.linear24(x, layer.values, layer.meta, layer.bias, "gelu", backend="torch")
        assert measure.error_of(layer(x), right) < 6e-2
