"""One pruned model trained, evaluated before and after, and saved: what `vlprune recover` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from .. import measure
from ..checkpoint import check_target, save_pretrained
from ..distributed import is_first, of_first_rank, world_size
from ..evaluate import evaluate
from ..files import write_json
from .recovery import Recovery
from .structure import weights_bytes
from .train import claim, recover_pruned_

__all__ = ["TRAINING_FORMAT", "TRAINING_VERSION", "recover"]

TRAINING_FORMAT = "vlprune-training"
TRAINING_VERSION = 1


def recover(
    model: nn.Module,
    dense: nn.Module,
    data: Any,
    recovery: Recovery,
    out: Path,
    *,
    names: Mapping[str, str | None],
    test: Any = None,
    say: Callable[[str], None] = print,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Train a pruned model towards the dense one, in place, and return (and keep in `out`) the record.

    ``out/training`` has the checkpoint and the log, ``out/model`` the model once it is trained. A run that
    was killed goes on when started again with the same arguments. The processes of one job share the work;
    the first writes.

    Args:
        model: pruned, compacted or both, packed or not.
        dense: what it was.
        data: of `load_data`, to train by.
        recovery: how.
        out: folder for record, model and training.
        names: "model", "teacher", "data" and "test" as the report shows them.
        test: evaluation data of `load_data`, None to evaluate nothing.
        say: told about progress, a line at a time.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: see `claim` and `recover_pruned_`; `out` holds something else.

    """
    folder = out / "model"
    check_target(folder)
    metrics: dict[str, Any] = {}

    def tell(line: str) -> None:
        if is_first():
            say(line)

    def score(name: str, one: nn.Module) -> None:
        if test is not None:
            found = evaluate(one, test)
            metrics[name] = found.to_dict()
            tell(f"{name}: {found}")

    claim(out / "training", model, dense, data, recovery)
    score("teacher", dense)
    score("pruned", model)
    parameter = next(model.parameters())
    record: dict[str, Any] = {
        "format": TRAINING_FORMAT,
        "version": TRAINING_VERSION,
        **names,
        "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
        "ranks": world_size(),
        "machine": measure.machine_info(),
    }
    part = recover_pruned_(model, dense, data, recovery, out / "training", progress=progress)
    score("recovered", model)

    def write() -> int:
        save_pretrained(model, folder)
        return weights_bytes(folder)

    size = of_first_rank(write)
    tell(f"saved to {folder} ({size / 1e6:.1f} MB)")
    record |= {
        "images": len(data),
        "metrics": metrics or None,
        "training": part,
        "saved": {"folder": folder.name, "bytes": size},
    }
    if is_first():
        write_json(out / "report.json", record)
    return record
