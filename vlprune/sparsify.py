"""The second verb: run 2:4 weights through packed layers, wherever those measure faster than dense."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import measure, models, ops
from .example import example_inputs
from .fusion import FusedActivation, find_activation
from .models.running import evaluating
from .nn import Linear24
from .ops.cuda24.choice import MARGIN
from .patterns import Pattern

__all__ = ["LayerChoice", "SparsifyReport", "sparsify_"]

FilterFn = Callable[[nn.Module, str], bool]

_PATTERN = Pattern.parse("2:4")

# Rounds of each pair: at least nine, and for short calls as many as fill this time.
_ROUNDS = 9
_MIN_SECONDS = 0.15

# Tokens whose results are compared with float64 before anything is timed.
_COMPARED = 512

# Only these forwards are known to be the plain product; a subclass may do anything.
_DENSE = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


@dataclass(frozen=True)
class LayerChoice:
    """What was measured for one 2:4 layer, and whether it is packed now.

    Args:
        name: qualified, of the layer.
        tokens: of the input that it was measured on, 0 if it was not.
        in_features: inputs.
        out_features: outputs.
        activation: that goes into the epilogue, or None.
        dense: seconds of the dense layer, with the activation; None if not measured.
        sparse: seconds of the packed one.
        packed: whether it is packed now.
        reason: why.
        kernel: the fastest on a GPU, backend and config.

    """

    name: str
    tokens: int
    in_features: int
    out_features: int
    activation: str | None
    dense: float | None
    sparse: float | None
    packed: bool
    reason: str
    kernel: str | None = None

    @property
    def speedup(self) -> float | None:
        """Dense over sparse time, None where it was not measured."""
        return self.dense / self.sparse if self.dense and self.sparse else None


@dataclass(frozen=True)
class SparsifyReport:
    """What `sparsify_` did with every 2:4 layer.

    Args:
        layers: all that were considered.
        also: what was done around packed layers that is not measured, in words.

    """

    layers: tuple[LayerChoice, ...]
    also: tuple[str, ...] = ()

    @property
    def packed(self) -> int:
        """How many layers run packed now."""
        return sum(layer.packed for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        layers = [{**asdict(layer), "speedup": layer.speedup} for layer in self.layers]
        return {"packed": self.packed, "layers": layers, "also": list(self.also)}

    def __str__(self) -> str:
        gains = [layer.speedup for layer in self.layers if layer.packed and layer.speedup]
        spread = f", {min(gains):.2f}x to {max(gains):.2f}x their dense form" if gains else ""
        kept = len(self.layers) - self.packed
        reasons = sorted({layer.reason for layer in self.layers if not layer.packed})
        stayed = f"; {kept} stay dense: {'; '.join(reasons)}" if kept else ""
        also = "".join(f"; {what}" for what in self.also)
        return f"{self.packed} of {len(self.layers)} 2:4 layers packed{spread}{stayed}{also}"


@torch.inference_mode(False)
def sparsify_(
    model: nn.Module,
    *,
    backend: str = "auto",
    only_if_faster: bool = True,
    example: Any = None,
    filter_fn: FilterFn | None = None,
) -> SparsifyReport:
    """Replace 2:4 linear layers by `vlprune.nn.Linear24`, in place; outputs stay equal to dtype tolerance.

    Every layer is timed against its dense form, interleaved, on inputs of the shape that `example` gives
    it, and stays dense unless it is faster; on a GPU once a kind of layer, by `vlprune.ops.tune24`, which
    remembers what it measured. An activation that directly follows a layer (GELU, QuickGELU)
    moves into its epilogue. If anything fails, the model is as it was before.

    Around packed layers `vlprune.nn.blocks` leaves out work that no result needs: these layers add the
    residuals; an image tower whose embedding is read from the class token runs its last block for that token
    alone; and on a CPU its patch embedding is one product if that measures faster for eight images, whatever
    `example` and `only_if_faster` say.

    Args:
        model: a model pruned to "2:4".
        backend: "auto" or one of `vlprune.backends()`.
        only_if_faster: False packs every 2:4 layer, unmeasured.
        example: what the model will be run on: ``(images, texts)``, images alone, or a batch size;
            None means a batch of 8.
        filter_fn: ``(module, qualified name) -> bool``, True for the layers to consider.

    """
    from .nn.blocks import fuse_, one_token_layers

    ops.check_backend(backend)
    swaps = _Swaps(model)
    split: list[str] = []
    try:
        split += models.split_attention_(model)
        layers = {
            name: module
            for tower in models.view(model).towers.values()
            for block in tower.blocks
            for name, module in block.linears().items()
            if isinstance(module, nn.Linear)
            and type(module) in _DENSE
            and (filter_fn is None or filter_fn(module, name))
        }
        layers = {name: layer for name, layer in layers.items() if _PATTERN.holds(layer.weight.detach())}
        shapes = _input_shapes(model, layers, example) if only_if_faster and layers else {}
        for name in shapes.keys() & one_token_layers(model):
            batch, _, features = shapes[name]
            shapes[name] = torch.Size((batch, 1, features))
        timed: dict[tuple[Any, ...], _Verdict] = {}
        choices = tuple(
            _choose(swaps, name, layer, backend, only_if_faster, shapes, timed)
            for name, layer in layers.items()
        )
        also = tuple(fuse_(model))
    except BaseException:
        swaps.undo()
        raise
    finally:
        models.merge_attention_(model, [n for n in split if not _has_packed(model.get_submodule(n))])
    return SparsifyReport(choices, also)


class _Swaps:
    """Modules put in the place of others, and the way back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._before: list[tuple[nn.Module, str, nn.Module]] = []

    def replace(self, name: str, module: nn.Module) -> None:
        path, _, child = name.rpartition(".")
        parent = self.model.get_submodule(path)
        self._before.append((parent, child, getattr(parent, child)))
        setattr(parent, child, module)

    def undo(self) -> None:
        for parent, child, module in reversed(self._before):
            setattr(parent, child, module)


def _choose(
    swaps: _Swaps,
    name: str,
    layer: nn.Linear,
    backend: str,
    only_if_faster: bool,
    shapes: dict[str, torch.Size],
    timed: dict[tuple[Any, ...], _Verdict],
) -> LayerChoice:
    fused = find_activation(swaps.model, name)
    activation = fused.kind if fused else None
    fields = (layer.in_features, layer.out_features, activation)
    weight = layer.weight
    if backend != "auto" and (
        refusal := ops.why_not(
            backend, "linear24", dtype=weight.dtype, device=weight.device,
            in_features=layer.in_features, out_features=layer.out_features, tokens=1,
        )
    ):  # fmt: skip
        return LayerChoice(name, 0, *fields, None, None, False, refusal)
    if only_if_faster and name not in shapes:
        return LayerChoice(name, 0, *fields, None, None, False, "the example does not reach it")
    packed = Linear24.from_linear(layer, activation, backend)
    tokens, verdict = 0, _Verdict(None, None, True, "asked for without measuring")
    if only_if_faster:
        shape = shapes[name]
        key = (shape, *fields, layer.bias is not None, weight.dtype)
        if key not in timed:
            timed[key] = _measured(layer, packed, fused, shape, name)
        tokens, verdict = shape[:-1].numel(), timed[key]
    if verdict.faster:
        swaps.replace(name, packed)
        if fused:
            swaps.replace(f"{name.rpartition('.')[0]}.{fused.attribute}", nn.Identity())
    times = (verdict.dense, verdict.sparse)
    return LayerChoice(name, tokens, *fields, *times, verdict.faster, verdict.reason, verdict.kernel)


@dataclass(frozen=True)
class _Verdict:
    """Seconds of the dense and of the packed layer, and what follows from them."""

    dense: float | None
    sparse: float | None
    faster: bool
    reason: str
    kernel: str | None = None


def _reason(faster: bool) -> str:
    return "faster" if faster else "not faster than dense here"


@torch.no_grad()
def _measured(
    layer: nn.Linear, packed: Linear24, fused: FusedActivation | None, shape: torch.Size, name: str
) -> _Verdict:
    x = torch.randn(shape, device=layer.weight.device, dtype=layer.weight.dtype)

    def dense() -> Tensor:
        y: Tensor = layer(x)
        return fused.module(y) if fused else y

    if x.is_cuda and packed.backend != "torch":
        # A call is shorter than the host needs to make it, so it is the device's own time that counts.
        return _on_device(packed, x, lambda: _check(name, packed(x), dense(), layer, fused, x))
    _check(name, packed(x), dense(), layer, fused, x)
    times = measure.compare(
        {"dense": dense, "sparse": lambda: packed(x)},
        device=x.device,
        rounds=_ROUNDS,
        min_seconds=_MIN_SECONDS,
        max_seconds=2.0,
    )
    before, after = times["dense"], times["sparse"]
    # by the medians and by the undisturbed calls: one alone may be chance on a busy machine
    faster = before.median > after.median * MARGIN and before.p20 > after.p20 * MARGIN
    return _Verdict(before.median, after.median, faster, _reason(faster))


def _check(
    name: str, actual: Tensor, dense: Tensor, layer: nn.Linear, fused: FusedActivation | None, x: Tensor
) -> None:
    """Refuse a result further from float64 than its dtype, or twice the dense layer's error, explains.

    The latter because a few outputs may be far larger than the mean, and so are their roundings.
    """
    rows = x.reshape(-1, x.shape[-1])[:_COMPARED].double()
    exact = F.linear(rows, layer.weight.double(), None if layer.bias is None else layer.bias.double())
    exact = fused.module(exact) if fused else exact
    actual, dense = (y.reshape(-1, y.shape[-1])[:_COMPARED] for y in (actual, dense))
    measure.check_close(name, actual, exact, dense)


def _on_device(packed: Linear24, x: Tensor, check: Callable[[], None]) -> _Verdict:
    choice = ops.tune24(
        x.shape[:-1].numel(), packed.out_features, packed.in_features, x.dtype, packed.activation,
        bias=packed.bias is not None, device=x.device, backend=packed.backend,
    )  # fmt: skip
    if choice is None:
        return _Verdict(None, None, False, "no kernel here takes it")
    check()
    kernel = f"{choice.backend} {choice.config}"
    return _Verdict(choice.dense, choice.seconds, choice.faster, _reason(choice.faster), kernel)


def _has_packed(module: nn.Module) -> bool:
    return any(isinstance(child, Linear24) for child in module.modules())


@torch.no_grad()
def _input_shapes(model: nn.Module, layers: dict[str, nn.Linear], example: Any) -> dict[str, torch.Size]:
    """Shape that each layer's input has in one forward of the example, in eval mode."""
    shapes: dict[str, torch.Size] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            shapes.setdefault(name, args[0].shape)

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(note(name)).remove)
        images, texts = example_inputs(model, example)
        if texts is None:
            model.encode_image(images)  # type: ignore[operator]
        else:
            model(images, texts)
    return shapes
