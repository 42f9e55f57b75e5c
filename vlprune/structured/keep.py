"""How much of a tower is to stay: shares or counts of heads, neurons and layers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["Keep", "KeepCounts", "StructuredConfig", "round_keep"]

STAGES = ("finetune", "pretrain")
CRITERIA = ("mope", "magnitude", "gradient", "random")
SCOPES = ("layer", "tower")
NEURON_GROUPS = ("layer", "rank")
TOWERS = ("visual", "text", "both")

# Matrix units take sixteen values of an accumulated dimension at a time in bf16; 2:4 needs four.
NEURON_MULTIPLE = 16


@dataclass(frozen=True)
class KeepCounts:
    """Heads and neurons that stay in each layer, and layers that stay; `notes` says what was rounded."""

    heads: int
    neurons: int
    layers: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Keep:
    """What stays of one tower.

    Args:
        heads: of each layer: a float in (0, 1] is a share, a whole number a count; None keeps all.
        neurons: of each layer's MLP, alike; a share is rounded to a multiple of 16.
        layers: of the tower, alike; at least one.

    """

    heads: float | int | None = None
    neurons: float | int | None = None
    layers: float | int | None = None

    def __post_init__(self) -> None:
        """Check every field."""
        for name, least in (("heads", 0), ("neurons", 0), ("layers", 1)):
            value = getattr(self, name)
            count = isinstance(value, int) and not isinstance(value, bool) and value >= least
            share = isinstance(value, float) and 0.0 < value <= 1.0
            if value is not None and not count and not share:
                raise ValueError(
                    f"{name}: expected a share in (0, 1] (float), a count of at least {least} (int) "
                    f"or None, got {value!r}"
                )

    def counts(self, heads: int, neurons: int, layers: int, multiple: int = NEURON_MULTIPLE) -> KeepCounts:
        """Turn shares into counts for a tower of this many heads and neurons a layer, and layers.

        Raises:
            ValueError: a count larger than what there is.

        """
        kept: dict[str, int] = {}
        notes: list[str] = []
        for name, total in (("heads", heads), ("neurons", neurons), ("layers", layers)):
            value = getattr(self, name)
            if value is None:
                kept[name] = total
            elif isinstance(value, int):
                if value > total:
                    raise ValueError(f"{name}: {value} cannot be kept of {total}")
                kept[name] = value
            else:
                kept[name] = max(1, math.floor(value * total + 0.5))
                if name == "neurons":
                    kept[name], note = round_keep(kept[name], multiple, total)
                    notes += [f"neurons: {note}"] if note else []
        return KeepCounts(**kept, notes=tuple(notes))


@dataclass(frozen=True, kw_only=True)
class StructuredConfig:
    """How much of a model stays, or how fast it is to be, and what it is chosen by.

    Either `visual` and `text` say how much stays, or `target_speedup` says what is to come out: then the
    counts of every layer are chosen so that the summed error of what goes is least, at once for heads,
    neurons and layers (`stage` and `scope` have no say), by criterion "mope", whose errors alone compare
    across kinds.

    Args:
        visual: of the image tower; None leaves it whole.
        text: of the text tower; None leaves it whole.
        target_speedup: time of the whole model over that of the smaller one on this machine, above 1.
        tower: whose time `target_speedup` is about, and what it takes from: "visual", "text" or "both", which
            is an image and a text together.
        sparse: what remains is counted as 2:4 through `vlprune.nn.Linear24`, where that is faster than dense:
            the speed-up is there after `prune_` and `sparsify_`.
        timed_batch: images, or texts, in a call when measuring speed.
        stage: "finetune" compresses in width, then in depth, with training in between; "pretrain"
            takes both in one step, before a single training (MoPE-CLIP, arXiv 2403.07839, section 3.3).
        criterion: "mope" removes first what the model scores best without; "magnitude" what has the
            smallest weights, "gradient" what changes the loss least to first order (the paper's baselines
            MagnCLIP and DynaCLIP); "random".
        scope: "layer" leaves every layer as many heads and neurons, as published; "tower" as many together.
        groups: of neurons in a layer, which "mope" judges as one.
        neuron_groups: how it does: "layer" takes a group out of one layer at a time; "rank" takes those of
            the same rank out of all layers at once, as was published: fewer evaluations, and every layer
            loses the same ranks.
        samples: images of the data used at most.
        batch_size: images at once.
        seed: of "random".

    """

    visual: Keep | None = None
    text: Keep | None = None
    target_speedup: float | None = None
    tower: str = "both"
    sparse: bool = False
    timed_batch: int = 8
    stage: str = "finetune"
    criterion: str = "mope"
    scope: str = "layer"
    groups: int = 8
    neuron_groups: str = "layer"
    samples: int = 512
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("visual", "text"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Keep):
                raise ValueError(f"{name}: expected Keep(heads=.., neurons=.., layers=..), got {value!r}")
        for name, allowed in (
            ("stage", STAGES), ("criterion", CRITERIA), ("scope", SCOPES), ("tower", TOWERS),
            ("neuron_groups", NEURON_GROUPS),
        ):  # fmt: skip
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
        for name in ("groups", "samples", "batch_size", "timed_batch", "seed"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
        if not isinstance(self.sparse, bool):
            raise ValueError(f"sparse: expected True or False, got {self.sparse!r}")
        self._check_speedup()

    def _check_speedup(self) -> None:
        target = self.target_speedup
        if target is None:
            for name in ("tower", "sparse", "timed_batch"):
                if (value := getattr(self, name)) != getattr(StructuredConfig, name):
                    raise ValueError(f"{name}: says something about target_speedup only, got {value!r} alone")
            return
        number = isinstance(target, int | float) and not isinstance(target, bool)
        if not number or not 1 < target < math.inf:
            raise ValueError(f"target_speedup: expected a number above 1 or None, got {target!r}")
        for name in ("visual", "text"):
            if (value := getattr(self, name)) is not None:
                raise ValueError(f"{name}: expected None, target_speedup chooses what stays, got {value!r}")
        if self.criterion != "mope":
            raise ValueError(
                f"criterion: target_speedup weighs heads, neurons and layers against each other, which "
                f"only mope does in one unit, got {self.criterion!r}"
            )
        if self.neuron_groups != "layer":
            raise ValueError(
                "neuron_groups: target_speedup weighs layers against each other, whose errors "
                f"{self.neuron_groups!r} does not tell apart; expected 'layer'"
            )

    @property
    def towers(self) -> tuple[str, ...]:
        """Towers that are to shrink."""
        if self.target_speedup is None:
            return tuple(name for name in ("visual", "text") if getattr(self, name) is not None)
        return ("visual", "text") if self.tower == "both" else (self.tower,)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> StructuredConfig:
        """Read what `to_dict` returned; an unknown field is named."""
        values = dict(data)
        _check_fields(cls, values, "structured config")
        for tower in ("visual", "text"):
            if isinstance(keep := values.get(tower), dict):
                _check_fields(Keep, keep, tower)
                values[tower] = Keep(**keep)
        return cls(**values)


def round_keep(count: int, multiple: int, total: int) -> tuple[int, str]:
    """Round to the nearest multiple, up in the middle, not to 0 and not above what there is.

    Returns:
        The count, and a sentence that says what was rounded: empty if nothing was.

    Raises:
        ValueError: a count that is not in 0 to total, or no positive multiple.

    """
    if multiple < 1:
        raise ValueError(f"multiple: expected a whole number of at least 1, got {multiple}")
    if not 0 <= count <= total:
        raise ValueError(f"count: expected 0 to {total}, got {count}")
    if count in (0, total):
        return count, ""
    nearest = max(multiple, (2 * count + multiple) // (2 * multiple) * multiple)
    rounded = min(nearest, total)
    if rounded == count:
        return count, ""
    why = "all there are" if rounded == total else f"a multiple of {multiple}, which runs faster"
    return rounded, f"{count} of {total} rounded to {rounded}, {why}"


def _check_fields(cls: type[Any], values: dict[str, Any], where: str) -> None:
    if unknown := sorted(values.keys() - {field.name for field in fields(cls)}):
        raise ValueError(f"{where}: unknown field {unknown[0]!r}")
