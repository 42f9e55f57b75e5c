"""How a pruned model's accuracy is won back: adapters, losses and training, as dataclasses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..values import check_flag, is_number, is_whole
from .fields import Plain, check_within, text_tuple

__all__ = ["DistillConfig", "RecoverConfig", "SparseLoRAConfig", "TrainConfig"]

_TOWERS = ("visual", "text")


@dataclass(frozen=True)
class SparseLoRAConfig(Plain):
    """Adapters under a mask, ``(W + alpha / rank * B A) * M``: He et al. 2024, arXiv 2404.02424.

    The paper trains rank 4 in the image tower and 8 in the language model, with alpha 16.

    Args:
        rank: of every adapter; or by tower name or shell pattern of layer names, of which the first that
            fits counts.
        alpha: numerator of the scale, likewise.
        targets: shell patterns of qualified layer names, or the tower names "visual" and "text".
        ignore: the same, taken out of the targets.
        sparse: False is plain LoRA, ``W * M + alpha / rank * B A``: the baseline, whose merge fills zeros.

    """

    rank: int | Mapping[str, int] = 8
    alpha: float | Mapping[str, float] = 16
    targets: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    sparse: bool = True

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("rank", "alpha"):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, dict(value))
                if strange := [pattern for pattern in value if not isinstance(pattern, str)]:
                    raise ValueError(f"{name}: expected patterns of layer names, got {strange[0]!r}")
            entries = list(value.values()) if isinstance(value, Mapping) else [value]
            if not entries:
                raise ValueError(f"{name}: expected at least one pattern, got {value!r}")
            for entry in entries:
                if name == "rank" and not (is_whole(entry) and entry >= 1):
                    raise ValueError(f"rank: expected a whole number of at least 1, got {entry!r}")
                if name == "alpha" and not (is_number(entry) and entry > 0):
                    raise ValueError(f"alpha: expected a number above 0, got {entry!r}")
        for name in ("targets", "ignore"):
            object.__setattr__(self, name, text_tuple(name, getattr(self, name)))
        check_flag("sparse", self.sparse)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Plain):
    """What every training has: AdamW, linear warm-up and cosine decay, one order of the data a seed.

    Args:
        steps: optimizer steps; None is `epochs` passes over the data.
        epochs: see there.
        batch_size: images a step, for data of `load_data`; batches that are given stay as they are.
        learning_rate: the highest.
        final_learning_rate: share of it that is left at the end.
        warmup: share of the steps in which it rises.
        weight_decay: of parameters with two dimensions or more.
        betas: AdamW's.
        clip_norm: largest norm of all gradients together, None for no limit.
        amp: None, "bf16" or "fp16": autocast, with scaled losses under fp16.
        checkpointing: compute the blocks' activations again in the backward pass instead of keeping them.
        ema: decay of a running mean of the weights, which the model has at the end; None for none.
        seed: of the order of the data and of dropout.
        save_every: steps between checkpoints.
        samples: use this many of the images at most, of data of `load_data`.
        shard: where processes share the work (torchrun), each has a part of the weights, the masks (PyTorch
            2.11 leaves those of adapters whole), the gradients and the optimizer's state (FSDP2) instead of
            all of them (DDP). A teacher of its own stays whole. The weights are put together at the end, and
            after an error that all processes meet, such as a loss that is not finite; one that only some meet
            leaves the model without.

    """

    steps: int | None = None
    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.1
    warmup: float = 0.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    amp: str | None = None
    checkpointing: bool = False
    ema: float | None = None
    seed: int = 0
    save_every: int = 100
    samples: int | None = None
    shard: bool = False

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("epochs", "batch_size", "save_every", "steps", "samples"):
            value = getattr(self, name)
            optional = name in ("steps", "samples")
            if not (optional and value is None) and not (is_whole(value) and value >= 1):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        check_within("learning_rate", self.learning_rate, 0, math.inf, open_low=True)
        for name in ("final_learning_rate", "warmup"):
            check_within(name, getattr(self, name), 0, 1)
        check_within("weight_decay", self.weight_decay, 0, math.inf)
        betas = tuple(self.betas) if isinstance(self.betas, Iterable) else (self.betas,)
        if len(betas) != 2 or not all(is_number(beta) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas!r}")
        object.__setattr__(self, "betas", betas)
        if self.clip_norm is not None:
            check_within("clip_norm", self.clip_norm, 0, math.inf, open_low=True)
        if self.amp not in (None, "bf16", "fp16"):
            raise ValueError(f'amp: expected None, "bf16" or "fp16", got {self.amp!r}')
        check_flag("checkpointing", self.checkpointing)
        check_flag("shard", self.shard)
        if self.ema is not None and not (is_number(self.ema) and 0 <= self.ema < 1):
            raise ValueError(f"ema: expected a decay in [0, 1), got {self.ema!r}")
        if not is_whole(self.seed) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed: expected a whole number from 0 to {2**32 - 1}, got {self.seed!r}")


@dataclass(frozen=True, kw_only=True)
class RecoverConfig(TrainConfig):
    """Training of adapters by ``(1 - lam) * task + lam * KL(teacher || student)``: arXiv 2404.02424.

    `TrainConfig` explains its other fields: steps, epochs, batch_size, learning_rate, final_learning_rate,
    warmup, weight_decay, betas, clip_norm, amp, checkpointing, ema, seed, save_every, samples and shard.

    Args:
        lam: weight of the divergence from the dense teacher that the adapters' layers hold.

    """

    lam: float = 0.1

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        check_within("lam", self.lam, 0, 1)


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainConfig):
    """Training of a student by ``itc * L_ITC + sim * L_sim + feat * L_feat + hidden * L_hidn``.

    The terms are those of MoPE-CLIP (Lin et al. 2024, arXiv 2403.07839); a term of weight 0 is not
    computed. With `itc` and `sim` 0 captions are only read for a text tower among `towers`.
    `TrainConfig` explains the fields of every training: steps, epochs, batch_size, learning_rate,
    final_learning_rate, warmup, weight_decay, betas, clip_norm, amp, checkpointing, ema, seed, save_every,
    samples and shard.

    Args:
        itc: weight of the contrastive loss between images and captions.
        sim: of the cross-entropy between the teacher's and the student's similarities.
        feat: of the squared difference of normalised embeddings.
        hidden: of the squared difference of the blocks' outputs, whose widths must be equal.
        towers: whose embeddings and blocks are compared.
        retained: tower -> numbers of the teacher's layers that the student's correspond to, for a student
            with fewer (`CompactReport.keep_lists[tower]["layers"]`).
        hold_zeros: weights of the blocks that are zero at the start stay zero.
        teacher_amp: None, or "bf16": the teacher runs under autocast.

    """

    learning_rate: float = 2e-5
    final_learning_rate: float = 0.0
    warmup: float = 0.1
    weight_decay: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.98)
    itc: float = 1.0
    sim: float = 1.0
    feat: float = 1000.0
    hidden: float = 1.0
    towers: tuple[str, ...] = _TOWERS
    retained: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    hold_zeros: bool = True
    teacher_amp: str | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        weights = {name: getattr(self, name) for name in ("itc", "sim", "feat", "hidden")}
        for name, value in weights.items():
            check_within(name, value, 0, math.inf)
        if not any(weights.values()):
            raise ValueError("itc, sim, feat, hidden: expected one of them above 0, got 0 for all")
        towers = text_tuple("towers", self.towers)
        if not towers or any(tower not in _TOWERS for tower in towers):
            raise ValueError(f"towers: expected some of {', '.join(_TOWERS)}, got {self.towers!r}")
        object.__setattr__(self, "towers", towers)
        if not isinstance(self.retained, Mapping):
            raise ValueError(f"retained: expected a mapping from towers to layers, got {self.retained!r}")
        for tower, layers in self.retained.items():
            own = tuple(layers) if isinstance(layers, Iterable) else ()
            whole = all(is_whole(layer) and layer >= 0 for layer in own)
            if tower not in _TOWERS or not own or not whole or list(own) != sorted(set(own)):
                raise ValueError(
                    f"retained: expected ascending layer numbers by tower, got {tower!r}: {layers!r}"
                )
        object.__setattr__(self, "retained", {t: tuple(layers) for t, layers in self.retained.items()})
        check_flag("hold_zeros", self.hold_zeros)
        if self.teacher_amp not in (None, "bf16"):
            raise ValueError(f'teacher_amp: expected None or "bf16", got {self.teacher_amp!r}')

    @property
    def needs_texts(self) -> bool:
        """Whether captions are read at all."""
        return bool(self.itc or self.sim or ("text" in self.towers and (self.feat or self.hidden)))
