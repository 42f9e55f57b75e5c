"""The strongest dense peer on a CPU: oneDNN's product with a weight that was re-ordered beforehand.

`F.linear` in float32 is MKL's, which on AMD's processors computes with AVX2 whatever they have; the operators
that PyTorch's compiler calls for other layers reach oneDNN, which uses what there is. They have no public
name, so where a release lacks them there is no such peer.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from ..fusion import find_activation
from ..models import split_attention_

__all__ = ["ONEDNN", "OneDnnLinear", "has_onednn", "onednn_"]

ONEDNN = "oneDNN"


def has_onednn(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this PyTorch and this CPU have the product in this dtype."""
    built = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(built) and device.type == "cpu" and _computes(dtype)


@cache
@torch.inference_mode(False)
def _computes(dtype: torch.dtype) -> bool:
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False  # it would, by a reference of its own
        # small whole numbers, of which every sum is exact
        x, weight = (torch.arange(rows * 16, device="cpu").reshape(rows, 16) % 5 for rows in (3, 32))
        with torch.no_grad():
            y = OneDnnLinear(weight.to(dtype), None, 3)(x.to(dtype))
        return torch.equal(y.long(), x @ weight.T)
    except (AttributeError, RuntimeError):
        return False


class OneDnnLinear(nn.Module):
    """x W' + b, and GELU in the epilogue where it is asked for, of a dense weight. Without gradients.

    Args:
        weight: [out, in].
        bias: [out], or None.
        tokens: that the order of the weight is chosen for.
        gelu: whether the activation follows.

    """

    def __init__(self, weight: Tensor, bias: Tensor | None, tokens: int | None, gelu: bool = False) -> None:
        super().__init__()
        self.weight = weight.detach()  # open_clip asks it for the dtype
        self.bias = None if bias is None else bias.detach()
        self.ordered = torch.ops.mkldnn._reorder_linear_weight(self.weight, tokens)
        self.epilogue: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., in] to [..., out]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.ordered, self.bias, *self.epilogue)
        return y


def onednn_(model: nn.Module) -> None:
    """Compute every linear layer of a model so, with the GELU that follows it, in place."""
    split_attention_(model)
    for path, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        name, _, child = path.rpartition(".")
        parent, fused = model.get_submodule(name), find_activation(model, path)
        gelu = fused is not None and fused.kind == "gelu"
        setattr(parent, child, OneDnnLinear(layer.weight, layer.bias, None, gelu))
        if fused is not None and gelu:
            setattr(parent, fused.attribute, nn.Identity())
