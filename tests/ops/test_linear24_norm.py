"""linear24 of a layer norm: by every native variant against float64, and wherever it is two operators."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from vlprune import ops
from vlprune.nn import Linear24

from .cases import built_variant, built_variants, needs_native, normal, packed
from .test_linear24_native import linear24, random_weight


@pytest.fixture(params=built_variants("avx512"))
def variant(request):
    return built_variant(*request.param)


def of_norm(variant, x, weight, norm, bias=None, threads=2):
    """The product of the layer norm of x, by the form of the weight for many tokens."""
    return linear24(variant, x, *weight, bias, threads=threads, few=False, norm=norm)


def some_norm(inputs, eps=1e-5):
    return normal(inputs, seed=11), normal(inputs, seed=12), eps


def exact(x, dense, norm, bias=None):
    normalized = F.layer_norm(x.double(), x.shape[-1:], norm[0].double(), norm[1].double(), norm[2])
    return F.linear(normalized, dense.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("inputs", [4, 8, 20, 36, 100, 128, 132, 772])
@pytest.mark.parametrize("center", [0.0, 100.0], ids=["around 0", "around 100"])
def test_equals_float64_as_well_as_two_operators_do(variant, inputs, center):
    values, meta, dense = random_weight(33, inputs, torch.float32)
    bias, norm = normal(33, seed=3), some_norm(inputs)
    ours, theirs = [], []
    for tokens in (1, 7, 8, 14, 50, 77, 197):
        x = 3.0 * normal(tokens, inputs, seed=tokens) + center
        expected = exact(x, dense, norm, bias)
        in_two = F.linear(F.layer_norm(x, (inputs,), *norm), dense, bias)
        errors = [
            got.double() - expected for got in (of_norm(variant, x, (values, meta), norm, bias), in_two)
        ]
        for worst, error in zip((ours, theirs), errors, strict=True):
            worst.append(float(error.abs().max() / expected.abs().max()))
    assert max(ours) <= 2 * max(theirs) + 1e-6, (ours, theirs)


def test_tokens_do_not_see_each_other(variant):
    values, meta, _ = random_weight(40, 132, torch.float32)
    x, norm = normal(50, 132), some_norm(132)
    clean = of_norm(variant, x, (values, meta), norm)
    x[7, 3], x[20, 131] = float("nan"), float("inf")
    y = of_norm(variant, x, (values, meta), norm)
    assert y[[7, 20]].isnan().all()
    others = [t for t in range(50) if t not in (7, 20)]
    assert torch.equal(y[others], clean[others])


def test_rows_apart_and_any_number_of_threads(variant):
    values, meta, _ = random_weight(200, 64, torch.float32)
    x, norm = normal(120, 80)[:, :64], some_norm(64)
    one = of_norm(variant, x, (values, meta), norm, threads=1)
    assert torch.equal(one, of_norm(variant, x.contiguous(), (values, meta), norm, threads=5))


def test_sums_that_overflow_are_nan(variant):
    values, meta, _ = random_weight(24, 36, torch.float32)
    x, norm = normal(16, 36), some_norm(36)
    x[3] = 3e38 * x[3].abs() / x[3].abs().max()
    assert F.layer_norm(x, (36,), *norm)[3].isnan().all()
    y = of_norm(variant, x, (values, meta), norm)
    assert y[3].isnan().all()
    assert y[:3].isfinite().all()


def test_equal_inputs_are_saved_by_epsilon(variant):
    values, meta, dense = random_weight(24, 36, torch.float32)
    norm = some_norm(36)
    y = of_norm(variant, torch.full((16, 36), 7.25), (values, meta), norm)
    torch.testing.assert_close(y, (dense @ norm[1]).expand(16, 24), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("few", [True, False], ids=["few", "bfloat16"])
def test_other_forms_refuse_it(variant, few):
    native, isa = variant
    with pytest.raises(ValueError, match="only the float32 form for many tokens applies a layer norm"):
        native.linear24(1, 8, 1, 1, 1e-5, 1, few, 0, 0, 0 if few else 1, 1, 8, 8, 0, 1, 1, isa)


class Seen(TorchDispatchMode):
    """The names of PyTorch's operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def layer(x):
    """Weight, meta, bias, residual and norm for x."""
    weight, shift, eps = some_norm(24)
    residual = normal(*x.shape[:-1], 12, dtype=x.dtype, seed=5)
    bias = normal(12, dtype=x.dtype, seed=6)
    return *packed(12, 24, x.dtype), bias, residual, (weight.to(x.dtype), shift.to(x.dtype), eps)


def both(x, values, meta, bias, residual, norm, backend="auto"):
    """By one operator, and by two."""
    y = ops.linear24(x, values, meta, bias, "gelu", residual=residual, norm=norm, backend=backend)
    x = F.layer_norm(x, (24,), *norm)
    return y, ops.linear24(x, values, meta, bias, "gelu", residual=residual, backend=backend)


@needs_native
def test_one_operator_where_nobody_looks(monkeypatch):
    ran = []
    monkeypatch.setattr(F, "layer_norm", lambda *args: ran.append(args))
    with torch.no_grad():
        values, meta = packed(12, 24)
        ops.linear24(normal(2, 20, 24), values, meta, norm=some_norm(24))
    assert not ran


@pytest.mark.parametrize(
    "x", [normal(2, 20, 24), normal(2, 3, 24), normal(3, 24), normal(24), normal(40, 2, 24).transpose(0, 1),
          normal(0, 24), normal(2, 20, 24, dtype=torch.bfloat16), normal(2, 20, 24, dtype=torch.float64)],
    ids=["many", "few", "matrix", "vector", "strides", "empty", "bfloat16", "float64"],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_is_the_product_of_the_norm(x, backend):
    with torch.no_grad():
        got, expected = both(x, *layer(x), backend=backend)
    torch.testing.assert_close(got, expected)


@needs_native
def test_a_default_device_watches_nothing(monkeypatch):
    monkeypatch.setattr(F, "layer_norm", lambda *args, **how: pytest.fail("made by PyTorch"))
    in_one, _, rest = layer_of()
    x = normal(3, 20, 24)
    with torch.no_grad(), torch.device("cpu"):
        assert in_one(x, *rest).shape == (3, 20, 12)


def test_modes_see_two_operators():
    x = normal(2, 20, 24)
    with torch.no_grad(), Seen() as seen:
        both(x, *layer(x))
    assert seen.names.count("native_layer_norm") == 2
    assert "_norm_linear24" not in seen.names


@pytest.mark.parametrize("leaf", ["x", "norm"])
def test_gradients_are_those_of_two_operators(leaf):
    values, meta = packed(12, 24)
    x, (weight, bias, eps) = normal(2, 20, 24), some_norm(24)
    for tensor in [x] if leaf == "x" else [weight, bias]:
        tensor.requires_grad_()
    leaves = [tensor for tensor in (x, weight, bias) if tensor.requires_grad]
    y = ops.linear24(x, values, meta, norm=(weight, bias, eps))
    got = torch.autograd.grad(y.square().sum(), leaves)
    y = ops.linear24(F.layer_norm(x, (24,), weight, bias, eps), values, meta)
    torch.testing.assert_close(got, torch.autograd.grad(y.square().sum(), leaves))


def layer_of():
    """Give the product as a function of x, values and the norm's weight, by one operator and by two."""
    values, meta = packed(12, 24)
    weight, shift, eps = some_norm(24)

    def in_one(x, values, weight):
        return ops.linear24(x, values, meta, norm=(weight, shift, eps))

    def in_two(x, values, weight):
        return ops.linear24(F.layer_norm(x, (24,), weight, shift, eps), values, meta)

    return in_one, in_two, (values, weight)


@pytest.mark.parametrize("batched", ["x", "values"])
def test_gradients_through_vmap(batched):
    def gradients(function, rest):
        leaves = [t.clone().requires_grad_() for t in (normal(3, 20, 24), *rest)]
        if batched == "x":
            y = torch.vmap(lambda x: function(x, *leaves[1:]))(leaves[0])
        else:
            y = torch.vmap(lambda factor: function(leaves[0][0], leaves[1] * factor, leaves[2]))(
                torch.ones(2)
            )
        return torch.autograd.grad(y.square().sum(), leaves)

    in_one, in_two, rest = layer_of()
    got = gradients(in_one, rest)
    assert all(bool(gradient.any()) for gradient in got)
    torch.testing.assert_close(got, gradients(in_two, rest))


def test_what_is_traced_is_two_operators():
    in_one, in_two, rest = layer_of()
    x = normal(3, 20, 24)
    with torch.no_grad():
        traced = torch.jit.trace(lambda x: in_one(x, *rest), x)
        graph = make_fx(lambda x: in_one(x, *rest), pre_dispatch=True)(x).graph
    assert "_norm_linear24" not in str(traced.graph)
    assert "_norm_linear24" not in str(graph)
    assert "layer_norm" in str(graph)
    x.requires_grad_()
    got, expected = (torch.autograd.grad(f.square().sum(), x) for f in (traced(x), in_two(x, *rest)))
    torch.testing.assert_close(got, expected)


class Noting(torch.Tensor):
    """A subclass, which PyTorch asks about its functions."""


def test_subclasses_and_function_modes_see_two_functions(monkeypatch):
    ran, norm = [], F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda *args, **how: (ran.append(args), norm(*args, **how))[1])
    in_one, _, rest = layer_of()
    with torch.no_grad():
        in_one(normal(3, 20, 24).as_subclass(Noting), *rest)
        assert ran
        ran.clear()
        with torch.overrides.BaseTorchFunctionMode():
            in_one(normal(3, 20, 24), *rest)
    assert ran


def test_autocast_widens_nothing(monkeypatch):
    # What CUDA's autocast does to a layer norm; without such a GPU it cannot be switched on.
    norm = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda x, *args: norm(x.float(), args[0]))
    x, (values, meta) = normal(4, 24, dtype=torch.bfloat16), packed(12, 24, torch.bfloat16)
    weight, shift, eps = some_norm(24)
    y = ops.linear24(x, values, meta, norm=(weight.bfloat16(), shift.bfloat16(), eps))
    assert y.dtype == torch.bfloat16


def test_a_layer_under_autocast_normalizes_first():
    layer = Linear24(24, 12, dtype=torch.bfloat16)
    x, norm = 3.0 * normal(2, 20, 24), some_norm(24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x, norm=norm), layer(F.layer_norm(x, (24,), *norm)))


def test_no_inputs_at_all():
    x, nothing = torch.zeros(3, 0), torch.zeros(0)
    y = ops.linear24(
        x,
        torch.zeros(5, 0),
        torch.zeros(5, 0, dtype=torch.uint8),
        torch.ones(5),
        norm=(nothing, nothing, 1e-5),
    )
    assert torch.equal(y, torch.ones(3, 5))


def test_transforms():
    in_one, in_two, rest = layer_of()
    x = normal(3, 20, 24)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(lambda x: in_one(x, *rest))(x), in_two(x, *rest))
    ours, theirs = (
        torch.func.jvp(lambda x, f=f: f(x, *rest), (x,), (torch.ones_like(x),)) for f in (in_one, in_two)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(dynamic):
    with torch.no_grad():
        x = normal(2, 20, 24)
        given = (x, *layer(x))
        compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        torch.testing.assert_close(compiled(*given), both(*given))


@pytest.mark.parametrize(
    ("norm", "message"),
    [
        ((torch.ones(8), torch.ones(24), 1e-5), r"norm's weight of shape \(24,\), .* got \(8,\)"),
        ((torch.ones(24), torch.ones(24).half(), 1e-5), r"norm's bias .* got \(24,\), float16 on cpu"),
        ((None, None, 1e-5), r"norm \(weight, bias, epsilon\) or None, got \(None"),
        ((torch.ones(24), torch.ones(24)), r"norm \(weight, bias, epsilon\) or None, got \(tensor"),
    ],
    ids=["shape", "dtype", "no weight", "length"],
)  # fmt: skip
def test_a_norm_that_does_not_fit(norm, message):
    values, meta = packed(12, 24)
    with pytest.raises(ValueError, match=f"linear24: expected {message}"):
        ops.linear24(normal(3, 24), values, meta, norm=norm)
