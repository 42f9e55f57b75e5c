"""How a pruned model is to be trained: one of four ways, with everything that it needs to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..recovery import DistillConfig, RecoverConfig, SparseLoRAConfig
from ..recovery.config import TrainConfig
from ..recovery.fields import RECOVERY_VERSION

__all__ = ["RECOVERY_METHODS", "Recovery"]

RECOVERY_METHODS = ("sparselora", "lora", "finetune", "distill")

_ADAPTED = ("sparselora", "lora")
_ADAPTERS = ("rank", "alpha", "targets", "ignore")
_COMMON = tuple(field.name for field in dataclasses.fields(TrainConfig))
_DISTILL = tuple(f.name for f in dataclasses.fields(DistillConfig) if f.name not in _COMMON)
# Of fine-tuning, which compares the student with no teacher.
_COMPARED = ("sim", "feat", "hidden", "retained", "teacher_amp")


@dataclass(frozen=True)
class Recovery:
    """A way of training, and its settings.

    Args:
        method: "sparselora" (adapters under the masks: He et al. 2024, arXiv 2404.02424), "lora" (its
            baseline, whose merge fills the zeros), "finetune" (all weights by the contrastive loss) or
            "distill" (all weights towards the dense model: MoPE-CLIP, arXiv 2403.07839). Only "lora" loses
            zeros.
        training: the loss, and how to train. Adapters have either one; under `RecoverConfig` the dense
            model's part in the loss is `lam`.
        adapters: where and of what rank, None without adapters.

    """

    method: str
    training: RecoverConfig | DistillConfig
    adapters: SparseLoRAConfig | None = None

    @property
    def trains_weights(self) -> bool:
        """Whether the weights themselves are trained, which half precision is too coarse for."""
        return self.adapters is None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, all on one level."""
        result = {"method": self.method, **self.training.to_dict()}
        if self.adapters is not None:
            own = self.adapters.to_dict()
            result |= {name: own[name] for name in _ADAPTERS}
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recovery:
        """Read what `to_dict` returned, or as little of it as is wanted: ``{"method": "distill"}``.

        Adapters are trained by ``(1 - lam) * task + lam * KL``, or, if itc, sim, feat, hidden, retained or
        teacher_amp is there, by the sum of those terms. Where `towers` is there and `targets` is not, it
        says which layers are adapted.

        Raises:
            ValueError: an unknown method or field, one that belongs to another method, or a bad value.

        """
        given = dict(values)
        method = given.pop("method", "sparselora")
        if method not in RECOVERY_METHODS:
            raise ValueError(f"method: expected one of {', '.join(RECOVERY_METHODS)}, got {method!r}")
        version = {"version": given.pop("version", RECOVERY_VERSION)}
        own = {name: given.pop(name) for name in _ADAPTERS if name in given}
        if method not in _ADAPTED:
            _refuse([*own, *(["lam"] if "lam" in given else [])], method, _ADAPTED)
            if method == "finetune":
                _refuse([name for name in _COMPARED if given.get(name)], method, ("distill",))
                given |= {"sim": 0.0, "feat": 0.0, "hidden": 0.0}
            return cls(method, DistillConfig.from_dict(version | given))
        terms = [name for name in _DISTILL if name in given]
        if "towers" in given:
            own.setdefault("targets", given["towers"])
            if terms == ["towers"]:
                terms = []
                del given["towers"]
        adapters = SparseLoRAConfig.from_dict(version | own | {"sparse": method == "sparselora"})
        if not terms:
            return cls(method, RecoverConfig.from_dict(version | given), adapters)
        if "lam" in given:
            raise ValueError(f"lam: {terms[0]} says what is minimised instead; leave out one of them")
        # the schedule is that of adapters, whatever the loss
        schedule = {f.name: f.default for f in dataclasses.fields(RecoverConfig) if f.name in _COMMON}
        return cls(method, DistillConfig.from_dict(version | schedule | given), adapters)


def _refuse(names: list[str], method: str, owners: tuple[str, ...]) -> None:
    if names:
        raise ValueError(f"{names[0]}: belongs to {' and '.join(owners)}, not to {method}; leave it out")
