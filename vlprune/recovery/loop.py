"""The one training loop: AdamW, warm-up and cosine, masks held, interrupted at any moment and continued."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..distributed import gather, hides_progress, is_first, rank, world_size
from ..files import write_text
from ..models.running import model_device
from .batches import Source
from .config import TrainConfig
from .objective import Objective
from .outputs import checkpointed
from .report import TrainReport
from .state import Progress, changing, load_state, save_state
from .step import Step

__all__ = ["fit"]

LOG_FILE = "log.jsonl"


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    kind: str,
    objective: Objective,
    source: Source,
    config: TrainConfig,
    *,
    held: Mapping[str, Tensor] | None = None,
    out: Path | None = None,
    progress: bool | None = None,
) -> TrainReport:
    """Minimise an objective over its student's trainable parameters, in place.

    A step is a function of the weights, the optimizer and the step's number alone, so a run that was
    killed goes on from the last checkpoint in `out` as if nothing had happened. The processes of one job
    (see `vlprune.distributed`) share every batch under DistributedDataParallel, with the result of one
    process up to rounding; the first writes.

    Args:
        kind: for the report, the bar and errors.
        objective: the student and its loss.
        source: the batches.
        config: how to train.
        held: parameter name -> keep mask: where it is False these weights are zero after every step, and
            their gradients count for nothing.
        out: folder for checkpoints and ``log.jsonl`` (a line a step), and to resume from.
        progress: None shows a bar on a terminal, False never, True always.

    Raises:
        ValueError: a loss or gradient that is not finite (the step is named, and the weights are those
            before it); nothing to train; a checkpoint of another run.

    """
    start = time.perf_counter()
    student, device = objective.student, model_device(objective.student)
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(f"{kind}: the student has no trainable parameter (requires_grad)")
    if half := [name for name, p in trained.items() if p.dtype.itemsize < 4]:
        raise ValueError(
            f"{kind}: {half[0]} is {trained[half[0]].dtype}, in which small steps are rounded away; train a "
            'student.float(), with amp="bf16" for speed, or adapters (add_sparse_lora_)'
        )
    zeros = {name: ~keep.to(device) for name, keep in (held or {}).items() if name in trained}
    minimised = _shared(objective)
    state = Progress(
        student,
        _adamw(trained, config),
        torch.amp.GradScaler(device.type, enabled=config.amp == "fp16"),
        _identity(kind, source, config, student, zeros),
        {} if config.ema is None else {name: p.detach().clone() for name, p in trained.items()},
    )
    if out is not None:
        load_state(out, state)
    resumed = state.step
    if len(set(steps := gather(resumed))) > 1:
        raise ValueError(f"out: the processes found checkpoints of steps {steps}; they must share {out}")
    writes = out if is_first() else None
    step = Step(kind, minimised, state, config, trained, zeros, source.steps)
    with ExitStack() as stack:
        stack.callback(state.optimizer.zero_grad)
        stack.callback(_restore_modes, [(m, m.training) for m in student.modules()])
        student.train()
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        if config.checkpointing:
            stack.enter_context(checkpointed(student))
        log = None
        if writes is not None:
            writes.mkdir(parents=True, exist_ok=True)
            _cut_log(writes / LOG_FILE, resumed)
            log = stack.enter_context((writes / LOG_FILE).open("a", encoding="utf-8"))
        bar = stack.enter_context(
            tqdm(
                total=source.steps, initial=resumed, desc=kind, unit="step", disable=hides_progress(progress)
            )
        )
        for number, batch in enumerate(source.ahead(resumed, source.steps), start=resumed):
            torch.manual_seed(config.seed * 1_000_003 + number + 1_000_000_007 * rank())
            record = step(number, batch.to(device))
            if log is not None:
                log.write(json.dumps(record) + "\n")
                log.flush()
            bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
            bar.update()
            if writes is not None and (state.step % config.save_every == 0 or state.step == source.steps):
                save_state(writes, state)
    with torch.no_grad():
        for name, mean in state.ema.items():
            trained[name].copy_(mean)
    history = state.history
    terms = {name: tuple(row[name] for row in history) for name in history[0]}
    losses = tuple(sum(row.values()) for row in history)
    size = sum(p.numel() for p in trained.values())
    return TrainReport(kind, len(history), size, losses, terms, time.perf_counter() - start, resumed)


def _shared(objective: Objective) -> nn.Module:
    """Give every rank the weights of the first, and the mean of all gradients."""
    if world_size() == 1:
        return objective
    # masks are the same everywhere; torch 2.15 knows the option by another name
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    # a tower, or the logits' scale, may be left out of the loss
    return DistributedDataParallel(objective, find_unused_parameters=True, **options)


def _adamw(trained: Mapping[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in trained.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas)


def _identity(
    kind: str,
    source: Source,
    config: TrainConfig,
    student: nn.Module,
    zeros: Mapping[str, Tensor],
) -> dict[str, Any]:
    settings = {name: value for name, value in config.to_dict().items() if name != "save_every"}
    return {
        "kind": kind,
        "config": settings,
        "steps": source.steps,
        "data": source.length,
        "shapes": {name: list(tensor.shape) for name, tensor in changing(student).items()},
        "zeros": {name: int(zero.sum()) for name, zero in zeros.items()},
    }


def _cut_log(path: Path, step: int) -> None:
    """Take the lines of steps that will be taken again out of the log."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()[:step]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
