"""The one training loop: AdamW, warm-up and cosine, masks held, interrupted at any moment and continued."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..distributed import (
    hides_progress,
    is_first,
    losing_none,
    of_first_rank,
    on_all_ranks,
    rank,
    world_size,
)
from ..files import write_text
from ..fingerprint import digests
from ..models.running import model_device
from .adapters import attached
from .batches import Source
from .config import TrainConfig
from .objective import Objective
from .outputs import checkpointed
from .report import TrainReport
from .seeds import own_seeds
from .sharding import Sharded, local, part_of
from .state import Progress, changing, frozen, read_state, save_state
from .step import RECORDED, Refused, Step, hold_

__all__ = ["fit"]

LOG_FILE = "log.jsonl"

# what a run that continues may change
_FREE = ("save_every", "shard")


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    kind: str,
    objective: Objective,
    source: Source,
    config: TrainConfig,
    *,
    held: Callable[[], Mapping[str, Tensor]] | None = None,
    out: Path | None = None,
    progress: bool | None = None,
) -> TrainReport:
    """Minimise an objective over its student's trainable parameters, in place.

    A step is a function of the weights, the optimizer and the step's number alone, so a run that was
    killed goes on from the last checkpoint in `out` as if nothing had happened. The processes of one job
    (see `vlprune.distributed`) share every batch under DistributedDataParallel or, with `config.shard`, under
    FSDP2, with the result of one process up to rounding; the first writes. A checkpoint does not depend on
    how many they are.

    Args:
        kind: for the report, the bar and errors.
        objective: the student and its loss.
        source: the batches.
        config: how to train.
        held: gives parameter name -> keep mask: where it is False these weights are zero, from the first step
            on, and their gradients count for nothing. A function, so that no caller keeps whole masks.
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
    keeps = held() if held else {}
    zeros = {name: ~keep.to(device) for name, keep in keeps.items() if name in trained}
    del keeps
    identity = {} if out is None else _identity(kind, source, config, student, zeros)
    saved = _saved(out, identity)
    resumed = 0 if saved is None else len(saved["history"])
    size = sum(p.numel() for p in trained.values())
    with losing_none(kind), _ready(objective, config) as (module, model, averaged):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        zeros = {name: part_of(zero, trained[name]) for name, zero in zeros.items()}
        hold_(trained, zeros)
        state = Progress(
            model,
            _adamw(trained, config),
            torch.amp.GradScaler(device.type, enabled=config.amp == "fp16"),
            identity,
            {} if config.ema is None else {name: p.detach().clone() for name, p in trained.items()},
        )
        if saved is not None:
            state.load(saved)
            saved = None  # as large as the state itself
            hold_(trained, zeros)
        step = Step(kind, module, state, config, trained, zeros, source.steps, averaged)
        _run(step, source, out, progress)
    history = state.history
    terms = {name: tuple(row[name] for row in history) for name in history[0] if name not in RECORDED}
    losses = tuple(row["loss"] for row in history)
    return TrainReport(kind, len(history), size, losses, terms, time.perf_counter() - start, resumed)


def _run(step: Step, source: Source, out: Path | None, progress: bool | None) -> None:
    """Take the steps that are left, and give the model the mean of its weights if there is one."""
    state, config, resumed = step.state, step.config, step.state.step
    device = model_device(state.model)
    with ExitStack() as stack:
        stack.callback(state.optimizer.zero_grad)
        stack.callback(_restore_modes, [(m, m.training) for m in state.model.modules()])
        state.model.train()
        seed = stack.enter_context(own_seeds(device))
        if config.checkpointing:
            stack.enter_context(checkpointed(state.model))
        log = None
        if out is not None and is_first():
            out.mkdir(parents=True, exist_ok=True)
            # without the steps that will be taken again, and whatever became of the file
            write_text(out / LOG_FILE, "".join(map(_line, state.history)))
            log = stack.enter_context((out / LOG_FILE).open("a", encoding="utf-8"))
        hidden = hides_progress(progress)
        bar = stack.enter_context(
            tqdm(total=source.steps, initial=resumed, desc=step.kind, unit="step", disable=hidden)
        )
        for number, batch in enumerate(source.ahead(resumed, source.steps), start=resumed):
            seed(config.seed * 1_000_003 + number + 1_000_000_007 * rank())
            record = step(number, batch.to(device))
            if log is not None:
                log.write(_line(record))
                log.flush()
            bar.set_postfix(loss=f"{record['loss']:.4g}", refresh=False)
            bar.update()
            if out is not None and (state.step % config.save_every == 0 or state.step == source.steps):
                # of which the others hear when it fails, or they would wait for the first one's next step
                of_first_rank(partial(save_state, out, state.whole()))
    with torch.no_grad():
        for name, mean in state.ema.items():
            local(step.trained[name]).copy_(local(mean))


def _saved(out: Path | None, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint to go on from, the same on every rank, or none; what one rank refuses, all do."""
    if out is None:
        return None
    found: list[dict[str, Any] | None] = []

    def read() -> int:
        found.append(read_state(out, identity))
        return 0 if found[0] is None else len(found[0]["history"])

    if len(set(steps := on_all_ranks(read))) > 1:
        raise ValueError(f"out: the processes found checkpoints of steps {steps}; they must share {out}")
    return found[0]


@contextmanager
def _ready(
    objective: Objective, config: TrainConfig
) -> Iterator[tuple[nn.Module, nn.Module, Collection[nn.Parameter]]]:
    """The objective as the processes train it together, its student, and what `Step` has to average."""
    if not config.shard or world_size() == 1:
        yield _replicated(objective), objective.student, ()
        return
    sharded = Sharded(objective)
    try:
        yield sharded.module, sharded.student, sharded.whole.values()
    except Refused:
        sharded.restore()
        raise
    # after any other error a process may be alone in asking for the weights
    sharded.restore()


def _replicated(objective: Objective) -> nn.Module:
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
    settings = {name: value for name, value in config.to_dict().items() if name not in _FREE}
    adapters = attached(student)
    return {
        "kind": kind,
        "config": settings,
        "steps": source.steps,
        "data": source.length,
        "shapes": {name: list(tensor.shape) for name, tensor in changing(student).items()},
        "adapters": None if adapters is None else adapters.config.to_dict(),
        "zeros": digests(zeros),
        "frozen": digests(frozen(student)),
    }


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def _restore_modes(modes: list[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        module.training = training
