"""Which tokens count in the calibration statistics, and how much.

What enters an input norm decides more than how it is scored (ATV, TAMP and MULTIFLOW all found so): a
padded caption is mostly padding, and an image has five times the tokens of its caption. A weight w_t
multiplies a token's square in the norm and its outer product in the Hessian; the number of sequences
that these are divided by stays, a constant of the layer.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .values import is_number

__all__ = [
    "ATV",
    "AttentionMask",
    "Modality",
    "TokenWeight",
    "TokenWeighting",
    "Tokens",
    "drift_of",
    "token_weighting",
]

# (qualified layer name, its input [..., in]) -> weights broadcastable to x.shape[:-1]
TokenWeight = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class Tokens:
    """What is known about the tokens of one input.

    Args:
        visual: whether they are an image's.
        real: bool [B, L], True for the ids of the batch's texts that are no padding.
        drift: float32 [B, T] or None: how far the block turns each of its tokens, see `drift_of`.

    """

    visual: bool
    real: Tensor
    drift: Tensor | None = None


@dataclass(frozen=True)
class TokenWeighting(ABC):
    """A token weight that goes to JSON and back; `needs_drift` has every block run once more to get it."""

    kind: ClassVar[str]
    needs_drift: ClassVar[bool] = False

    @abstractmethod
    def weigh(self, x: Tensor, tokens: Tokens) -> Tensor | None:
        """Weights that broadcast to ``x.shape[:-1]`` (bool or float), None for 1 everywhere.

        An input whose leading shape is not that of the tower's tokens gets 1 everywhere.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class AttentionMask(TokenWeighting):
    """Padding of texts counts nothing, every other token 1; which is which: `real_tokens`."""

    kind: ClassVar[str] = "attention_mask"

    def weigh(self, x: Tensor, tokens: Tokens) -> Tensor | None:
        """See `TokenWeighting.weigh`."""
        return None if tokens.visual else _aligned(tokens.real, x)


@dataclass(frozen=True)
class Modality(TokenWeighting):
    """One weight for an image's tokens, one for a text's (padding included).

    In a dual encoder a layer sees tokens of one kind, so the weights scale its statistics and change no
    ranking inside of it. A weight of 0 leaves the layers that see that kind alone without statistics,
    which is an error; take them out with `targets` or `ignore`.

    Args:
        visual: weight of image tokens, at least 0.
        text: weight of text tokens, at least 0.

    """

    visual: float = 1.0
    text: float = 1.0
    kind: ClassVar[str] = "modality"

    def __post_init__(self) -> None:
        """Check both weights."""
        for name in ("visual", "text"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise ValueError(f"{name}: expected a weight of at least 0, got {value!r}")

    def weigh(self, x: Tensor, tokens: Tokens) -> Tensor | None:
        """See `TokenWeighting.weigh`."""
        weight = self.visual if tokens.visual else self.text
        return torch.tensor(weight, dtype=torch.float32, device=x.device)


@dataclass(frozen=True)
class ATV(TokenWeighting):
    """All text tokens, and of an image the tokens that a block turns most: ATV-Pruning (CVPR 2026).

    A token's drift is 1 - cos(input, output) of the block. Of an image's n tokens the
    ``k = min(n, round(min(1, alpha * mean drift) * n_text))`` of largest drift count 1, the others
    nothing; among equals the first.

    ATV was made for one sequence of image and text. In a dual encoder the tokens of the image tower are
    the visual ones, and n_text is the number of real (unpadded) text tokens of the same pair. As such an
    image has no text tokens beside it to fall back on, k is at least 1. Padding counts nothing. What
    cross-attention reads of an image counts in full: its tokens do not pass through the block, so they
    have no drift.

    Args:
        alpha: visual tokens for each text token and unit of drift, above 0.

    """

    alpha: float = 1.0
    kind: ClassVar[str] = "atv"
    needs_drift: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check alpha."""
        if not is_number(self.alpha) or self.alpha <= 0:
            raise ValueError(f"alpha: expected a number above 0, got {self.alpha!r}")

    def weigh(self, x: Tensor, tokens: Tokens) -> Tensor | None:
        """See `TokenWeighting.weigh`."""
        if not tokens.visual:
            return _aligned(tokens.real, x)
        drift = tokens.drift
        if drift is None or drift.shape != x.shape[:-1]:
            return None
        if len(drift) != len(tokens.real):
            raise ValueError(
                f"token_weight: ATV needs a text for every image, got {len(drift)} images and "
                f"{len(tokens.real)} texts"
            )
        texts = tokens.real.sum(1).to(drift.device)
        wanted = ((self.alpha * drift.mean(1)).clamp(max=1) * texts).round().clamp(1, drift.shape[1])
        rank = drift.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return rank < wanted[:, None]


_KINDS: dict[str, type[TokenWeighting]] = {kind.kind: kind for kind in (AttentionMask, Modality, ATV)}


def token_weighting(value: Any) -> TokenWeighting | TokenWeight | None:
    """Read a token weight: None, a function, a weighting, its kind's name, or what its `to_dict` wrote.

    Raises:
        ValueError: none of these; the kinds are listed.

    """
    if value is None or isinstance(value, TokenWeighting):
        return value
    if isinstance(value, type):  # which could be called, too
        raise ValueError(
            f"token_weight: expected an instance such as AttentionMask(), got the class {value.__name__}"
        )
    fields = dict(value) if isinstance(value, dict) else {"kind": value}
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        if callable(value):
            function: TokenWeight = value
            return function
        raise ValueError(
            f"token_weight: expected a function, one of {', '.join(_KINDS)}, or such as AttentionMask(), "
            f"got {value!r}"
        )
    known = {field.name for field in dataclasses.fields(_KINDS[kind])}
    if unknown := sorted(set(fields) - known, key=str):
        raise ValueError(f"token_weight: unknown field {unknown[0]!r} for kind {kind!r}")
    return _KINDS[kind](**fields)


def drift_of(before: Tensor, after: Tensor) -> Tensor | None:
    """``1 - cos(before, after)`` of every token, float32 [B, T]; None unless both are [B, T, width]."""
    if before.dim() != 3 or before.shape != after.shape:
        return None
    return 1 - F.cosine_similarity(before.float(), after.float(), dim=-1)


def _aligned(real: Tensor, x: Tensor) -> Tensor | None:
    """Fit the mask [B, L] to inputs [B, T, in].

    T is L, or L + 1 with a class token at the end (CoCa's text tower), or L - 1 without the last token
    (CoCa's decoder, which predicts it).
    """
    batch, length = real.shape
    if x.dim() != 3 or x.shape[0] != batch or not -1 <= x.shape[1] - length <= 1:
        return None
    return F.pad(real.to(x.device), (0, 1), value=True)[:, : x.shape[1]]
