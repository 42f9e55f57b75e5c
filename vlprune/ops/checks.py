"""What the public functions refuse, each with one sentence: the operator, the argument, what it got."""

from __future__ import annotations

import torch
from torch import Tensor

from ..patterns import Pattern

__all__ = [
    "FLOAT_DTYPES",
    "SCALED_DTYPES",
    "LayerNorm",
    "broadcasts",
    "check_device",
    "check_float",
    "check_groups",
    "check_input",
    "check_linear24",
    "check_matrix",
    "check_norm",
    "check_packed",
    "check_scored",
    "check_selection",
    "name_of",
    "wrong_indices",
]

LayerNorm = tuple[Tensor, Tensor, float]  # weight, bias and epsilon
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SCALED_DTYPES = (torch.int8, torch.float8_e4m3fn)
_SCOPES = ("row", "layer")


def name_of(tensor: Tensor) -> str:
    """Say "float32" of a float32 tensor."""
    return str(tensor.dtype)[6:]


def check_float(op: str, name: str, tensor: Tensor) -> None:
    """Refuse a dtype that is no float."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"{op}: expected {name} of dtype float32, bfloat16, float16 or float64, got {name_of(tensor)}"
        )


def check_device(op: str, name: str, tensor: Tensor, like_name: str, like: Tensor) -> None:
    """Refuse a tensor that is elsewhere."""
    if tensor.device != like.device:
        raise ValueError(f"{op}: expected {name} on {like.device} as {like_name} is, got {tensor.device}")


def check_matrix(op: str, name: str, tensor: Tensor) -> None:
    """Refuse what is no matrix of floats."""
    check_float(op, name, tensor)
    if tensor.dim() != 2:
        raise ValueError(f"{op}: expected {name} of shape [out, in], got {tuple(tensor.shape)}")


def check_groups(op: str, weight: Tensor) -> None:
    """Refuse inputs that are no whole groups of four."""
    if weight.shape[1] % 4:
        raise ValueError(f"{op}: expected in_features divisible by 4, got {weight.shape[1]}")


def check_scored(op: str, weight: Tensor, column_norm: Tensor) -> None:
    """Refuse a weight and norm that make no scores."""
    check_matrix(op, "weight", weight)
    check_float(op, "column_norm", column_norm)
    check_device(op, "column_norm", column_norm, "weight", weight)
    if column_norm.shape != (weight.shape[1],):
        raise ValueError(
            f"{op}: expected column_norm of shape {(weight.shape[1],)} for weight of shape "
            f"{tuple(weight.shape)}, got {tuple(column_norm.shape)}"
        )


def check_selection(
    op: str, in_features: int, pattern: str | Pattern, sparsity: float | None, scope: str
) -> str:
    """Refuse a pattern, sparsity or scope that does not fit; the pattern's name."""
    kind = Pattern.parse(pattern)
    kind.resolve_sparsity(sparsity)
    kind.check_inputs(in_features, op)
    if scope not in _SCOPES:
        raise ValueError(f'{op}: expected scope "row" or "layer", got {scope!r}')
    return kind.name


def check_packed(
    op: str, values: Tensor, meta: Tensor, dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES
) -> None:
    """Refuse what has not the form of a packed weight of one of `dtypes`."""
    if values.dtype not in dtypes:
        *names, last = (str(dtype)[6:] for dtype in dtypes)
        raise ValueError(
            f"{op}: expected values of dtype {', '.join(names)} or {last}, got {name_of(values)}"
        )
    if values.dim() != 2 or values.shape[1] % 2:
        raise ValueError(
            f"{op}: expected values of shape [out, in/2] with in divisible by 4, got {tuple(values.shape)}"
        )
    if meta.dtype is not torch.uint8:
        raise ValueError(f"{op}: expected meta of dtype uint8, got {name_of(meta)}")
    rows, half = values.shape
    if meta.shape != (rows, (half + 3) // 4):
        raise ValueError(
            f"{op}: expected meta of shape {(rows, (half + 3) // 4)} for values of shape {(rows, half)}, "
            f"got {tuple(meta.shape)}"
        )
    if meta.device != values.device:
        check_device(op, "meta", meta, "values", values)


def wrong_indices(meta: Tensor, inputs: int) -> str | None:
    """Say which group of a stored meta [out, ceil(inputs/8)] has not two ascending indices, or None.

    Kernels of wgmma may compute anything then. Looks at the contents, so on a GPU the host waits.
    """
    low, high = (meta & 3) >= (meta >> 2 & 3), (meta >> 4 & 3) >= (meta >> 6)
    if inputs % 8:
        high[:, -1] = False  # of no inputs
    wrong = low | high
    if not wrong.any():
        return None
    row, byte = wrong.nonzero()[0].tolist()
    second = not low[row, byte]
    first, pair = 8 * byte + 4 * second, int(meta[row, byte]) >> 4 * second
    return (
        f"row {row}, inputs {first} to {first + 3}: expected two ascending indices, "
        f"got {pair & 3} and {pair >> 2 & 3}"
    )


def check_input(
    op: str, x: Tensor, values: Tensor, meta: Tensor, dtypes: tuple[torch.dtype, ...] = FLOAT_DTYPES
) -> None:
    """Refuse what is no packed weight of one of `dtypes`, and an input that is not for it."""
    check_packed(op, values, meta, dtypes)
    rows, half = values.shape
    if x.dtype != values.dtype:
        raise ValueError(f"{op}: expected values of dtype {name_of(x)} as x has, got {name_of(values)}")
    if x.dim() < 1 or x.shape[-1] != 2 * half:
        raise ValueError(
            f"{op}: expected x of shape [..., {2 * half}] for values of shape {(rows, half)}, "
            f"got {tuple(x.shape)}"
        )
    check_device(op, "values", values, "x", x)


def check_linear24(
    x: Tensor, values: Tensor, meta: Tensor, bias: Tensor | None, residual: Tensor | None
) -> None:
    """Refuse tensors of `linear24` that do not fit together."""
    check_input("linear24", x, values, meta)
    rows = values.shape[0]
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (rows,) or bias.device != x.device):
        raise ValueError(
            f"linear24: expected bias of shape {(rows,)}, dtype {name_of(x)} on {x.device}, "
            f"got {tuple(bias.shape)}, {name_of(bias)} on {bias.device}"
        )
    shape = (*x.shape[:-1], rows)
    if residual is not None and (
        residual.dtype != x.dtype or residual.shape != shape or residual.device != x.device
    ):
        raise ValueError(
            f"linear24: expected residual of shape {shape}, dtype {name_of(x)} on {x.device}, "
            f"got {tuple(residual.shape)}, {name_of(residual)} on {residual.device}"
        )


def check_norm(op: str, norm: LayerNorm, x: Tensor) -> None:
    """Refuse a layer norm whose weight and bias are not of x's inputs."""
    if not isinstance(norm, tuple) or len(norm) != 3 or not all(isinstance(t, Tensor) for t in norm[:2]):
        raise ValueError(f"{op}: expected norm (weight, bias, epsilon) or None, got {norm!r:.80}")
    for name, tensor in zip(("norm's weight", "norm's bias"), norm[:2], strict=True):
        if tensor.shape != x.shape[-1:] or tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(
                f"{op}: expected {name} of shape {tuple(x.shape[-1:])}, dtype {name_of(x)} on {x.device}, "
                f"got {tuple(tensor.shape)}, {name_of(tensor)} on {tensor.device}"
            )


def broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    """Whether a shape broadcasts to another."""
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))
